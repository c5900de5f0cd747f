"""One-node Ceph clusters for development and tests: booted in seconds, many at a time, each in a directory.

    commands   the command lines               fleet     all clusters of one directory, rbdtree.toml
    captive    run a command with clusters     cluster   one cluster's directory, marker, lock, daemons
    boot       make or start a cluster         daemon    one mon, osd or mgr process
    cephconf   what ceph.conf says             monitor   questions to the running monitor
    address    a free address and ports        processes who is running, seen through /proc
    release    what differs between releases   packages  what must be installed
    host       test hosts: kernels with nbd and krbd, on a network of their own; guest/ is what runs in them

The scripts beside this package hold one call each.
"""


class Failure(Exception):
    """One sentence for the person at the keyboard: what was seen and what to run next."""
