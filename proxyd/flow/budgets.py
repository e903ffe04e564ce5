"""What callers have spent of their budgets: state only, `rules/quota` decides.

The law of this file: an account is what the ledger has of its period plus what was recorded since it was opened, each row once.
It is opened at a caller's first request, whether that is after a start, a reload or a new key, and anew in each period: a clock that
was set may have led into the middle of one, or back into one that was spent.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.model import TOKENS
from proxyd.rules import price, quota
from proxyd.store.db import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from proxyd.clock import Clock
    from proxyd.model import Budget, Caller, LedgerRow
    from proxyd.store.ledger import Ledger

log = logging.getLogger(__name__)

OVER_US = 3_600 * 10**6
"""Longer than anybody waits for a place, with an account in hand that holds nothing yet."""


@dataclass(slots=True)
class Account:
    """One budget's."""

    caller: str
    budget: Budget
    zone: tzinfo
    period: quota.Period
    spent: quota.Spent = field(default_factory=quota.Spent)
    opened: bool = False
    """What the ledger has is in it."""
    opening: asyncio.Future[None] | None = None
    recorded: list[int] = field(default_factory=list)
    """Rows that came while the ledger was asked."""
    warned: str = ""
    """The period in which the owner was told."""


@dataclass(slots=True)
class Budgets:
    """The accounts of all callers who have a budget and have asked for something."""

    clock: Clock
    ledger: Ledger
    warned: Callable[[], None] = lambda: None
    """Called once a period and budget, when `warn_at` is passed."""
    _accounts: dict[str, dict[tuple[str, str], Account]] = field(default_factory=dict)

    async def account(self, caller: Caller, budget: Budget, zone: tzinfo) -> Account:
        """Find or open a caller's account. A disk that fails opens it with what was recorded here, and it is tried again."""
        accounts = self._accounts.setdefault(caller.name, {})
        account = accounts.get((budget.unit, budget.per))
        if account is None or account.zone != zone:
            period = quota.period(budget.per, zone, self.clock.now_us())
            account = accounts[budget.unit, budget.per] = Account(caller.name, budget, zone, period)
        account.budget = budget
        self._period(account, self.clock.now_us())
        while not account.opened:
            if account.opening is None:
                await self._open(account)
                break
            await asyncio.shield(account.opening)
        return account

    def reserve(self, account: Account, amount: int, *, guessed: bool) -> int:
        """Hold back what an exchange may come to; returns how much. A guess is cut to what is left.

        Raises ProxyError insufficient_quota.
        """
        now_us, budget = self.clock.now_us(), account.budget
        period = self._period(account, now_us)
        if guessed:
            current = quota.rolled(account.spent, period)
            amount = max(0, min(amount, budget.amount - current.spent - current.held))
        verdict = quota.reserve(account.spent, budget.amount, amount, period, now_us)
        if isinstance(verdict, quota.Exhausted):
            raise exhausted(budget, verdict)
        account.spent = verdict.spent
        return amount

    def still_holds(self, account: Account, amount: int, *, guessed: bool) -> int | None:
        """What an exchange may go on to hold of what it was granted, after an attempt that cost; None where nothing reaches."""
        period = self._period(account, self.clock.now_us())
        current = quota.rolled(account.spent, period)
        left = account.budget.amount - current.spent - max(0, current.held - amount)
        if left <= 0 or (left < amount and not guessed):
            return None
        account.spent = quota.settle(account.spent, amount - min(amount, left), 0, period)
        return min(amount, left)

    def release(self, account: Account, amount: int) -> None:
        """Free what was held; what was used came by `record`."""
        account.spent = quota.settle(account.spent, amount, 0, self._period(account, self.clock.now_us()))

    def record(self, row: LedgerRow) -> None:
        """Count a row, which is final and not yet handed to the ledger, in its caller's accounts."""
        for account in self._accounts.get(row.caller, {}).values():
            account.spent = quota.settle(account.spent, 0, used(row, account.budget.unit), self._period(account, self.clock.now_us()))
            if account.opening is not None:
                account.recorded.append(row.id)
            self._warn(account)

    def sweep(self) -> None:
        """Forget the accounts of periods that are long over; whoever comes again has it opened anew."""
        before = self.clock.now_us() - OVER_US
        for name, accounts in list(self._accounts.items()):
            for place, account in list(accounts.items()):
                if account.period.ends < before and not account.spent.held and account.opening is None:
                    del accounts[place]
            if not accounts:
                del self._accounts[name]

    async def _open(self, account: Account) -> None:
        account.opening = asyncio.get_running_loop().create_future()
        account.recorded = []
        period = self._period(account, self.clock.now_us())
        known = quota.rolled(account.spent, period).spent  # of rows that the ledger was handed: what it says has them, too
        try:
            before = await self.ledger.spent(account.caller, account.budget.unit, period.begins, account.recorded)
        except StoreError as error:
            log.warning("what %s has spent is not known: %s", account.caller, error)
        else:
            if account.period is period:  # else a new one has begun meanwhile
                current = quota.rolled(account.spent, period)
                account.spent = replace(current, spent=current.spent - known + before)
                account.opened = True
            self._warn(account)
        finally:
            account.opening.set_result(None)
            account.opening = None

    def _period(self, account: Account, now_us: int) -> quota.Period:
        if not account.period.begins <= now_us < account.period.ends:
            account.period = quota.period(account.budget.per, account.zone, now_us)
            account.opened = False
        return account.period

    def _warn(self, account: Account) -> None:
        budget, spent = account.budget, account.spent
        if budget.warn_at is None or account.warned == spent.period or spent.spent < budget.warn_at * budget.amount or not account.opened:
            return
        account.warned = spent.period
        log.warning("%s has used %.0f %% of its budget of %s", account.caller, 100 * spent.spent / budget.amount, said(budget))
        self.warned()


def used(row: LedgerRow, unit: str) -> int:
    """What a row comes to in a budget's unit; 0 where its cost is not known or in another currency."""
    if unit == TOKENS:
        return row.usage.tokens
    return row.cost_nano or 0 if row.currency == unit else 0


def said(budget: Budget) -> str:
    """Say a budget as a person would."""
    if budget.unit == TOKENS:
        return f"{budget.amount} tokens a {budget.per}"
    return f"{price.written(budget.amount)} {budget.unit} a {budget.per}"


def exhausted(budget: Budget, verdict: quota.Exhausted) -> ProxyError:
    """Say that it is used up, and when it begins anew."""
    hours = verdict.resets_in / 3600
    when = f"{hours:.0f} hours" if hours >= 2 else f"{max(1, round(hours * 60))} minutes"
    why = "is used up" if verdict.left <= 0 else "does not reach for this request"
    return ProxyError("insufficient_quota", f"The budget of this key, {said(budget)}, {why}; it begins anew in {when}.")
