"""A tree as somebody declares it: its settings and its nodes. What is in force is in the documents."""

from dataclasses import dataclass

from rbdtree.model.document import Kind
from rbdtree.model.policy import Settings
from rbdtree.model.portion import Portion


@dataclass(frozen=True, slots=True)
class Look:
    """Of a new image: sizes in text, as a person gives them; None: as usual."""

    size: str | None = None
    object_size: str | None = None
    stripe_unit: str | None = None
    stripe_count: int | None = None
    data_pool: str | None = None


@dataclass(frozen=True, slots=True)
class DeclaredNode:
    """``image`` is SITE:POOL/[NAMESPACE/]IMAGE; ``parent`` is empty for the root. ``look`` and ``history`` count when
    the node is made, never afterwards. ``portion`` None: nothing is said of it."""

    name: str
    kind: Kind
    image: str
    parent: str = ""
    policy: Settings = ()
    history: bool = False
    look: Look = Look()
    portion: Portion | None = None


@dataclass(frozen=True, slots=True)
class Declaration:
    """Nodes parents first."""

    tree: str
    policy: Settings
    nodes: tuple[DeclaredNode, ...]
