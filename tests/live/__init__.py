"""Scenarios on real clusters, through the command line; bytes are compared outside our code."""
