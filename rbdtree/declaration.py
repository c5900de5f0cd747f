"""A tree's TOML file, read and written.

    tree = "vol"

    [policy]
    keep = "last 5, daily 7"

    [nodes.root]
    kind = "root"
    image = "a:rbd/vol"
    size = "10G"                    # makes the image where there is none

    [nodes.paris]
    kind = "mirror"
    parent = "root"
    image = "b:rbd/vol"
    policy.rpo = "15m"

Every mistake of a file is reported at once; an unknown key is a mistake.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbdtree import errors
from rbdtree.model import policy
from rbdtree.model import portion as portions
from rbdtree.model.declaration import Declaration, DeclaredNode, Look
from rbdtree.model.document import Kind
from rbdtree.model.name import ImageSpec, check_name, parse_size
from rbdtree.model.policy import Settings

if TYPE_CHECKING:
    from rbdtree.schema import NodeSection, TreeFile

_HINT = "docs/policy.md shows what is in it."
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def load(path: Path) -> Declaration:
    """Raises ``NotFound`` for a missing file and ``UsageError`` naming every mistake in it."""
    from pydantic import ValidationError

    from rbdtree.schema import TreeFile, mistakes_of

    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise errors.NotFound(f"cannot read {path}: {error.strerror}", _HINT) from error
    except ValueError as error:
        raise errors.UsageError(f"{path} is not TOML: {error}", _HINT) from error
    try:
        parsed = TreeFile.model_validate(raw)
    except ValidationError as error:
        raise errors.UsageError(f"{path}: {'; '.join(mistakes_of(error))}", _HINT) from error
    mistakes: list[str] = []
    found = _declaration(parsed, mistakes)
    if mistakes:
        raise errors.UsageError(f"{path}: {'; '.join(mistakes)}", _HINT)
    return found


def _declaration(parsed: "TreeFile", mistakes: list[str]) -> Declaration:
    _try(mistakes, "tree", lambda: check_name("tree", parsed.tree))
    settings = _settings("policy", parsed.policy, mistakes, tree=True)
    nodes = {name: _node(name, section, mistakes) for name, section in parsed.nodes.items()}
    roots = [name for name, node in nodes.items() if node.kind is Kind.ROOT]
    if len(roots) != 1:
        mistakes.append(f"nodes: a tree has one root, declared are {len(roots)}")
    images: dict[str, str] = {}
    for name, node in nodes.items():
        if node.kind is Kind.ROOT and node.parent:
            mistakes.append(f"nodes.{name}: a root has no parent")
        elif node.kind is not Kind.ROOT and node.parent not in nodes:
            what = f"its parent {node.parent} is not declared" if node.parent else "its parent is missing"
            mistakes.append(f"nodes.{name}: {what}")
        if node.image in images:
            mistakes.append(f"nodes.{name}: {node.image} is the image of {images[node.image]}")
        images[node.image] = name
    ordered = _parents_first(nodes)
    if len(ordered) < len(nodes) and not mistakes:
        left = ", ".join(sorted(nodes.keys() - {node.name for node in ordered}))
        mistakes.append(f"nodes: the parents of {left} go in a circle")
    return Declaration(parsed.tree, settings, tuple(ordered))


def _try(mistakes: list[str], where: str, check: Any) -> Any:
    try:
        return check()
    except errors.UsageError as error:
        mistakes.append(f"{where}: {error}")
        return None


def _settings(where: str, given: dict[str, str], mistakes: list[str], *, tree: bool) -> Settings:
    found = {}
    for key, text in given.items():
        if not tree and key in policy.TREE_ONLY:
            mistakes.append(f"{where}.{key}: is a setting of the whole tree, not of a node")
            continue
        checked = _try(mistakes, where, lambda key=key, text=text: policy.check(key, text))
        if checked is not None:
            found[key] = checked
    return tuple(sorted(found.items()))


def _node(name: str, section: "NodeSection", mistakes: list[str]) -> DeclaredNode:
    where = f"nodes.{name}"
    _try(mistakes, "nodes", lambda: check_name("node", name))
    spec = _try(mistakes, where, lambda: ImageSpec.parse(section.image))
    for key in ("size", "object_size", "stripe_unit"):
        text = getattr(section, key)
        if text is not None:
            _try(mistakes, f"{where}.{key}", lambda text=text: parse_size(text))
    kind = Kind(section.kind)
    look = Look(section.size, section.object_size, section.stripe_unit, section.stripe_count, section.data_pool)
    if kind is Kind.CLONE and (look != Look() or section.history):
        mistakes.append(f"{where}: a clone takes its layout and history from what it is cloned from")
    if kind is Kind.MIRROR and section.size:
        mistakes.append(f"{where}: a mirror has the size of the volume")
    portion = _try(mistakes, f"{where}.portion", lambda: portions.parse(section.portion)) if section.portion else None
    if kind is Kind.ROOT and portion:
        mistakes.append(f"{where}: the root is the volume, all of it")
    return DeclaredNode(
        name,
        kind,
        str(spec) if spec else section.image,
        section.parent,
        _settings(f"{where}.policy", section.policy, mistakes, tree=False),
        section.history,
        look,
        portion,
    )


def _parents_first(nodes: dict[str, DeclaredNode]) -> list[DeclaredNode]:
    found = [node for node in nodes.values() if node.kind is Kind.ROOT]
    for above in found:
        found += [node for node in nodes.values() if node.parent == above.name and node not in found]
    return found


def text_of(declaration: Declaration) -> str:
    """The file that says this."""
    lines = [f"tree = {_string(declaration.tree)}"]
    if declaration.policy:
        lines += ["", "[policy]", *(f"{key} = {_string(text)}" for key, text in declaration.policy)]
    for node in declaration.nodes:
        lines += ["", f"[nodes.{_key(node.name)}]", f"kind = {_string(str(node.kind))}"]
        if node.parent:
            lines.append(f"parent = {_string(node.parent)}")
        lines.append(f"image = {_string(node.image)}")
        if node.history:
            lines.append("history = true")
        if node.portion is not None:
            lines.append(f"portion = {_string(portions.text(node.portion))}")
        lines += [f"policy.{key} = {_string(text)}" for key, text in node.policy]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """A basic string of TOML; what JSON leaves as it is and TOML does not allow is DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
