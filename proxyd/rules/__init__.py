"""Decisions: (state, facts, now) in, verdict out. Pure: no clock, no chance, no I/O."""
