"""What is known of one upstream: its breaker, its retry budget, how busy and how fast it is. State only; `rules` decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.rules import breaker, retry
from proxyd.rules.routes import Facts

if TYPE_CHECKING:
    from proxyd.errors import ProxyError

SMOOTHING = 0.2
"""Weight of the newest time to the first byte in the running mean."""
SETTINGS = breaker.Settings()
PROBES = 2
"""Probes that must fail in a row to open a closed breaker: one may be an accident."""


class Health:
    """One upstream's. A call is `begin`, perhaps `spoke`, and exactly one `ended`."""

    __slots__ = ("_breaker", "_budget", "_busy", "_failed", "_latency", "probe", "refuses_usage")

    def __init__(self) -> None:
        self._breaker = breaker.Breaker()
        self._budget = retry.Budget()
        self._busy = 0
        self._latency: float | None = None
        self._failed = 0
        self.probe: str | None = None
        """What the last active probe said: `ok`, or what was wrong. None where there was none."""
        self.refuses_usage = False
        """It has refused the `stream_options` that proxyd had added: its streams are not asked for their usage any more."""

    def facts(self, now: float) -> Facts:
        """As the rules want to know it."""
        return Facts(self._busy, self._latency, breaker.ready_in(self._breaker, now), retry.may_retry(self._budget, now))

    def ready(self, now: float) -> bool:
        """Whether its breaker lets a call pass."""
        return breaker.ready_in(self._breaker, now) <= 0

    def answers(self, now: float) -> bool:
        """Whether calls can be expected to come through: its breaker lets one pass, and no probe has said since it opened that none would.

        Without probes the end of the rest counts as well: only a call can tell then.
        """
        closed = self._breaker.state is breaker.State.CLOSED
        return closed or (self.ready(now) and self.probe in {None, "ok"})

    def begin(self, now: float, *, spends: bool) -> int | None:
        """Begin a call; returns the ticket for its end, or None if the breaker lets nothing through now."""
        admitted = breaker.admit(self._breaker, SETTINGS, now)
        if admitted is None:
            return None
        self._breaker = admitted
        self._budget = retry.withdraw(self._budget, now) if spends else retry.deposit(self._budget, now)
        self._busy += 1
        return admitted.epoch

    def spoke(self, ticket: int, now: float, seconds: float) -> None:
        """The first word came after so many seconds. A probe has told enough with that: long streams must not keep it open."""
        self._latency = seconds if self._latency is None else self._latency + SMOOTHING * (seconds - self._latency)
        if self._breaker.state is breaker.State.HALF_OPEN:
            self._report(breaker.Event.SUCCEEDED, ticket, now, 0.0)

    def ended(self, ticket: int, now: float, error: ProxyError | None, *, abandoned: bool = False) -> None:
        """The call is over; `abandoned` if its end says nothing of the upstream."""
        self._busy -= 1
        event = breaker.Event.ABANDONED if abandoned else breaker.event_of(error)
        self._report(event, ticket, now, (error.retry_after or 0.0) if error is not None else 0.0)

    def begin_probe(self, now: float) -> int | None:
        """Begin an active probe; returns the ticket for `probed`, or None while the breaker wants the upstream left alone."""
        admitted = breaker.admit(self._breaker, SETTINGS, now)
        if admitted is None:
            return None
        self._breaker = admitted
        return admitted.epoch

    def probed(self, ticket: int, now: float, problem: str | None) -> None:
        """Take what a probe found: None if all is well.

        A good one closes a breaker that asks if it may; it does not make up for calls that failed, for a server may list its
        models and answer nothing.
        """
        self.probe = "ok" if problem is None else problem
        self._failed = 0 if problem is None else self._failed + 1
        if self._breaker.state is breaker.State.HALF_OPEN:
            self._report(breaker.Event.SUCCEEDED if problem is None else breaker.Event.FAILED, ticket, now, 0.0)
        elif self._failed >= PROBES:
            self._breaker = breaker.trip(self._breaker, SETTINGS, now)

    def describe(self, now: float) -> dict[str, object]:
        """As operators want to see it."""
        return {
            "state": self._breaker.state.value,
            "probe": self.probe,
            "busy": self._busy,
            "first_byte_seconds": None if self._latency is None else round(self._latency, 4),
            "ready_in_seconds": round(breaker.ready_in(self._breaker, now), 1),
        }

    def _report(self, event: breaker.Event, ticket: int, now: float, retry_after: float) -> None:
        self._breaker = breaker.report(self._breaker, SETTINGS, breaker.Report(event, now, ticket, retry_after))
