"""Effects: observe a tree, copy deltas, carry out steps. Knows the ports, not Ceph."""
