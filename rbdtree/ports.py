"""What the engine needs of a cluster. ``rbdtree.ceph`` and ``rbdtree.memory`` both provide it, under one conformance
suite (``tests/conformance``).

Every method raises ``rbdtree.errors`` only. Offsets, lengths and sizes are bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rbdtree import errors
from rbdtree.model.extent import Pair
from rbdtree.model.journal_client import Client, Commit, Header, Tag

WORK = "rbdtree.claim"
"""The claim of whoever changes a node."""
EDGE = "rbdtree.edge"
"""The claim of the manager that an edge is left to; it protects nothing, it spreads the work."""
MANAGERS = "rbdtree.managers"
"""The list of managers, on the directory."""

Span = tuple[int, int, bool]
"""(offset, length, exists): as librbd's diff reports it; ``exists`` is a hint, False where an object is gone."""

ReadDone = Callable[[bytes | Exception], None]
WriteDone = Callable[[Exception | None], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A user snapshot of an image, ours or not; ``size_bytes`` is the image's size in it."""

    snapshot_id: int
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How an image is cut into objects: object size in bytes (2^order), stripe unit in bytes and count."""

    object_bytes: int = 4 << 20
    stripe_unit: int = 4 << 20
    stripe_count: int = 1

    @property
    def plain(self) -> bool:
        """Whether object n holds the bytes from n * object_bytes on."""
        return self.stripe_count == 1


@dataclass(frozen=True, slots=True)
class Ancestor:
    """The snapshot a clone stands on."""

    pool: str
    namespace: str
    image_id: str
    snapshot: str
    overlap_bytes: int


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as its pool lists it."""

    image_id: str
    name: str
    trashed: bool = False


@dataclass(frozen=True, slots=True)
class ClaimInfo:
    """Who holds a claim: ``owner`` as the holder wrote it; ``expires`` in seconds since 1970 by the cluster's clock."""

    cookie: str
    owner: str
    expires: float
    holder: str
    """RADOS name of the holder, for breaking the claim."""


class Source(Protocol):
    """Bytes of a volume that can be read: of an image, or of what was packed of one."""

    def size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def submit_read(self, offset: int, length: int, done: ReadDone) -> None: ...
    def close(self) -> None: ...


class Image(Source, Protocol):
    """An open image. ``submit_*`` return at once; their callback runs on a thread of the backend.

    Offsets and lengths lie within the image: librbd silently drops what goes past its end. Whatever changes an image
    that is open read-only is ``Busy``; whatever a fenced client does is ``Fenced``.
    """

    image_id: str
    layout: Layout

    def size(self) -> int:
        """Of the head, or of the snapshot it is open at."""

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Those of the user namespace, oldest first."""

    def changed(self, since: str | None, offset: int, length: int, *, whole_object: bool) -> list[Span]:
        """A superset of what changed between snapshot ``since`` (None: since the image was empty) and what is open.

        Within the range, which begins inside the image. ``NotFound`` without that snapshot; it must be the older one.
        Ascending. ``whole_object`` rounds to objects and is cheap; it may miss what a shrink and a later grow took
        away.
        """

    def written_after(self, snapshot: str, objects: list[int], skew: float) -> list[int]:
        """Which of these numbered objects, as the snapshot shows them, were last written to after it was made, or up to
        ``skew`` seconds before: it is told by two clocks. Only with a plain layout. ``NotFound`` without that snapshot.
        """

    def own_data(self) -> bool:
        """Whether a clone holds an object of its own."""

    def ancestor(self) -> Ancestor | None:
        """The parent snapshot of a clone, None for an image without one."""

    def read(self, offset: int, length: int) -> bytes: ...
    def submit_read(self, offset: int, length: int, done: ReadDone) -> None: ...
    def submit_write(self, offset: int, data: bytes, done: WriteDone) -> None: ...
    def submit_zero(self, offset: int, length: int, done: WriteDone) -> None:
        """Zeroes that take no space."""

    def flush(self) -> None: ...
    def resize(self, size: int) -> None: ...
    def create_snapshot(self, name: str) -> Snapshot:
        """Raises ``Exists`` when the name is there."""

    def remove_snapshot(self, name: str) -> None:
        """Raises ``NotFound``. Clones over it stay: RBD keeps it for them, under a name nobody knows."""

    def protected(self, name: str) -> bool:
        """Whether somebody protected this snapshot, RBD's word for 'must stay'; ``NotFound`` without it."""

    def metadata(self) -> dict[str, str]: ...
    def set_metadata(self, key: str, value: str) -> None: ...
    def remove_metadata(self, key: str) -> None: ...
    def fast_diff(self) -> bool:
        """Whether ``changed(whole_object=True)`` reads maps only."""

    def watchers(self) -> list[str]:
        """Addresses of the other clients that have the image open for writing."""

    def lock_owner(self) -> str | None:
        """Address of the client that holds RBD's exclusive lock; on an image open read-only, as of its opening."""

    def break_lock(self, owner: str) -> None:
        """Fences ``owner`` (its client can write no more) and frees the lock; ``Busy`` when it is not ``owner``'s."""

    def set_journaling(self, on: bool) -> None:
        """RBD's journaling feature; nothing when it is so already. Off throws the journal and its clients away.

        ``Unsupported`` for an image without exclusive lock, which journaling needs: others may rely on its absence.
        """

    def checksums(self, extents: Sequence[Pair]) -> list[int | None]:
        """Computed by the OSDs: xxhash64 of what each extent, which lies in one object, holds as of the open snapshot;
        None where there is no object.

        Only with a plain layout. What is beyond the end of an object counts for nothing, and zeroes there may or may
        not be part of it: unequal is no proof.
        """

    def close(self) -> None: ...


class Journal(Protocol):
    """An image's journal, read and committed by a registered client; only librbd's lock owner appends and trims."""

    image_id: str
    splay_width: int
    """Objects that are written at a time; entry n of a tag lies in slot n % splay_width."""
    object_bytes: int

    def header(self, client_id: str) -> Header:
        """In one round trip. What was written under a tag that is over is in place before this returns."""

    def clients(self) -> tuple[Client, ...]: ...
    def tags(self, client_id: str, after: int | None = None) -> tuple[Tag, ...]:
        """Those ``client_id`` may still need; from the one behind ``after`` on. ``NotFound`` for an unknown client."""

    def register(self, client_id: str) -> None:
        """``Exists`` when it is. It begins where the client that is furthest behind stands."""

    def unregister(self, client_id: str) -> None:
        """``NotFound`` when it is not registered."""

    def commit(self, client_id: str, positions: Iterable[Commit]) -> None:
        """Nothing up to these is needed again; whoever writes is told, and trims. Ceph does not check them."""

    def submit_read(self, number: int, offset: int, length: int, done: ReadDone) -> None:
        """Of a numbered object: fewer bytes at its end, ``NotFound`` where there is none."""

    def object_size(self, number: int) -> int | None: ...
    def close(self) -> None: ...


class Watch(Protocol):
    """Somebody waiting for notifications of one object."""

    def alive(self) -> bool:
        """False when notifications were, or may have been, missed: look, and watch anew."""

    def close(self) -> None: ...


class Pool(Protocol):
    """One pool and namespace: its images, and small documents beside them."""

    site: str
    fsid: str
    name: str
    namespace: str

    @property
    def cluster(self) -> "Cluster":
        """The client's connection that the pool is seen through."""

    def images(self) -> list[ImageEntry]: ...
    def image_id(self, name: str) -> str | None: ...
    def create_image(self, name: str, size: int, layout: Layout, data_pool: str | None) -> str:
        """The new image's id; ``Exists`` when the name is taken."""

    def open(self, image_id: str, snapshot: str | None = None, *, read_only: bool = True) -> Image:
        """By id, never by name: a name may be another image tomorrow. ``NotFound`` when it is gone."""

    def clone(self, image_id: str, snapshot: str, into: "Pool", name: str) -> str:
        """A copy-on-write child of the snapshot, with its metadata; its id. ``Unsupported`` of one of 0 bytes."""

    def clear_half_made(self, name: str) -> str | None:
        """Removes what is left of an image of this name that has no header, as its maker or remover leaves it who dies
        in the middle; its id. Nothing (None) when a header is there, or nothing of that name.

        An image that is being made looks the same for a moment. So only for a name that nobody but us makes images of,
        and under the claim under which that is done.
        """

    def rename(self, name: str, new: str) -> None: ...
    def trash(self, image_id: str, name: str, expiry_seconds: float) -> None:
        """Moves the image to the RBD trash, in use or not. ``NotFound`` when no such image has that name."""

    def restore(self, image_id: str, name: str) -> None:
        """Out of the trash again. ``NotFound`` when it is not there, ``Exists`` when the name is taken."""

    def purge(self, image_id: str) -> None:
        """Removes an image of ours from the trash; nothing when it is not there.

        ``NotEmpty`` when it has snapshots, ``Busy`` when somebody has it open for writing.
        """

    def trashed(self) -> list[ImageEntry]: ...

    # documents: text with a revision that rises by one at every write
    def read_document(self, name: str) -> tuple[int, str] | None: ...
    def create_document(self, name: str, text: str) -> None:
        """``Exists`` when the object is there."""

    def swap_document(self, name: str, revision: int, text: str, claim: str | None = None) -> None:
        """Compare-and-swap in one operation.

        ``NotFound`` when it is gone (it is never made anew), ``Fenced`` when this client does not hold ``claim`` (a
        cookie), ``Changed`` when the revision moved.
        """

    def remove_document(self, name: str, revision: int) -> None:
        """With the claim on it. ``NotFound`` and ``Changed`` as above."""

    # objects: some MiB each, written whole and never changed
    def write_object(self, name: str, data: bytes) -> None:
        """In one operation, over what was there. At most some MiB: OSDs refuse more."""

    def read_object(self, name: str) -> bytes:
        """All of it. ``NotFound`` when it is gone."""

    def remove_object(self, name: str) -> None:
        """Nothing when it is gone."""

    # the directory: names -> text, one object a pool and namespace
    def entries(self) -> dict[str, str]: ...
    def add_entry(self, key: str, value: str) -> None:
        """``Exists`` when the key is there with another value; nothing when it is there with this one."""

    def remove_entry(self, key: str) -> None: ...

    # claims: a lock with an expiry on a document; one for each purpose
    def claim(self, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        """Takes or renews; ``Busy`` when another cookie or client holds it, ``NotFound`` without the document."""

    def renew_claim(self, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        """Renews only: ``NotFound`` when it ran out, for it may have been another's meanwhile; ``Busy`` when it is."""

    def unclaim(self, name: str, cookie: str, purpose: str = WORK) -> None:
        """Nothing when this client does not hold it."""

    def claimed(self, name: str, purpose: str = WORK) -> ClaimInfo | None: ...
    def break_claim(self, name: str, info: ClaimInfo, purpose: str = WORK) -> None:
        """Takes it from this very holder; nothing when that is gone."""

    # managers: a list of who is there, of which entries vanish that are not renewed
    def enlist(self, cookie: str, text: str, seconds: float) -> None:
        """Enters or renews, with what to tell the others. ``Denied`` for a key that may only read."""

    def enlisted(self) -> list[ClaimInfo]:
        """Everybody's entries; ``owner`` is the text."""

    def delist(self, cookie: str) -> None: ...

    # waking others
    def watch(self, name: str, told: Callable[[], None]) -> Watch:
        """Calls ``told``, on a thread of the backend, whenever the object is notified. ``NotFound`` without it."""

    def notify(self, name: str) -> None:
        """Wakes whoever watches; returns at once, tells of no failure: polling is the truth."""

    def remind(self, image_id: str, *, wait: bool) -> None:
        """Has whoever has the image open look at its header before the next write: librbd may have overlooked a
        snapshot that was made while it opened the image (``engine.delta``). Tells of no failure; ``wait``: returns when
        all have heard, or have not answered in time."""

    def journal(self, image_id: str) -> Journal:
        """``NotFound`` for an image without one."""

    def full(self, image_id: str = "") -> str | None:
        """Why nothing can be written for want of space, in words; None when there is space.

        To the pool, or to the data pool of this image of it."""


class Cluster(Protocol):
    """A connected site."""

    site: str
    fsid: str

    def pool(self, name: str, namespace: str = "") -> Pool:
        """``NotFound`` for an unknown pool or namespace."""

    def places(self) -> tuple[list[tuple[str, str]], list[errors.Error]]:
        """(pool, namespace) pairs in which to look for trees; and, of pools that do not answer, why. Raises when
        none does."""

    def address(self) -> str:
        """Of this client, as lock owners and blocklists write it."""

    def fence(self, address: str) -> None:
        """Blocklists a client, and waits until this client's view of the cluster knows it.

        From then on nothing of that client's lands on an object after something of ours.
        """

    def close(self) -> None: ...


NO_CLONE = "RBD makes no clone of 0 bytes", "Give the volume a size, then cut again."
"""A parent without overlap counts as none there (EINVAL)."""


class Sites(Protocol):
    """All configured sites, connected when first asked for."""

    def names(self) -> list[str]: ...
    def cluster(self, site: str) -> Cluster:
        """``NotFound`` for an unknown site, ``Unreachable`` when it does not answer in time."""

    def renew(self, site: str) -> None:
        """Connects anew when next asked for: a client that was fenced is of no more use, and has a new name then.

        What was opened before stays open, for those who still hold it."""

    def end_retired(self) -> None:
        """Ends connections that were replaced so long ago that nobody can be waiting for an answer of theirs."""


class Reporter(Protocol):
    """Told what goes on; never decides anything. Called from several threads."""

    def step(self, node: str, text: str) -> None:
        """A step of a plan begins at this node."""

    def copying(self, node: str, done_bytes: int, total_bytes: int | None) -> None:
        """Bytes of the volume read through and written; the total is None until it is known."""

    def note(self, node: str, text: str) -> None:
        """Something a person should read, such as what is being waited for."""

    def finished(self, node: str, text: str) -> None:
        """The node is done, in a sentence."""


class Silent:
    """A reporter for those who do not listen."""

    def step(self, node: str, text: str) -> None:
        return

    def copying(self, node: str, done_bytes: int, total_bytes: int | None) -> None:
        return

    def note(self, node: str, text: str) -> None:
        return

    def finished(self, node: str, text: str) -> None:
        return
