"""What is used up under each limit: state only, `rules/ratelimit` decides. An exchange reserves, and gives back what it did not use.

The law of this file: between deciding and keeping what was decided nothing awaits, so parallel requests cannot pass a limit.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.pricing import quotes
from proxyd.flow.waiting import WaitingRooms
from proxyd.model import TOKENS, UNLIMITED, State
from proxyd.rules import price, ratelimit, reservation
from proxyd.rules.auth import limits_of
from proxyd.wire.prompt import estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.clock import Clock
    from proxyd.config.schema import Queue
    from proxyd.flow.budgets import Account, Budgets
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.runtime import Snapshot
    from proxyd.model import Budget, LedgerRow, Limits
    from proxyd.rules.price import Quote
    from proxyd.rules.pricelist import PriceList
    from proxyd.rules.routes import Route

LARGE = 64 * 1024
"""Bytes of a request above which its prompt is estimated in a thread."""
SWEEP_SECONDS = 60.0
SWEEP_SLICE = 2000
"""Levels looked at in one go."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Tokens that an exchange may come to."""

    prompt: int = 0
    answer: int = 0
    open: bool = False
    """Nothing bounds the answer."""


NOTHING = Guess()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an exchange asks for, and from whom."""

    limits: dict[str, Limits]
    guess: Guess
    account: Account | None
    quotes: list[Quote]
    """By which it may be charged, where its budget is money."""


@dataclass(slots=True)
class Reservation:
    """What one exchange holds, under the limits as they were when it began."""

    limits: dict[str, Limits]
    tokens: int
    granted_at: float
    """Monotonic seconds."""
    account: Account | None = None
    money: int = 0
    """Held of its budget, in the budget's unit."""
    guessed: bool = False
    """Nothing bounds the answer: what is held of the budget may be less than it comes to."""
    used: int = 0
    """Tokens of the attempts that are over."""
    covered: int = 0
    """Those of them for which as much is held again: another attempt followed."""
    called: bool = False
    """An upstream was called: the request counts."""


@dataclass(slots=True)
class _Gauge:
    """What is used up under one scope, and the limits that it was last asked about."""

    level: ratelimit.Level
    limits: Limits


