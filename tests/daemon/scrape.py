"""A scrape of `/metrics`, read."""

from __future__ import annotations

import re


def series(text: str, name: str) -> dict[str, float]:
    """Labels, as written, to value."""
    return {found[1] or "": float(found[2]) for found in re.finditer(rf"^{name}(?:{{([^}}]*)}})? (\S+)$", text, re.MULTILINE)}
