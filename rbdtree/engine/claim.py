"""The right to work on a node: a RADOS lock with an expiry, renewed while its holder lives.

Writes of the document assert the lock in the same operation, so a holder that lost it changes nothing. A holder that
died on this machine is recognised by its process id and start, and its client is fenced, so that nobody waits for
what it still holds (locks and watches outlive their client by 30 s). Any other is waited for until its claim expires;
one that renews is alive, and the newcomer gives way.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from rbdtree import errors
from rbdtree.engine.node import Node
from rbdtree.ports import ClaimInfo, Image

SECONDS = 20.0
"""How long a claim lasts unrenewed. A claim of a dead host is waited out for this long."""
_RENEW = SECONDS / 4
_POLL = 0.1


def _started(pid: int) -> str | None:
    """Clock tick at which a process started, so that a reused pid is not taken for it; empty when it is gone, None
    where /proc does not show the processes of others (``hidepid``)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie waits for its parent, not for us.
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return f"{boot}/{namespace}"


def worker_name() -> str:
    """``host:pid`` of this process, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


def identity(purpose: str, client: str) -> str:
    """This process, so that others can tell whether it lives; ``client``: its RADOS address."""
    pid = os.getpid()
    return json.dumps(
        {
            "client": client,
            "worker": worker_name(),
            "machine": _machine(),
            "pid": pid,
            "started": _started(pid),
            "doing": purpose,
        }
    )


def is_dead(identity: str) -> bool:
    """Whether that was a process of this very machine and is gone."""
    try:
        owner = json.loads(identity)
        here = bool(owner["machine"]) and owner["machine"] == _machine()
        return here and _started(int(owner["pid"])) not in (None, owner["started"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return False


def _client(info: ClaimInfo) -> str:
    """RADOS address of the holder, empty when it does not say."""
    try:
        return str(json.loads(info.owner)["client"])
    except (ValueError, KeyError, TypeError):
        return ""


def describe(info: ClaimInfo) -> str:
    """Who it is, for people."""
    try:
        owner = json.loads(info.owner)
        return f"{owner['worker']} ({owner['doing']})"
    except (ValueError, KeyError, TypeError):
        return info.owner or "an unknown client"


class Claim:
    """A held claim on a node. A context manager; a thread renews it.

    ``leave``: when set, the work is to be another's: nothing more is written, and nothing is renewed."""

    def __init__(self, node: Node, purpose: str, wait: bool = False, leave: threading.Event | None = None) -> None:
        self.node = node
        self.cookie = uuid.uuid4().hex
        self._owner = identity(purpose, node.pool.cluster.address())
        self._wait = wait
        self._leave = leave or threading.Event()
        self._done = threading.Event()
        self._lost = False
        self._asked = 0.0
        self._until = 0.0
        self._predecessor = ""
        self._keeper = threading.Thread(target=self._keep, name=f"claim-{node.name}", daemon=True)

    def __enter__(self) -> "Claim":
        self._acquire()
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._keeper.join()
        # Also one that is lost, as when its holder was to leave: nobody need wait for it to expire.
        with suppress(errors.Error):
            self.node.pool.unclaim(self.node.object, self.cookie)

    def check(self) -> None:
        """Raises ``Fenced`` when the claim may be somebody else's by now."""
        if self._lost or self._leave.is_set() or time.monotonic() > self._until:
            raise errors.Fenced(f"the claim on {self.node.name} was lost", "Run the command again.")

    def cluster_time(self) -> float:
        """Seconds since 1970 by the clock of the OSD that keeps the claim. Off by some when a renewal is under way."""
        ours = self.node.pool.claimed(self.node.object)
        self._lost = self._lost or ours is None or ours.cookie != self.cookie
        self.check()
        assert ours
        return ours.expires - SECONDS + time.monotonic() - self._asked

    def free(self, image: Image) -> None:
        """Fences the holder before us if it still has the image open: it is frozen, or hangs, and RBD would wait 30 s
        for its lock and for its answers to notifications."""
        if self._predecessor and self._predecessor in (image.lock_owner(), *image.watchers()):
            self.node.pool.cluster.fence(self._predecessor)

    def _take(self, *, renew: bool = False) -> None:
        asked = time.monotonic()
        take = self.node.pool.renew_claim if renew else self.node.pool.claim
        take(self.node.object, self.cookie, self._owner, SECONDS)
        self._asked = asked
        # One renewal period short of the OSD's expiry: we stop before another may start.
        self._until = asked + SECONDS - _RENEW

    def _acquire(self) -> None:
        seen: ClaimInfo | None = None
        last: ClaimInfo | None = None
        patience = time.monotonic() + 3 * SECONDS
        while True:
            try:
                self._take()
                self._predecessor = self._expired(last)
                return
            except errors.Busy:
                info = self.node.pool.claimed(self.node.object)
            if info is None:
                continue
            if is_dead(info.owner):
                self._bury(info)
                continue
            last = info
            renewed = seen is not None and (seen.cookie, seen.expires) != (info.cookie, info.expires)
            if time.monotonic() > patience or (renewed and not self._wait):
                raise errors.Busy(
                    f"{describe(info)} is at work on {self.node.name}",
                    "Let it finish, or stop it, then run this again.",
                )
            seen = seen or info
            time.sleep(_POLL)

    def _expired(self, last: ClaimInfo | None) -> str:
        """Address of the holder before us, whom we saw last as ``last``, when its claim ran out; empty when it gave it
        back: it lives, and may have the image open for other reasons."""
        if last is None:
            return ""
        try:
            ours = self.node.pool.claimed(self.node.object)
        except errors.Error:
            return ""
        taken = ours.expires - SECONDS if ours and ours.cookie == self.cookie else 0.0
        return _client(last) if last.expires <= taken else ""

    def _bury(self, info: ClaimInfo) -> None:
        client = _client(info)
        if client:
            with suppress(errors.Error):
                # Without it the claim is ours all the same, only RBD makes us wait.
                self.node.pool.cluster.fence(client)
        self.node.pool.break_claim(self.node.object, info)

    def _keep(self) -> None:
        while not self._done.wait(_RENEW):
            if self._leave.is_set():
                self._lost = True
                return
            try:
                # Never taken anew: while we slept through its end, another may have come and gone.
                self._take(renew=True)
            except (errors.Busy, errors.NotFound, errors.Fenced):
                self._lost = True
                return
            except errors.Error:
                # The cluster is slow: check() stops the work before the claim runs out.
                continue
