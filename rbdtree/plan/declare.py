"""From a declared tree and the one that exists to the changes between them: nodes to make, settings to change, what is
there and not declared, what cannot be changed in place."""

from dataclasses import dataclass

from rbdtree.model.declaration import Declaration, DeclaredNode
from rbdtree.model.document import Kind
from rbdtree.model.policy import Settings
from rbdtree.model.portion import WHOLE, Portion, text


@dataclass(frozen=True, slots=True)
class Standing:
    """A node that exists. ``policy`` is None where its document cannot be read; ``leaving``: what it is in the middle
    of; ``joining``: it was never finished, making it again goes on."""

    name: str
    kind: Kind
    image: str
    parent: str
    policy: Settings | None
    joining: bool = False
    leaving: str = ""
    portion: Portion = WHOLE


@dataclass(frozen=True, slots=True)
class Existing:
    """The tree as found; ``policy`` None: its root cannot be read."""

    policy: Settings | None
    nodes: tuple[Standing, ...]


NOTHING = Existing((), ())


@dataclass(frozen=True, slots=True)
class Make:
    """A node that is declared and not there."""

    node: DeclaredNode

    def __str__(self) -> str:
        if self.node.kind is Kind.ROOT:
            return f"+ {self.node.name}: root, on {self.node.image}"
        return f"+ {self.node.name}: {self.node.kind} below {self.node.parent}, on {self.node.image}"


@dataclass(frozen=True, slots=True)
class Set:
    """A setting of the tree (``node`` empty) or of a node; ``before`` None: it is not set, ``to`` None: to be unset."""

    node: str
    key: str
    before: str | None
    to: str | None

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        if self.before is None:
            return f"+ {where}{self.key} = {self.to}"
        if self.to is None:
            return f"- {where}{self.key} = {self.before}"
        return f"~ {where}{self.key} = {self.before} -> {self.to}"


@dataclass(frozen=True, slots=True)
class Remove:
    """A node that is there and not declared, to go into the trash."""

    node: str
    image: str

    def __str__(self) -> str:
        return f"- {self.node}: {self.image} to the trash"


@dataclass(frozen=True, slots=True)
class Extra:
    """Drift: a node that is there and not declared, left alone."""

    node: str
    kind: Kind
    image: str

    def __str__(self) -> str:
        return f"? {self.node}: {self.kind} on {self.image} is there and not declared (--prune removes it)"


@dataclass(frozen=True, slots=True)
class Differs:
    """Something that no ``apply`` changes."""

    node: str
    what: str
    declared: str
    there: str

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        return f"! {where}{self.what} is {self.there}, declared is {self.declared}"


Change = Make | Set | Remove | Extra | Differs


def plan_declare(declared: Declaration, existing: Existing, *, prune: bool = False) -> tuple[Change, ...]:
    """In the order in which they can be carried out: parents first, leaves leave first."""
    there = {node.name: node for node in existing.nodes}
    changes: list[Change] = []
    for node in declared.nodes:
        found = there.get(node.name)
        if found is None or (found.joining and not _differences(node, found)):
            changes.append(Make(node))
        else:
            changes += _differences(node, found)
    changes += _settings("", existing.policy, declared.policy)
    for node in declared.nodes:
        found = there.get(node.name)
        changes += _settings(node.name, found.policy if found else (), node.policy)
    names = {node.name for node in declared.nodes}
    extra = [node for node in _leaves_first(existing.nodes) if node.name not in names]
    for left in extra:
        if prune and left.kind is Kind.ROOT:
            changes.append(Differs(left.name, "the root", "another node", f"{left.name} on {left.image}"))
        else:
            changes.append(Remove(left.name, left.image) if prune else Extra(left.name, left.kind, left.image))
    return tuple(changes)


def blocking(changes: tuple[Change, ...]) -> tuple[Differs, ...]:
    """What an apply stops at."""
    return tuple(change for change in changes if isinstance(change, Differs))


def doable(changes: tuple[Change, ...]) -> tuple[Make | Set | Remove, ...]:
    """What an apply carries out."""
    return tuple(change for change in changes if isinstance(change, Make | Set | Remove))


def _differences(node: DeclaredNode, found: Standing) -> list[Change]:
    pairs = (
        ("the kind", str(node.kind), str(found.kind)),
        ("the parent", node.parent, found.parent),
        ("the image", node.image, found.image),
    )
    differing: list[Change] = [
        Differs(node.name, what, declared or "none", there or "none")
        for what, declared, there in pairs
        if declared != there
    ]
    if node.portion is not None and node.portion != found.portion and not found.joining:
        # Moves bytes, or gives some up: by 'portion set' only.
        differing.append(Differs(node.name, "the portion", text(node.portion), text(found.portion)))
    if found.leaving:
        differing.append(Differs(node.name, "the node", "there", f"{found.leaving}, which was not finished"))
    return differing


def _settings(node: str, before: Settings | None, wanted: Settings) -> list[Change]:
    if before is None:
        # Nobody can tell what is set there.
        return [Differs(node, "its policy", "known", "not to be read")] if wanted else []
    old, new = dict(before), dict(wanted)
    keys = sorted({*old, *new})
    return [Set(node, key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _leaves_first(nodes: tuple[Standing, ...]) -> list[Standing]:
    found: list[Standing] = []
    waiting = sorted(nodes, key=lambda node: node.name)
    while waiting:
        parents = {node.parent for node in waiting}
        leaves = [node for node in waiting if node.name not in parents] or waiting
        found += leaves
        waiting = [node for node in waiting if node not in leaves]
    return found
