"""Values: frozen, without I/O, clock or randomness."""
