"""Decisions: pure functions from what was observed to steps, or to a conflict with its evidence."""
