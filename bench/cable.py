#!/usr/bin/env python3
"""A cable with a delay between two network namespaces: two taps, and two processes that hold every frame for a while.

    cable.py NETNS_A NETNS_B DEVICE MILLISECONDS [MTU]

Kernels without netem can have a long link this way. The taps leave TCP's segmentation to the other end, as a virtual
machine's card does: a frame here may be up to 64 KiB of segments of one MTU, so few system calls move many bytes. Says
"up" when the devices are there; addresses and routes are the caller's. Ends when its standard input does.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
FRAME = (64 << 10) + 256
BATCH = 64


def enter(netns: str) -> None:
    """Moves the calling thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(handle, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {netns}")
    finally:
        os.close(handle)


def tap(netns: str, device: str, mtu: int) -> int:
    """A new tap in the namespace, up, with room for many frames; this thread stays there."""
    enter(netns)
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(handle, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    subprocess.run(["ip", "link", "set", device, "txqueuelen", "20000", "mtu", str(mtu), "up"], check=True)
    return handle


def carry(source: int, target: int, seconds: float) -> None:
    """Frames from one tap to the other, each ``seconds`` after it came; for ever."""
    waiting: deque[tuple[float, bytes]] = deque()
    now, read, write = time.monotonic, os.read, os.write
    while True:
        pause = max(0.0, waiting[0][0] - now()) if waiting else None
        if select.select((source,), (), (), pause)[0]:
            due = now() + seconds
            try:
                for _ in range(BATCH):
                    waiting.append((due, read(source, FRAME)))
            except BlockingIOError:
                pass
        moment = now()
        while waiting and waiting[0][0] <= moment:
            try:
                write(target, waiting.popleft()[1])
            except OSError:
                # A full queue or a device that is down drops the frame, as a cable would.
                continue


def main() -> None:
    if len(sys.argv) not in (5, 6):
        raise SystemExit(__doc__)
    netns_a, netns_b, device = sys.argv[1:4]
    seconds = float(sys.argv[4]) / 1000
    mtu = int(sys.argv[5]) if len(sys.argv) == 6 else 1500
    a, b = tap(netns_a, device, mtu), tap(netns_b, device, mtu)
    print("up", flush=True)
    other = os.fork()
    if other == 0:
        # This one carries the way back, and ends with its parent.
        ctypes.CDLL(None).prctl(1, 9)
        carry(b, a, seconds)
    forward = os.fork()
    if forward == 0:
        ctypes.CDLL(None).prctl(1, 9)
        carry(a, b, seconds)
    sys.stdin.read()


if __name__ == "__main__":
    main()
