"""``ports`` in memory, for property tests of plans and the engine; the conformance suite keeps it honest.

It misbehaves where librbd does: a diff reports what was written rather than what changed, an object born after the
start snapshot is reported whole, and the cheap diff overlooks what a shrink with a snapshot took away.
"""

from rbdtree.memory.cluster import Cluster, Sites
from rbdtree.memory.image import Image
from rbdtree.memory.misuse import corrupt, protect, write_late
from rbdtree.memory.pool import Pool, Watch
from rbdtree.memory.storage import Storage

__all__ = ["Cluster", "Image", "Pool", "Sites", "Storage", "Watch", "corrupt", "protect", "write_late"]
