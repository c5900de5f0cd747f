"""systemd's readiness protocol (sd_notify(3)): one datagram to the socket that it names. Nothing elsewhere."""

import os
import socket


def tell(state: str) -> None:
    """``READY=1``, ``WATCHDOG=1``, ``RELOADING=1``, ``STOPPING=1``, ``STATUS=...``; lines may be combined."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect("\0" + path[1:] if path.startswith("@") else path)
            sender.send(state.encode())
        except OSError:
            # systemd will notice by itself that nobody speaks.
            return


def watchdog_seconds() -> float | None:
    """How often to say ``WATCHDOG=1``: twice in the time after which systemd gives us up; None where it does not."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 2e6 if wanted.isdecimal() and mine else None
