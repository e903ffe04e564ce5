"""Accounts of budgets: each row counts once, however often the ledger is asked."""

import asyncio
from datetime import UTC, datetime

import pytest

from proxyd.clock import Clock
from proxyd.errors import ProxyError
from proxyd.flow.budgets import OVER_US, Budgets
from proxyd.model import TOKENS, Budget, Caller, LedgerRow, Per, Source, State, Usage
from proxyd.store.db import StoreError

BUDGET = Budget(100, TOKENS, Per.MONTH, warn_at=None)


class Hands(Clock):
    """A clock that stands until it is set."""

    __slots__ = ("now",)

    def now_us(self):
        return self.now


class Books:
    """A ledger that holds what it was handed, unless it fails."""

    def __init__(self):
        self.rows = []
        self.fails = False

    def spent(self, caller, unit, since_us, but):
        future = asyncio.get_running_loop().create_future()
        if self.fails:
            future.set_exception(StoreError("the disk failed"))
        else:
            future.set_result(sum(row.usage.total_tokens for row in self.rows if row.created_at >= since_us and row.id not in but))
        return future


@pytest.fixture
def books():
    return Books()


@pytest.fixture
def budgets(books):
    made = Budgets(Hands(), books)
    made.clock.now = at(11, 21)
    return made


def at(month, day):
    return int(datetime(2026, month, day, tzinfo=UTC).timestamp()) * 10**6


def spend(budgets, books, tokens):
    row = LedgerRow(
        len(books.rows) + 1, "r", 1, "poor", "chat", "json", "m", "u", "m", streamed=False, created_at=budgets.clock.now, bytes_in=1
    )
    row.state, row.usage, row.tokens_source = State.DONE, Usage(total_tokens=tokens), Source.UPSTREAM
    budgets.record(row)
    books.rows.append(row)


async def left(budgets):
    account = await budgets.account(Caller("poor"), BUDGET, UTC)
    for amount in range(100, 0, -10):
        try:
            budgets.release(account, budgets.reserve(account, amount, guessed=False))
        except ProxyError:
            continue
        return amount
    return 0


async def test_a_clock_that_goes_ahead_and_comes_back_finds_what_was_spent(budgets, books):
    assert await left(budgets) == 100
    spend(budgets, books, 40)
    budgets.clock.now = at(12, 31)
    assert await left(budgets) == 100
    spend(budgets, books, 10)
    budgets.clock.now = at(11, 21)
    assert await left(budgets) == 50  # what was done under the wrong clock counts here too


async def test_a_clock_that_is_put_right_late_finds_what_was_spent(budgets, books):
    """A board without a battery starts in the past, until it finds a time server."""
    await left(budgets)
    spend(budgets, books, 70)
    fresh = Budgets(Hands(), books)
    fresh.clock.now = at(2, 1)
    await left(fresh)
    fresh.clock.now = at(11, 21)
    assert await left(fresh) == 30


async def test_what_is_recorded_while_the_ledger_cannot_be_asked_counts_once(budgets, books):
    books.fails = True
    assert await left(budgets) == 100
    spend(budgets, books, 30)
    assert await left(budgets) == 70
    books.fails = False
    assert await left(budgets) == 70


async def test_accounts_of_periods_that_are_over_are_forgotten_unless_something_is_held(budgets):
    idle, busy = [await budgets.account(Caller(name), BUDGET, UTC) for name in ("idle", "busy")]
    held = budgets.reserve(busy, 10, guessed=False)
    budgets.clock.now = idle.period.ends + 1
    budgets.sweep()  # it has ended a moment ago: somebody may wait in a queue, with the account in hand
    assert set(budgets._accounts) == {"idle", "busy"}
    budgets.clock.now += OVER_US
    budgets.sweep()
    assert set(budgets._accounts) == {"busy"}
    budgets.release(busy, held)
    budgets.clock.now = at(2, 1) + 366 * 86_400 * 10**6
    budgets.sweep()
    assert not budgets._accounts