@dataclass(slots=True)
class Allowances:
    """The levels of all scopes: `caller:laptop`, `model:fast`, and one at the other."""

    clock: Clock
    budgets: Budgets
    price_list: PriceList
    refused: Callable[[str], None] = lambda _reason: None
    """Told why, once for each exchange that was refused: one of metrics.LIMITS."""
    _gauges: dict[str, _Gauge] = field(default_factory=dict)
    _rooms: WaitingRooms = field(default_factory=WaitingRooms)
    _queued: dict[int, tuple[Exchange, Wanted]] = field(default_factory=dict)
    """Who waits in them, by identity."""
    _means: dict[str, float] = field(default_factory=dict)
    """Tokens of one choice, by route."""
    _dearest: dict[tuple[str, str], float] = field(default_factory=dict)
    """10⁻⁹ of a currency for a token, the most that a route has come to; for where no price is known beforehand."""

    async def reserve(self, ex: Exchange) -> None:
        """Hold what the exchange may come to, under all its limits and its budget, or under none.

        Raises ProxyError rate_limit_exceeded, insufficient_quota.
        """
        limits, caller = _limits_over(ex), ex.caller
        budget = caller.budget if caller is not None else None
        if not limits and budget is None:
            return
        guess = NOTHING
        if budget is not None or any(one.tpm is not None for one in limits.values()):
            guess = await self._estimate(ex, limits)
        account, charged = None, []
        if budget is not None and caller is not None:
            account = await self.budgets.account(caller, budget, ex.snapshot.zone)
            charged = [] if budget.unit == TOKENS else await quotes(ex, self.price_list, self.clock.now_us())
        wanted = Wanted(limits, guess, account, charged)
        refused = self._take(ex, wanted)
        if refused is not None and refused.reason == "concurrency" and ex.model.queue is not None:
            refused = await self._wait(ex, wanted, ex.model.queue, refused)
        if refused is not None:
            self.refused(refused.reason)
            raise refusal(refused, limits[refused.scope], guess.prompt + guess.answer)

    async def affords(self, ex: Exchange) -> bool:
        """Say whether another attempt fits after one that failed: what that has cost comes on top of what was reserved for one."""
        if ex.reservation is not None and ex.counting:
            await asyncio.wait(ex.earlier)  # what it has cost is not known yet
        held = ex.reservation
        if held is None or held.used == held.covered:
            return True
        tokens = held.used - held.covered
        levels = ratelimit.more({scope: self._level(scope) for scope in held.limits}, held.limits, tokens, self.clock.monotonic())
        if levels is None:
            return False
        if held.account is not None:
            money = self.budgets.still_holds(held.account, held.money, guessed=held.guessed)
            if money is None:
                return False
            held.money = money
        for scope, level in levels.items():
            self._gauges[scope] = _Gauge(level, held.limits[scope])
        held.tokens += tokens
        held.covered = held.used
        return True

    def record(self, ex: Exchange, row: LedgerRow) -> None:
        """Note what an attempt has come to; its row is final."""
        self.budgets.record(row)
        self._learn_price(ex, row)
        held = ex.reservation
        if held is None:
            return
        usage = row.usage
        held.called = True
        held.used += usage.tokens
        if row.state is State.DONE and usage.completion_tokens is not None and ex.ask is not None:
            each = usage.completion_tokens // reservation.choices(ex.ask, ex.model)
            self._means[ex.label] = reservation.smoothed(self._means.get(ex.label), each)

    def settle(self, ex: Exchange) -> None:
        """Give back what the exchange holds and did not use. Once; later calls do nothing."""
        held, ex.reservation = ex.reservation, None
        if held is None:
            return
        now = self.clock.monotonic()
        if held.account is not None:
            self.budgets.release(held.account, held.money)
        for scope, limits in held.limits.items():
            level = self._level(scope)
            if held.called:
                level = ratelimit.settle(level, limits, held.tokens, held.used, now)
            else:  # no upstream has heard of it
                level = ratelimit.cancel(level, limits, held.tokens, held.granted_at, now)
            self._gauges[scope] = _Gauge(level, limits)
        self._rooms.call()

    def renew(self, snapshot: Snapshot) -> None:
        """Take a new configuration's limits for who waits, too: whoever comes now goes by them, and would pass."""
        auth = snapshot.config.auth
        named = {} if auth is None else {key.name: limits_of(key.limits) for key in auth.keys}
        for ex, wanted in self._queued.values():
            if ex.reservation is not None:
                continue  # its turn has come in this moment, by the limits that it holds
            assert ex.caller is not None  # noqa: S101 - it is known who waits
            route = None if ex.ask is None else snapshot.routes.resolve(ex.ask.model)
            if route is None or route.label != ex.label:
                route = ex.route  # it is gone, and the exchange ends under the one that it began with
            renewed = _limits(ex.caller.name, named.get(ex.caller.name, ex.caller.limits), route)
            wanted.limits.update(dict.fromkeys(wanted.limits, UNLIMITED) | renewed)
        self._rooms.call()

    def turn_away(self, error: ProxyError) -> None:
        """Nobody waits any more: who does is refused, and whoever comes."""
        self._rooms.shut(error)

    @property
    def waiting(self) -> int:
        """Exchanges that wait for a place."""
        return self._rooms.size

    def headers(self, ex: Exchange) -> list[tuple[bytes, bytes]]:
        """Tell what is left, by the tightest limit of each dimension; nothing where nothing is limited."""
        limits = _limits_over(ex)
        if not limits:
            return []
        now = self.clock.monotonic()
        told = ratelimit.tightest([ratelimit.standings(self._level(scope), one, now) for scope, one in limits.items()])
        return [(name.encode(), value.encode()) for name, value in ratelimit.headers(told)]

    async def sweep(self) -> None:
        """Forget, every so often, the levels that say no more than fresh ones do."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.budgets.sweep()
            scopes = list(self._gauges)
            for start in range(0, len(scopes), SWEEP_SLICE):
                now = self.clock.monotonic()
                for scope in scopes[start : start + SWEEP_SLICE]:
                    gauge = self._gauges[scope]
                    if ratelimit.idle(gauge.level, gauge.limits, now):
                        del self._gauges[scope]
                await asyncio.sleep(0)

    def _level(self, scope: str) -> ratelimit.Level:
        gauge = self._gauges.get(scope)
        return ratelimit.FRESH if gauge is None else gauge.level

    def _take(self, ex: Exchange, wanted: Wanted) -> ratelimit.Refused | None:
        """Decide, and keep what was decided. Raises ProxyError insufficient_quota."""
        now = self.clock.monotonic()
        tokens = wanted.guess.prompt + wanted.guess.answer
        verdict = ratelimit.request({scope: self._level(scope) for scope in wanted.limits}, wanted.limits, tokens, now)
        if isinstance(verdict, ratelimit.Refused):
            return verdict
        held, account = 0, wanted.account
        if account is not None:
            try:
                held = self.budgets.reserve(account, self._worth(ex, wanted, account.budget), guessed=wanted.guess.open)
            except ProxyError:
                self.refused("budget")
                raise
        for scope, level in verdict.levels.items():
            self._gauges[scope] = _Gauge(level, wanted.limits[scope])
        ex.reservation = Reservation(wanted.limits, tokens, now, account, held, guessed=wanted.guess.open)
        return None

    async def _wait(self, ex: Exchange, wanted: Wanted, queue: Queue, refused: ratelimit.Refused) -> ratelimit.Refused | None:
        """Wait for a place, in turn with the other callers; None when it came."""
        if ex.caller is None or self._rooms.full(ex.label, queue.max):
            return refused
        self._queued[id(ex)] = (ex, wanted)
        try:
            return await self._rooms.wait(ex.label, ex.caller.name, lambda: self._take(ex, wanted), queue.wait)
        except TimeoutError:
            return self._take(ex, wanted)  # refused, by the limits as they are now
        finally:
            del self._queued[id(ex)]

    async def _estimate(self, ex: Exchange, limits: dict[str, Limits]) -> Guess:
        """Prompt and answer: the answer as it is bounded, else as answers of this route are."""
        assert ex.ask is not None  # noqa: S101 - admit has run
        if len(ex.raw) > LARGE:
            prompt = await asyncio.to_thread(estimate, ex.ask, ex.ask.model)
        else:
            prompt = estimate(ex.ask, ex.ask.model)
        longest = reservation.longest_answer(ex.ask, ex.model)
        if longest is not None:
            return Guess(prompt, longest)
        room = min((one.tpm - prompt for one in limits.values() if one.tpm is not None), default=None)
        mean = self._means.get(ex.label, reservation.FIRST_GUESS)
        return Guess(prompt, reservation.likely_answer(ex.ask, ex.model, mean, room), open=True)

    def _worth(self, ex: Exchange, wanted: Wanted, budget: Budget) -> int:
        """What the guess comes to in the budget's unit, by the dearest price; without one, by the dearest token that the route has had."""
        guess = wanted.guess
        if budget.unit == TOKENS:
            return guess.prompt + guess.answer
        if wanted.quotes:
            parts = price.Parts(guess.prompt, guess.answer)
            return max((price.cost(each.price, parts) or 0 for each in wanted.quotes if each.price.currency == budget.unit), default=0)
        return math.ceil(self._dearest.get((ex.label, budget.unit), 0.0) * (guess.prompt + guess.answer))

    def _learn_price(self, ex: Exchange, row: LedgerRow) -> None:
        tokens = row.usage.total_tokens
        if row.cost_nano and row.currency and tokens:
            known = self._dearest.get((ex.label, row.currency), 0.0)
            self._dearest[ex.label, row.currency] = max(known, row.cost_nano / tokens)


