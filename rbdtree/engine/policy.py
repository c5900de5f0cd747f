"""Settings of a tree or of a node, set and taken away; in force at a node as soon as its document tells of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.engine.node import Node
from rbdtree.model import policy
from rbdtree.model.document import NodeDocument
from rbdtree.model.policy import Settings


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting and whose it is: ``node``, ``tree`` or ``default``."""

    key: str
    text: str
    source: str


def change(
    node: Node,
    wanted: Mapping[str, str],
    unwanted: Iterable[str] = (),
    *,
    tree: bool,
    dry_run: bool = False,
) -> tuple[Settings, Settings]:
    """(before, after). ``tree``: of the whole tree, at its root; others hear of it with their next sync."""
    checked = policy.settings(wanted)
    for key in [*dict(checked), *unwanted]:
        if key not in policy.KEYS:
            raise errors.UsageError(f"there is no setting {key!r}", f"There are: {', '.join(policy.KEYS)}.")
        if not tree and key in policy.TREE_ONLY:
            document = node.read()
            raise errors.UsageError(
                f"{key} is a setting of the whole tree, not of a node",
                f"Run 'rbdtree policy set {document.tree} {key}=...'.",
            )
    document = node.read()
    before = document.tree_policy if tree else document.policy

    def changed(settings: Settings) -> Settings:
        kept = {key: text for key, text in settings if key not in set(unwanted)}
        return tuple(sorted({**kept, **dict(checked)}.items()))

    def update(d: NodeDocument) -> NodeDocument:
        return replace(d, tree_policy=changed(d.tree_policy)) if tree else replace(d, policy=changed(d.policy))

    if not dry_run:
        node.update(update)
    return before, changed(before)


def in_force(document: NodeDocument) -> list[Setting]:
    """Every setting there is, as it holds at this node."""
    own, tree = dict(document.policy), dict(document.tree_policy)
    found = []
    for key in policy.KEYS:
        if key in own:
            found.append(Setting(key, own[key], "node"))
        elif key in tree:
            found.append(Setting(key, tree[key], "tree"))
        else:
            found.append(Setting(key, policy.DEFAULTS[key], "default"))
    return found
