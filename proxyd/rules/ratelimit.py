"""How much a caller, a model, or one at the other may do: requests and tokens a minute, and how many at once.

A generic cell rate algorithm (ITU-T I.371): a debt that grows with each grant and decays at the allowed rate; a grant fits
while debt and cost stay within one minute's worth. All in integers, so that nothing is granted by rounding.

Law: tokens reserved for a running exchange do not decay, they are *held*; what it really used becomes debt when it is
settled. If a reservation decayed and the difference were given back at the end, idle time would be given back too, and
more than the limit would pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from proxyd.model import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Granted", "Level", "Limits", "Refused", "Standing", "request", "settle"]

MINUTE = 60 * 10**9
"""Nanoseconds; also the debt of one request or token, as `limit` units of debt decay in each nanosecond."""
LONGEST_WAIT = 60.0
"""Seconds told in Retry-After: Node's SDK ignores more, Python's gives up above 120 (both measured)."""
SLOT_WAIT = 1.0
"""Seconds told where a running exchange must end first: nobody knows when."""


class Level(NamedTuple):
    """What is used up under one scope. Holds no settings, so a reload changes the limits and keeps the levels."""

    requests: int = 0
    """Debt, in units of 1 / MINUTE of a request."""
    tokens: int = 0
    """Debt of settled tokens, in units of 1 / MINUTE of a token."""
    stamp: int = 0
    """When the debts were so, in nanoseconds of the monotonic clock."""
    held: int = 0
    """Tokens reserved by running exchanges."""
    running: int = 0
    """Exchanges."""


FRESH = Level()


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may pass: keep these levels, and later `settle` or `cancel` each scope with the same tokens."""

    levels: dict[str, Level]


@dataclass(frozen=True, slots=True)
class Refused:
    """The request may not pass now; no level has changed."""

    scope: str
    """The key of the limits that refused it."""
    reason: str
    """`requests`, `tokens` or `concurrency`."""
    retry_after: float | None
    """Seconds, at most LONGEST_WAIT; None: never, it alone is more than the limit."""


class Standing(NamedTuple):
    """One dimension of one scope, as its headers tell it."""

    limit: int
    remaining: int
    reset: int
    """Nanoseconds until all of it is there again, if nothing more is asked; what running exchanges hold left aside."""


def request(levels: Mapping[str, Level], limits: Mapping[str, Limits], tokens: int, now: float) -> Granted | Refused:
    """Decide on one request under all its scopes at once: either each grants it, or none is touched.

    `limits` has the scopes (`caller:laptop`, `model:fast`, …), `levels` what is known of them; `tokens` is the reservation:
    the prompt as counted and the largest answer. `now` is monotonic seconds.
    """
    after: dict[str, Level] = {}
    refusals = []
    for scope, allowed in limits.items():
        level = decayed(levels.get(scope, FRESH), allowed, now)
        for reason, wait in _refusals(level, allowed, tokens):
            refusals.append(Refused(scope, reason, wait))
        after[scope] = Level(level.requests + MINUTE, level.tokens, level.stamp, level.held + tokens, level.running + 1)
    if refusals:  # the longest wait, as the others are over by then; never is the longest of all
        return max(refusals, key=lambda refused: float("inf") if refused.retry_after is None else refused.retry_after)
    return Granted(after)


def more(levels: Mapping[str, Level], limits: Mapping[str, Limits], tokens: int, now: float) -> dict[str, Level] | None:
    """Hold more for an exchange that was granted; None where one of its scopes has no room for it."""
    after: dict[str, Level] = {}
    for scope, allowed in limits.items():
        level = decayed(levels.get(scope, FRESH), allowed, now)
        if allowed.tpm is not None and level.tokens + (level.held + tokens) * MINUTE > allowed.tpm * MINUTE:
            return None
        after[scope] = Level(level.requests, level.tokens, level.stamp, level.held + tokens, level.running)
    return after


def settle(level: Level, limits: Limits, reserved: int, used: int, now: float) -> Level:
    """End an exchange that was granted: what it held is free, and what it used is debt from now on.

    More than was reserved is debt too, and delays what comes next.
    """
    level = decayed(level, limits, now)
    tokens = level.tokens + used * MINUTE if limits.tpm is not None else 0
    return Level(level.requests, tokens, level.stamp, max(0, level.held - reserved), max(0, level.running - 1))


