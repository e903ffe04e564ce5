"""What history cost, by other prices than those of the day: settled rows read, and their costs written, a few at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from proxyd.model import Usage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from proxyd.store.db import Database

ROWS = 500
"""Rows of one commit: the writer must not make running exchanges wait."""

_TOKENS = [one.name for one in fields(Usage)]  # columns and fields have the same names
# What never reached an upstream's counters has no tokens to price.
_READ = f"""
SELECT id, model, upstream, upstream_model, service_tier, created_at, cost_nano, currency, price_source, price_version, {", ".join(_TOKENS)}
FROM usage_events WHERE id > ? AND created_at >= ? AND state <> 'open' AND tokens_source <> 'none' AND (NOT ? OR cost_nano IS NULL)
ORDER BY id LIMIT {ROWS}
"""  # noqa: S608 - names of columns
_WRITE = "UPDATE usage_events SET cost_nano = ?, currency = ?, price_source = ?, price_version = ? WHERE id = ?"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row costs; as the columns are called."""

    cost_nano: int | None
    currency: str | None
    price_source: str | None
    price_version: str | None


@dataclass(frozen=True, slots=True)
class Priced:
    """A settled row, as far as its price goes."""

    id: int
    model: str
    upstream: str
    upstream_model: str
    service_tier: str | None
    created_at: int
    cost: Cost
    usage: Usage


async def read_priced(database: Database, after: int, since_us: int, *, missing: bool) -> list[Priced]:
    """Read the next rows behind an id; with `missing`, only those whose cost is unknown. Raises StoreError."""

    def rows(connection: sqlite3.Connection) -> list[Priced]:
        found = connection.execute(_READ, (after, since_us, missing)).fetchall()
        return [
            Priced(number, model, upstream, named, tier, at, Cost(*rest[:4]), Usage(*rest[4:]))
            for number, model, upstream, named, tier, at, *rest in found
        ]

    return await database.submit(rows)


async def write_costs(database: Database, costs: Sequence[tuple[int, Cost]]) -> None:
    """Write new costs of rows, by id, in one commit. Raises StoreError."""
    values = [(cost.cost_nano, cost.currency, cost.price_source, cost.price_version, number) for number, cost in costs]

    def write(connection: sqlite3.Connection) -> None:
        connection.executemany(_WRITE, values)

    await database.submit(write)
