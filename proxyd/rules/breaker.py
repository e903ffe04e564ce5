"""The breaker of an upstream: leaves one in trouble alone for a while, then asks with a single request if it is well.

                 enough failures in a row                      rest is over
    CLOSED ────────────────────────────────▶ OPEN ─────────────────────────────▶ HALF_OPEN
       ▲                                       ▲                                    │  │
       │                                       └──────── the probe failed ──────────┘  │
       └──────────────────────── the probe succeeded ──────────────────────────────────┘

Values only: the state holds no settings, so a reload changes the settings and leaves the state. It heals by itself: the
rest ends by the clock, and a probe that nobody reports on gives its place to the next.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxyd.errors import Blame

if TYPE_CHECKING:
    from proxyd.errors import ProxyError


class State(enum.StrEnum):
    """As metrics show it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Event(enum.StrEnum):
    """What can happen to a breaker."""

    ADMITTED = "admitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"
    """Ended without a word on the upstream's health: the client left, or the fault was ours."""


@dataclass(frozen=True, slots=True)
class Settings:
    """When to open, and for how long."""

    failures: int = 10
    """In a row, blamed on the upstream."""
    rest: float = 1.0
    """Seconds of the first rest; doubles with each probe that fails."""
    longest: float = 30.0
    """Seconds; a longer `Retry-After` is obeyed all the same."""
    patience: float = 60.0
    """Seconds that a probe may take before another one is let through beside it."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of one upstream."""

    state: State = State.CLOSED
    failures: int = 0
    """In a row, while closed."""
    trips: int = 0
    """Rests in a row, while not closed."""
    until: float = 0.0
    """Monotonic seconds: the end of the rest; while half-open, when the next probe may pass."""
    epoch: int = 0
    """Counts the changes of state: a result of an earlier epoch comes too late to mean anything."""


@dataclass(frozen=True, slots=True)
class Report:
    """How an admitted call ended, and when."""

    event: Event
    now: float
    ticket: int
    """The `epoch` of the breaker that `admit` returned."""
    retry_after: float = 0.0
    """Seconds that the upstream asked for; a floor of the rest."""


_CANNOT = frozenset({501, 505})
"""What an upstream does not do at all (llama.cpp: embeddings, by a model of chat): another one may, and this one is well."""


def event_of(error: ProxyError | None) -> Event:
    """Judge how a call ended, for its upstream: None is a success, and so is every answer that blames the client."""
    if error is None or error.code == "upstream_refused" or (error.code == "upstream_error" and error.status in _CANNOT):
        return Event.SUCCEEDED
    # A 429 is about one account's or one model's share, and its Retry-After is obeyed by `retry`: the upstream itself is well.
    if error.status == 429:
        return Event.ABANDONED
    # A dead pooled connection says that the upstream has closed it, as it may; the fresh one will tell.
    if error.blame is Blame.UPSTREAM and error.code != "upstream_stale":
        return Event.FAILED
    return Event.ABANDONED


def ready_in(breaker: Breaker, now: float) -> float:
    """Seconds until a request may pass; 0 when it may now."""
    return 0.0 if breaker.state is State.CLOSED else max(0.0, breaker.until - now)


def admit(breaker: Breaker, settings: Settings, now: float) -> Breaker | None:
    """Let a call pass, or not (None). Keep the breaker that comes back; its `epoch` is the ticket for the report."""
    if ready_in(breaker, now) > 0:
        return None
    return _TABLE[breaker.state, Event.ADMITTED](breaker, settings, Report(Event.ADMITTED, now, breaker.epoch))


def report(breaker: Breaker, settings: Settings, result: Report) -> Breaker:
    """Take note of how an admitted call ended. Exactly one report for each admitted call."""
    if result.ticket != breaker.epoch:
        return breaker
    return _TABLE[breaker.state, result.event](breaker, settings, result)


def trip(breaker: Breaker, settings: Settings, now: float) -> Breaker:
    """Open a closed breaker on other evidence than its calls; one that is not closed stays as it is."""
    if breaker.state is not State.CLOSED:
        return breaker
    return _open(breaker, settings, Report(Event.FAILED, now, breaker.epoch))


def _same(breaker: Breaker, _settings: Settings, _result: Report) -> Breaker:
    return breaker


def _probe(breaker: Breaker, settings: Settings, result: Report) -> Breaker:
    return replace(breaker, state=State.HALF_OPEN, until=result.now + settings.patience, epoch=breaker.epoch + 1)


def _another(breaker: Breaker, settings: Settings, result: Report) -> Breaker:
    """Probe beside a probe that takes long (a model that is being loaded): whichever ends first decides."""
    return replace(breaker, until=result.now + settings.patience)


def _calm(breaker: Breaker, _settings: Settings, _result: Report) -> Breaker:
    return breaker if breaker.failures == 0 else replace(breaker, failures=0)


def _count(breaker: Breaker, settings: Settings, result: Report) -> Breaker:
    counted = replace(breaker, failures=breaker.failures + 1)
    return _open(counted, settings, result) if counted.failures >= settings.failures else counted


def _open(breaker: Breaker, settings: Settings, result: Report) -> Breaker:
    rest = min(settings.longest, settings.rest * 2.0 ** min(breaker.trips, 16))
    until = result.now + max(rest, result.retry_after)
    return Breaker(State.OPEN, trips=breaker.trips + 1, until=until, epoch=breaker.epoch + 1)


def _close(breaker: Breaker, _settings: Settings, _result: Report) -> Breaker:
    return Breaker(epoch=breaker.epoch + 1)


def _again(breaker: Breaker, _settings: Settings, result: Report) -> Breaker:
    """Let the next request be the probe: this one has told nothing."""
    return replace(breaker, until=result.now)


_TABLE = {
    (State.CLOSED, Event.ADMITTED): _same,
    (State.CLOSED, Event.SUCCEEDED): _calm,
    (State.CLOSED, Event.FAILED): _count,
    (State.CLOSED, Event.ABANDONED): _same,
    (State.OPEN, Event.ADMITTED): _probe,
    (State.OPEN, Event.SUCCEEDED): _same,
    (State.OPEN, Event.FAILED): _same,
    (State.OPEN, Event.ABANDONED): _same,
    (State.HALF_OPEN, Event.ADMITTED): _another,
    (State.HALF_OPEN, Event.SUCCEEDED): _close,
    (State.HALF_OPEN, Event.FAILED): _open,
    (State.HALF_OPEN, Event.ABANDONED): _again,
}
