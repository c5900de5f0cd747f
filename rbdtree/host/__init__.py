"""What a host does with a tree: block devices, mounts, freezes, caches."""
