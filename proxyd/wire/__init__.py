"""Bytes and their meaning. Pure: no clock, no I/O, no async."""
