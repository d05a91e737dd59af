"""Deliberate faults, each of which a test must find; see docs/testing.md."""