def cancel(level: Level, limits: Limits, reserved: int, granted_at: float, now: float) -> Level:
    """Take a grant back that came to nothing (refused elsewhere, replayed), as if it had not been.

    Of the request, what may have decayed since `granted_at` stays used up: it may have decayed for nobody else.
    """
    level = decayed(level, limits, now)
    decay = (limits.rpm or 0) * max(0, _ns(now) - _ns(granted_at))
    requests = max(0, level.requests - max(0, MINUTE - decay))
    return Level(requests, level.tokens, level.stamp, max(0, level.held - reserved), max(0, level.running - 1))


def decayed(level: Level, limits: Limits, now: float) -> Level:
    """Bring a level up to the present; a clock that stands still or goes back changes nothing."""
    stamp = _ns(now)
    passed = stamp - level.stamp
    if passed <= 0:
        return level
    requests = 0 if limits.rpm is None else max(0, level.requests - limits.rpm * passed)
    tokens = 0 if limits.tpm is None else max(0, level.tokens - limits.tpm * passed)
    return Level(requests, tokens, stamp, level.held, level.running)


def idle(level: Level, limits: Limits, now: float) -> bool:
    """Whether a level says no more than a fresh one does, and can be forgotten."""
    level = decayed(level, limits, now)
    return not (level.requests or level.tokens or level.held or level.running)


def standings(level: Level, limits: Limits, now: float) -> dict[str, Standing]:
    """Tell what is left: `requests` and `tokens`, each where it is limited."""
    level = decayed(level, limits, now)
    told = {}
    if limits.rpm is not None:
        told["requests"] = _standing(limits.rpm, level.requests, 0)
    if limits.tpm is not None:
        told["tokens"] = _standing(limits.tpm, level.tokens, level.held)
    return told


def headers(told: Mapping[str, Standing]) -> list[tuple[str, str]]:
    """Write standings as OpenAI does: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets as Go durations."""
    lines = []
    for dimension, standing in told.items():
        lines += [
            (f"x-ratelimit-limit-{dimension}", str(standing.limit)),
            (f"x-ratelimit-remaining-{dimension}", str(standing.remaining)),
            (f"x-ratelimit-reset-{dimension}", duration(standing.reset)),
        ]
    return lines


def tightest(several: list[dict[str, Standing]]) -> dict[str, Standing]:
    """Of several scopes, tell per dimension the one with least left: what the client can count on."""
    told: dict[str, Standing] = {}
    for standing in several:
        for dimension, one in standing.items():
            if dimension not in told or one.remaining < told[dimension].remaining:
                told[dimension] = one
    return told


def duration(nanoseconds: int) -> str:
    """Write a span as Go's time.Duration prints it, to the millisecond and rounded up: `12ms`, `1s`, `6m0s`, `1.5s`."""
    milliseconds = -(-nanoseconds // 10**6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    seconds, rest = divmod(milliseconds, 1000)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}{fraction}s"


def _refusals(level: Level, limits: Limits, tokens: int) -> list[tuple[str, float | None]]:
    refusals: list[tuple[str, float | None]] = []
    if limits.rpm is not None and level.requests + MINUTE > limits.rpm * MINUTE:
        refusals.append(("requests", _wait(level.requests + MINUTE, limits.rpm)))
    if limits.tpm is not None and level.tokens + (level.held + tokens) * MINUTE > limits.tpm * MINUTE:
        if tokens > limits.tpm:
            refusals.append(("tokens", None))
        elif level.held + tokens > limits.tpm:  # time alone does not help: something must settle
            refusals.append(("tokens", SLOT_WAIT))
        else:
            refusals.append(("tokens", _wait(level.tokens + (level.held + tokens) * MINUTE, limits.tpm)))
    if limits.concurrency is not None and level.running >= limits.concurrency:
        refusals.append(("concurrency", SLOT_WAIT))
    return refusals


def _wait(debt: int, limit: int) -> float | None:
    """Seconds until a debt has decayed to a minute's worth of the limit; None where the limit is nothing."""
    if limit <= 0:
        return None
    nanoseconds = -(-(debt - limit * MINUTE) // limit)
    return min(LONGEST_WAIT, nanoseconds / 10**9)


def _standing(limit: int, debt: int, held: int) -> Standing:
    remaining = max(0, (limit * MINUTE - debt) // MINUTE - held)
    return Standing(limit, remaining, -(-debt // limit) if limit > 0 else 0)


def _ns(seconds: float) -> int:
    return int(seconds * 10**9)
