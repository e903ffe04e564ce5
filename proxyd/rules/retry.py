"""What to do next, before a byte of the answer went out: try (whom, after which wait), or give up.

Decide, then act: nothing here waits or sends. Ask `next_step` before each upstream call, the first included, and tell it
what became of the earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.errors import Blame
from proxyd.rules.routes import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxyd.config.schema import Retry
    from proxyd.errors import ProxyError
    from proxyd.rules.routes import Facts, Target

BASE = 0.25
"""Seconds within which the first repetition at one upstream comes; doubles with each further one ("full jitter")."""
LONGEST_BACKOFF = 8.0
"""Seconds; the SDKs' own bound."""
LONGEST_WAIT = 10.0
"""Seconds that a client is kept waiting for a `Retry-After`; a longer one is told to it instead."""
SPREAD = 0.1
"""Share of a `Retry-After` by which it is lengthened at most, so that those told the same time do not come back as one."""

_CONNECT = frozenset({"upstream_connect", "upstream_connect_timeout", "upstream_dns", "upstream_tls"})
_STALE = "upstream_stale"
_DEAD = _CONNECT | {_STALE, "upstream_cut"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What an exchange may do, fixed when it is dispatched."""

    policy: Retry
    targets: tuple[Target, ...]
    """In the order of `routes.order`."""
    deadline: float | None = None
    """Monotonic seconds by which the next try must have begun; None for no such bound."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One upstream call that failed."""

    target: Target
    error: ProxyError
    """`retry` False and blame UPSTREAM (a used-up quota, a refused credential) mean: not this upstream again."""
    at: float
    """Monotonic seconds when it was known to have failed; its `Retry-After` counts from there."""


@dataclass(frozen=True, slots=True)
class Try:
    """Call this target after `wait` seconds."""

    target: Target
    wait: float = 0.0
    fresh: bool = False
    """On a new connection: pooled ones of this upstream have proved dead."""
    spends: bool = False
    """It repeats an upstream: take one from that upstream's retry budget (`withdraw`)."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the client. With no attempt made, every upstream of the route rests."""

    reason: str
    """For the log: `final` `attempts` `resting` `budget` `wait` `exhausted`; `allowance`: its caller's do not reach."""
    retry_after: float | None = None
    """Seconds after which it may be worth while again, where that is known."""


def next_step(plan: Plan, history: Sequence[Attempt], facts: Mapping[str, Facts], now: float, chance: float) -> Try | GiveUp:
    """Decide the next call. `chance` is in [0, 1); `facts` are of this moment, by upstream.

    An upstream not yet tried comes first, at once; only when there is none, one is tried again: after its `Retry-After`
    or a jittered backoff, out of its retry budget, inside the deadline. A pooled connection that was dead (no response
    byte came) is an accident of ours, not the upstream's answer: one more try, at once, beside the attempts of the policy.
    """
    if history:
        last = history[-1]
        if last.error.code == _STALE and _stale(history, last.target.upstream) == 1 and _in_time(plan, now, 0.0):
            return Try(last.target, fresh=True)
        if not _worth_it(plan.policy, last.error):
            return GiveUp("final", last.error.retry_after)
        if len(history) - _forgiven(history) >= plan.policy.attempts:
            return GiveUp("attempts", _advice(history, now))
    return _choose(plan, history, facts, now, chance)


def _choose(plan: Plan, history: Sequence[Attempt], facts: Mapping[str, Facts], now: float, chance: float) -> Try | GiveUp:
    refused: set[str] = set()
    rests: list[float] = []
    for target in sorted(plan.targets, key=lambda target: _tried(history, target)) if history else plan.targets:
        known = facts.get(target.upstream, UNKNOWN)
        failures = [attempt for attempt in history if attempt.target.upstream == target.upstream]
        if any(_never_again(attempt.error) for attempt in failures):
            refused.add("exhausted")
        elif known.ready_in > 0:
            refused.add("resting")
            rests.append(known.ready_in)
        elif failures and not known.may_retry:
            refused.add("budget")
        else:
            wait = _wait(target, failures, now, chance)
            if wait <= LONGEST_WAIT and _in_time(plan, now, wait):
                fresh = any(attempt.error.code in _DEAD for attempt in failures)
                return Try(target, wait, fresh=fresh, spends=bool(failures))
            refused.add("wait")
    # The most hopeful of what stood in the way: it says best what an operator could change.
    reason = next((reason for reason in ("wait", "resting", "budget") if reason in refused), "exhausted")
    return GiveUp(reason, min(rests, default=_advice(history, now)))


def _tried(history: Sequence[Attempt], target: Target) -> tuple[int, int]:
    """Rank for choosing: how often this upstream was tried, and how often with this very model."""
    upstream = sum(attempt.target.upstream == target.upstream for attempt in history)
    return upstream, sum(attempt.target == target for attempt in history)


def _wait(target: Target, failures: Sequence[Attempt], now: float, chance: float) -> float:
    """Seconds until a target may be tried; 0 for an upstream that has not failed in this exchange."""
    if not failures:
        return 0.0
    backoff = chance * min(LONGEST_BACKOFF, BASE * 2.0 ** (len(failures) - 1))
    # Providers limit by model: what one model was told to wait does not bind another at the same account.
    told = [attempt.at + attempt.error.retry_after for attempt in failures if attempt.target == target and attempt.error.retry_after]
    if not told:
        return backoff
    left = max(told) - now
    return max(backoff, left * (1 + SPREAD * chance))


def _worth_it(policy: Retry, error: ProxyError) -> bool:
    """Whether the route's `retry.on` names this failure."""
    if error.code in _CONNECT or error.code == _STALE:
        return "connect" in policy.on
    if error.code == "upstream_timeout":
        return "timeout" in policy.on
    # What is no status of the upstream's own (cut, unreadable, an error inside a 200) counts as the 502 it is to the client.
    named = error.status in policy.on or ("5xx" in policy.on and error.status >= 500)
    return named and (error.blame is Blame.UPSTREAM or error.code == "upstream_refused")


def _never_again(error: ProxyError) -> bool:
    """Whether a failure rules its upstream out for the rest of the exchange."""
    return not error.retry


def _stale(history: Sequence[Attempt], upstream: str) -> int:
    return sum(attempt.error.code == _STALE and attempt.target.upstream == upstream for attempt in history)


def _forgiven(history: Sequence[Attempt]) -> int:
    """How many attempts do not count against the policy: the first stale connection at each upstream."""
    return len({attempt.target.upstream for attempt in history if attempt.error.code == _STALE})


def _in_time(plan: Plan, now: float, wait: float) -> bool:
    return plan.deadline is None or now + wait < plan.deadline


def _advice(history: Sequence[Attempt], now: float) -> float | None:
    """Seconds after which the first of the upstreams that named a time may be asked again."""
    told = [max(0.0, attempt.at + attempt.error.retry_after - now) for attempt in history if attempt.error.retry_after is not None]
    return min(told, default=None)


# The retry budget: retries at an upstream in trouble must not become the trouble (as in Linkerd: a share of its
# requests, and a few a second for small traffic). Going to another upstream is not a retry in this sense.

SHARE = 0.2
"""Retries that each request earns its upstream."""
TRICKLE = 10.0
"""Retries that each second earns it."""
MOST = 100.0
"""Retries that can be saved up."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of an upstream's retries: a level and when it was so (monotonic seconds)."""

    level: float = TRICKLE
    stamp: float = 0.0


def deposit(budget: Budget, now: float) -> Budget:
    """Count a request that was sent to the upstream as a first try."""
    return Budget(min(MOST, _level(budget, now) + SHARE), max(now, budget.stamp))


def may_retry(budget: Budget, now: float) -> bool:
    """Say whether there is a retry left."""
    return _level(budget, now) >= 1.0


def withdraw(budget: Budget, now: float) -> Budget:
    """Take the retry that `may_retry` said was left."""
    return Budget(max(0.0, _level(budget, now) - 1.0), max(now, budget.stamp))


def _level(budget: Budget, now: float) -> float:
    return min(MOST, budget.level + TRICKLE * max(0.0, now - budget.stamp))
