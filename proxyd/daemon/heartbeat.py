"""The event loop's pulse: how late it comes is measured, a thread notices when it stops, and the supervisor's watchdog lives on it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from itertools import islice
from traceback import walk_stack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from proxyd.clock import Clock
    from proxyd.daemon.systemd import Notifier
    from proxyd.metrics import Metrics

INTERVAL = 0.1
"""Seconds between two beats, and between two looks at them."""
STALL = 0.25
"""Seconds that a beat may be late before the loop counts as stalled: a stream's reader notices from there on."""
FRAMES = 12
"""Of the stack that is logged, the innermost."""

log = logging.getLogger(__name__)


class Heartbeat:
    """`watch` in a thread of its own looks whether `beat`, which runs on the loop, still does. Made on the loop; `close` when done."""

    def __init__(self, clock: Clock, metrics: Metrics, notifier: Notifier, feed: float | None) -> None:
        self._clock = clock
        self._metrics = metrics
        self._notifier = notifier
        self._feed = feed
        self._last = clock.monotonic()
        self._loop_thread = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="proxyd-heartbeat", daemon=True)
        self._thread.start()

    async def beat(self) -> None:
        """Beat for ever; every `feed` seconds the supervisor hears of it. A loop that stands still feeds nobody."""
        fed = self._clock.monotonic() - (self._feed or 0.0)
        while True:
            now = self._last = self._clock.monotonic()
            if self._feed is not None and now - fed >= self._feed - INTERVAL:
                fed = now
                self._notifier.watchdog()
            await asyncio.sleep(INTERVAL)
            late = self._clock.monotonic() - now - INTERVAL
            self._metrics.loop_lag(max(0.0, late))
            if late > STALL:
                self._metrics.loop_stalled()
                log.warning("the event loop stood still for %d ms", late * 1000)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        """Name what holds the loop while it is held: afterwards nobody can tell. One line a stall."""
        told = 0.0
        while not self._over.wait(INTERVAL):
            last = self._last
            if self._clock.monotonic() - last > INTERVAL + STALL and told != last:
                told = last
                frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, and the only way to another thread's stack
                log.warning("the event loop is held up by: %s", _stack(frame) if frame is not None else "unknown")


def _stack(frame: FrameType) -> str:
    """Tell a stack on one line, outermost first; no source lines, no values."""
    frames = [
        f"{'/'.join(each.f_code.co_filename.rsplit('/', 2)[-2:])}:{line} {each.f_code.co_name}"
        for each, line in islice(walk_stack(frame), FRAMES)
    ]
    return " > ".join(reversed(frames))
