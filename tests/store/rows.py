"""Ledger rows for tests, and what is in the file."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from proxyd.model import LedgerRow, Source, State, Usage

if TYPE_CHECKING:
    from pathlib import Path


def opened(number: int, request_id: str | None = None, **changes) -> LedgerRow:
    """A row as it is before its call."""
    facts = {
        "attempt": 1, "caller": "laptop", "endpoint": "/v1/chat/completions", "protocol": "sse", "model": "fast", "upstream": "openai",
        "upstream_model": "gpt-4o-mini", "streamed": True, "created_at": 1_700_000_000_000_000, "bytes_in": 10,
    }  # fmt: skip
    return LedgerRow(id=number, request_id=request_id or f"req_{number}", **(facts | changes))


def settled(row: LedgerRow, state: State = State.DONE, usage: Usage = Usage(3, 4, 7), **changes) -> LedgerRow:  # noqa: B008 - frozen
    """The same row, as it came out."""
    row.state, row.usage, row.tokens_source = state, usage, Source.UPSTREAM
    row.status, row.bytes_out, row.latency_ms, row.settled_at = 200, 99, 12.5, row.created_at + 12_500
    for name, value in changes.items():
        setattr(row, name, value)
    return row


def query(path: Path, sql: str, *params: object) -> list[tuple]:
    """Ask the file, over a connection of its own."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql, params).fetchall()


def states(path: Path) -> dict[int, str]:
    """Every row's state, by id."""
    return dict(query(path, "SELECT id, state FROM usage_events"))
