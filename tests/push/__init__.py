"""Writes on their way up, on three real clusters; bytes are compared outside our code."""
