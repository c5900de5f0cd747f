"""The service that keeps trees in sync: which edges are whose, when each is due, and what came of it."""
