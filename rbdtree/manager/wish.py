"""What a manager is for, and whom it tells what it does."""

from dataclasses import dataclass

from rbdtree import errors
from rbdtree.manager.cycle import Cycle
from rbdtree.manager.unit import Unit


@dataclass(frozen=True, slots=True)
class Wish:
    """What a manager is for. Empty: everything that its sites hold. Seconds.

    ``poll``: how often it looks at all documents, in case a notification was missed; ``whole``: how often at the images
    too; ``jobs``: cycles at a time.
    """

    trees: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    poll: float = 60.0
    whole: float = 600.0
    jobs: int = 16
    expiry_seconds: float = 86400.0


class Listener:
    """Told what a manager does: for its log and its metrics. Called from several threads."""

    def cycle(self, unit: Unit, cycle: Cycle) -> None:
        return

    def edge(self, unit: Unit, what: str) -> None:
        """``taken``, ``given``, ``lost``"""

    def site(self, site: str, error: errors.Error | None) -> None:
        return

    def problem(self, error: errors.Error) -> None:
        return
