"""Names of models with a `*` at the end: what stands before it begins every name that is meant."""

from __future__ import annotations


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern (or a plain name) means a name. Two patterns meet if one covers what the other may."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
