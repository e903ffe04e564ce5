"""The only reader of time. Everything else is handed a Clock, and tests hold its hands."""

from __future__ import annotations

import time


class Clock:
    """Wall time for what is stored, monotonic time for what is measured."""

    __slots__ = ()

    def now_us(self) -> int:
        """Wall time, microseconds since the Unix epoch. May jump; never subtract two of these."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; the same clock as asyncio's event loop."""
        return time.monotonic()
