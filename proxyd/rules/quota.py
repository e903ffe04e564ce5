"""Budgets: how much money or how many tokens a caller may use up in a day or a month.

As with rate limits, what running exchanges may come to is held back beforehand and trued up afterwards, so that parallel
requests cannot pass the budget. Amounts are integers: 10⁻⁹ of the currency, or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from proxyd.model import Per

if TYPE_CHECKING:
    from datetime import tzinfo


__all__ = ["Exhausted", "Per", "Period", "Reserved", "Spent", "period", "reserve", "settle"]


@dataclass(frozen=True, slots=True)
class Period:
    """A day or month of one time zone."""

    name: str
    """`2026-11-21` or `2026-11`: what the spent amount is kept under."""
    begins: int
    """Microseconds since the epoch: what the ledger's sum begins at."""
    ends: int
    """Microseconds since the epoch; the next one begins there."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a caller has used of one budget. Holds no settings."""

    period: str = ""
    spent: int = 0
    """Settled in this period."""
    held: int = 0
    """Held back by running exchanges, whenever they began."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """The exchange may run: keep this, and `settle` it with the same amount."""

    spent: Spent


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The budget does not reach; nothing has changed."""

    left: int
    """What is neither spent nor held."""
    resets_in: float
    """Seconds until the period ends."""


def period(per: Per, zone: tzinfo, now_us: int) -> Period:
    """Find the period that a moment (microseconds since the epoch) lies in.

    Its ends are local midnights, so a day may have 23 or 25 hours where clocks are changed.
    """
    local = datetime.fromtimestamp(now_us // 10**6, UTC).astimezone(zone)
    first = local.date() if per is Per.DAY else local.date().replace(day=1)
    # The 28th and four days lie in the next month, whichever month it is.
    following = first + timedelta(days=1) if per is Per.DAY else (first.replace(day=28) + timedelta(days=4)).replace(day=1)
    name = first.isoformat() if per is Per.DAY else first.isoformat()[:7]
    begins, ends = (_us(datetime(day.year, day.month, day.day, tzinfo=zone)) for day in (first, following))
    return Period(name, begins, ends)


def reserve(spent: Spent, budget: int, amount: int, in_period: Period, now_us: int) -> Reserved | Exhausted:
    """Hold back what an exchange may come to at most. `amount` 0 is granted while anything is left."""
    current = rolled(spent, in_period)
    left = budget - current.spent - current.held
    if amount > left or left <= 0:
        return Exhausted(max(0, left), max(0, in_period.ends - now_us) / 10**6)
    return Reserved(replace(current, held=current.held + amount))


def settle(spent: Spent, reserved: int, used: int, in_period: Period) -> Spent:
    """End an exchange: free what was held, and count what it came to in the period in which it ended.

    0 used is a refund, exact. More than was held is counted too: it has been spent.
    """
    current = rolled(spent, in_period)
    return replace(current, spent=current.spent + used, held=max(0, current.held - reserved))


def rolled(spent: Spent, in_period: Period) -> Spent:
    """Begin a new period where one has begun: nothing is spent, and what runs is held on."""
    return spent if spent.period == in_period.name else Spent(in_period.name, held=spent.held)


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**6
