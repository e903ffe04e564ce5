"""Accounts of budgets over time: those that nobody uses any more are forgotten, and come back as the ledger has them."""

from __future__ import annotations

from datetime import UTC

import pytest

from proxyd.clock import Clock
from proxyd.flow.budgets import OVER_US, Budgets
from proxyd.model import TOKENS, Budget, Caller, Per
from proxyd.store.db import Database
from proxyd.store.ledger import Ledger

DAY_US = 86_400 * 10**6
BUDGET = Budget(1000, TOKENS, Per.DAY)


class Hand(Clock):
    """A clock that is set by hand."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 20_000 * DAY_US

    def now_us(self) -> int:
        return self.now


@pytest.fixture
async def budgets(tmp_path):
    clock = Hand()
    database = Database(tmp_path / "l.db", clock=clock)
    await database.open()
    ledger = Ledger(database)
    await ledger.recover(clock.now)
    yield Budgets(clock, ledger)
    await database.close()


async def test_accounts_of_days_that_are_over_are_forgotten_unless_something_is_held(budgets):
    idle, busy = [await budgets.account(Caller(name), BUDGET, UTC) for name in ("idle", "busy")]
    held = budgets.reserve(busy, 10, guessed=False)
    for ahead in (0, DAY_US):  # the day runs; it has ended a moment ago, and somebody may wait in a queue with the account in hand
        budgets.clock.now = 20_000 * DAY_US + ahead
        budgets.sweep()
        assert await budgets.account(Caller("idle"), BUDGET, UTC) is idle
    budgets.clock.now += OVER_US + 1
    budgets.sweep()
    assert await budgets.account(Caller("busy"), BUDGET, UTC) is busy
    assert await budgets.account(Caller("idle"), BUDGET, UTC) is not idle
    budgets.release(busy, held)
    budgets.clock.now += DAY_US + OVER_US
    budgets.sweep()
    assert await budgets.account(Caller("busy"), BUDGET, UTC) is not busy
