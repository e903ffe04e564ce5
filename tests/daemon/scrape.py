"""A scrape of `/metrics`, read."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from tests.e2e.client import ask

if TYPE_CHECKING:
    from tests.process import Daemon


def series(text: str, name: str) -> dict[str, float]:
    """Labels, as written, to value."""
    return {found[1] or "": float(found[2]) for found in re.finditer(rf"^{name}(?:{{([^}}]*)}})? (\S+)$", text, re.MULTILINE)}


async def queued(daemon: Daemon, count: int) -> None:
    """Until so many wait for a place."""
    for _ in range(1000):
        text = (await ask(daemon.ops, "/metrics", method="GET")).body.decode()
        if series(text, "proxyd_queue_waiting")[""] == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {count} waited")
