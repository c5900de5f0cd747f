"""The ``rbdtree`` command."""
