"""Sums since the start, and what runs now: what a live view is drawn from. Rates are the viewer's: two readings, and the time between."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from proxyd.model import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.flow.exchange import Exchange
    from proxyd.model import Ending, Usage

SHOWN = 200
"""Running exchanges that are told of, the oldest first."""
_NAME = 120
"""Characters of a name that a client wrote."""


class Tally:
    """Counts finished exchanges. Its keys are names of the configuration only, so it does not grow."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def count(self, ending: Ending) -> None:
        """Add a finished exchange."""
        failed = ending.state in {State.FAILED, State.INTERRUPTED}
        self._sums["requests"] += 1
        self._sums["failed"] += failed
        self.spend(ending.usage)
        if ending.upstream is not None:
            self._requests[ending.upstream] += 1
            self._failed[ending.upstream] += failed

    def spend(self, usage: Usage) -> None:
        """Add what an upstream call has used up, whether its exchange went on or not."""
        self._sums["prompt_tokens"] += usage.prompt_tokens or 0
        self._sums["completion_tokens"] += usage.completion_tokens or 0

    def sums(self, running: Iterable[Exchange]) -> dict[str, int]:
        """Requests, failed ones and tokens since the start. An event of a running stream stands for a token until it is settled."""
        names = ("requests", "failed", "prompt_tokens", "completion_tokens")
        found = {name: self._sums[name] for name in names}
        found["completion_tokens"] += sum(_events(ex) for ex in running)
        return found

    def upstream(self, name: str) -> dict[str, int]:
        """Exchanges that one upstream has had, and those of them that failed."""
        return {"requests": self._requests[name], "failed": self._failed[name]}


def running(exchanges: Iterable[Exchange], now: float) -> list[dict[str, object]]:
    """Tell of the exchanges that run, the oldest first, at most SHOWN. `now` in monotonic seconds. No prompt, no key."""
    oldest = sorted(exchanges, key=lambda ex: ex.began)[:SHOWN]
    return [
        {
            "request_id": ex.request_id,
            "caller": ex.caller.name if ex.caller is not None else None,
            "model": ex.ask.model[:_NAME] if ex.ask is not None else None,
            "upstream": ex.row.upstream if ex.row is not None else None,
            "attempt": ex.attempt,
            "streamed": ex.ask.stream if ex.ask is not None else False,
            "begun": ex.answer is not None and ex.answer.first_at is not None,
            "seconds": round(now - ex.began, 3),
            "events": _events(ex),
            "client": not ex.client_left,
        }
        for ex in oldest
    ]


def _events(ex: Exchange) -> int:
    meter = ex.answer.meter if ex.answer is not None and not ex.settled else None
    return meter.events if meter is not None else 0
