"""One RBD volume on many hosts: a tree of mirrors and clones, kept equal by deltas."""

__version__ = "0.1.0"
