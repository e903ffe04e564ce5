"""The timer of a running answer: cuts off silence, keeps the client's side of a silent stream alive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.model import Format

if TYPE_CHECKING:
    from proxyd.flow.answer import Answer
    from proxyd.flow.broadcast import Broadcast
    from proxyd.flow.exchange import Exchange
    from proxyd.web.downstream import Downstream

PING = b": ping\n\n"
"""A comment and a blank line: nothing else is safe in every SDK (an event without data kills the Python one)."""


class Watch:
    """One timer an answer, set for the nearest deadline and set anew when it rings: traffic costs it nothing."""

    def __init__(self, ex: Exchange, answer: Answer, down: Downstream | Broadcast | None) -> None:
        assert ex.upstream is not None  # noqa: S101 - dispatch has run
        self._answer = answer
        self._down = down
        self._began = ex.began
        self._clock = answer.clock
        self._timeouts = ex.upstream.timeouts
        self._ping = ex.snapshot.config.streams.ping if answer.streams else None
        self._pinged_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch."""
        now = self._clock.monotonic()
        deadlines = [moment for moment, _ in self._deadlines(now)]
        if (ping := self._next_ping()) is not None:
            deadlines.append(ping)
        if deadlines:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(deadlines) - now), self._ring)

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _deadlines(self, now: float) -> list[tuple[float, str]]:
        """When to give up, and what to say then."""
        answer, limits, found = self._answer, self._timeouts, []
        if limits.total is not None:
            found.append((self._began + limits.total, f"The whole answer took longer than {limits.total:g} seconds."))
        if answer.paused_since is not None:
            pass  # the client is slow, not the upstream
        elif answer.first_at is None:
            if limits.first_byte is not None:
                found.append(
                    (answer.sent_at + limits.first_byte, f"The upstream did not begin its answer within {limits.first_byte:g} seconds.")
                )
        elif limits.between_bytes is not None:
            found.append((answer.last_at + limits.between_bytes, f"The upstream fell silent for {limits.between_bytes:g} seconds."))
        return found or [(now + 3600.0, "")]

    def _next_ping(self) -> float | None:
        """When the client's side of the stream has been silent for long enough."""
        meter = self._answer.meter
        if self._ping is None or self._down is None or meter is None or meter.format is not Format.SSE:
            return None
        return max(self._answer.last_at, self._pinged_at) + self._ping

    def _ring(self) -> None:
        now = self._clock.monotonic()
        for moment, message in self._deadlines(now):
            if message and moment <= now:
                self._timer = None
                self._answer.fail(ProxyError("upstream_timeout", message))
                return
        ping = self._next_ping()
        if ping is not None and ping <= now and self._down is not None and self._answer.meter is not None:
            if not self._answer.meter.mid_event and self._answer.paused_since is None:
                self._down.ping(PING)
            self._pinged_at = now
        self.start()