def _limits_over(ex: Exchange) -> dict[str, Limits]:
    """Say which limits an exchange is under, as far as it is known who asks for what; scopes in which nothing is limited are left out."""
    caller = ex.caller
    return _limits("", UNLIMITED, ex.route) if caller is None else _limits(caller.name, caller.limits, ex.route)


def _limits(name: str, limits: Limits, route: Route | None) -> dict[str, Limits]:
    """The same, of a caller by name."""
    found = {}
    if limits:
        found[f"caller:{name}"] = limits
    if route is not None and route.limits:
        found[f"model:{route.label}"] = route.limits
    if name and route is not None and route.per_caller:
        found[f"both:{route.label}:{name}"] = route.per_caller
    return found


def refusal(verdict: ratelimit.Refused, limits: Limits, tokens: int) -> ProxyError:
    """Say who is over what limit, and when to come again."""
    whose = {"caller": "this key", "model": "this model", "both": "this key at this model"}[verdict.scope.partition(":")[0]]
    kind = "tokens" if verdict.reason == "tokens" else "requests"
    wait = verdict.retry_after
    if verdict.reason == "concurrency":
        message = f"Too many requests at once for {whose}: the limit is {limits.concurrency}."
    elif verdict.reason == "requests":
        message = f"Rate limit reached for {whose}: {limits.rpm} requests a minute."
    elif wait is None:
        message = f"The request is too large for {whose}: it may come to {tokens} tokens, and the limit is {limits.tpm} a minute."
    else:
        message = f"Rate limit reached for {whose}: {limits.tpm} tokens a minute, and this request may come to {tokens}."
    if wait is not None:
        message += f" Please try again in {max(wait, 0.001):.3g}s."
    return ProxyError("rate_limit_exceeded", message, type=kind, retry=wait is not None, retry_after=wait)
