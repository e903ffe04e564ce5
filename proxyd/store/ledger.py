"""The ledger: a row for every attempt at an upstream, written ahead of the call and settled after it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from proxyd.config.schema import Durability, OnFailure
from proxyd.model import TOKENS, State
from proxyd.store.writer import Upsert, mended

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from proxyd.model import LedgerRow
    from proxyd.store.db import Database
    from proxyd.store.writer import Value

FIXED = ("id", "request_id", "attempt", "caller", "endpoint", "protocol", "model", "upstream", "streamed", "created_at")
"""What an attempt is; written when it opens."""

GROWING = (
    *("state", "conversation_id", "upstream_model", "upstream_request_id"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
    *("cache_write_tokens", "audio_input_tokens", "audio_output_tokens", "tokens_source", "service_tier"),
    *("cost_nano", "currency", "price_source", "price_version"),
    *("status", "error", "finish_reason", "bytes_in", "bytes_out", "ttft_ms", "latency_ms", "settled_at"),
)
"""What it comes to; written again while it runs and when it settles."""

OPENING = (*FIXED, "state", "conversation_id", "upstream_model", "tokens_source", "bytes_in", "bytes_out")
"""What is known of it, or may not be NULL, when it opens: half the columns cost a fifth less."""

_COLUMNS = (*FIXED, *GROWING)

# Names of columns only; every value is bound. An attempt is settled once: what is no longer open is not changed again, so
# the same write may come twice (after a commit whose outcome nobody knows) and late (a checkpoint).
_OPEN = (
    f"INSERT INTO usage_events ({', '.join(OPENING)}) VALUES ({', '.join('?' * len(OPENING))}) "  # noqa: S608
    "ON CONFLICT (id) DO NOTHING"
)
_SETTLE = (
    f"INSERT INTO usage_events ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in GROWING)} WHERE usage_events.state = 'open'"
)
_CHECKPOINT = f"UPDATE usage_events SET {', '.join(f'{name} = ?' for name in GROWING)} WHERE id = ? AND state = 'open'"  # noqa: S608
_FORGET = "DELETE FROM usage_events WHERE id = ? AND state = 'open'"


_EXPIRED = "DELETE FROM usage_events WHERE id IN (SELECT id FROM usage_events WHERE created_at < ? AND state != 'open' LIMIT ?)"
_DAY = 86_400 * 10**6
_TOKENS_SPENT = "coalesce(nullif(total_tokens, 0), coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0))"
# By the index of callers and creation: what ended in a period began in it, or at most a day before.
_SPENT = """
SELECT coalesce(sum({what}), 0) FROM usage_events
WHERE caller = ? AND created_at >= ? AND settled_at >= ? AND (? IS NULL OR currency = ?) AND state <> 'open'
  AND id NOT IN (SELECT value FROM json_each(?))
"""
PRUNE_ROWS = 500
"""Rows deleted in one commit: pruning must never make the writer wait."""


class Ledger:
    """Writes `usage_events`. `recover` comes first, once; then for each attempt `next_id`, `open`, `settle`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._last: int | None = None
        self._progress: dict[int, tuple[Value, ...]] = {}
        """What the checkpoint that waits will write, by id; replaced, never changed: the writer's thread reads it."""

    @property
    def healthy(self) -> bool:
        """Whether the database can be written."""
        return self._db.healthy

    @property
    def accepting(self) -> bool:
        """Whether new work may begin: `open` would not be refused now."""
        return self._db.refusal() is None

    @property
    def backlog(self) -> int:
        """Writes that are not on disk yet."""
        return self._db.backlog

    def next_id(self) -> int:
        """Allot an id: 63 bits that sort by time (milliseconds since the epoch << 20, and a sequence), above every id in the file.

        Goes on counting where the clock stands still or went back. Raises RuntimeError before `recover`.
        """
        if self._last is None:
            raise RuntimeError("Ledger.recover must come before the first id: it reads which ids are taken")
        self._last = max(self._last + 1, self._db.clock.now_us() // 1000 << 20)
        return self._last

    def open(self, row: LedgerRow) -> asyncio.Future[None]:
        """Write a row ahead of its call. Await the future before dispatch; it fails with StoreError when the work must be refused.

        strict: done when the row is on disk; relaxed: done already, on disk within one group commit. Where the disk fails and
        `storage.on_failure` is `serve`, done at once, and the row waits in memory. A waiter that is cancelled leaves no row,
        unless it is settled.
        """
        db = self._db
        if (refusal := db.refusal()) is not None:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(refusal)
            return refused
        strict = db.durability is Durability.STRICT
        keep = not strict or db.on_failure is OnFailure.SERVE
        undo = Upsert(_FORGET, (row.id,)) if strict else None
        return db.put(("usage_events", row.id), Upsert(_OPEN, _opening(row)), keep=keep, wait=strict, undo=undo)

    def settle(self, row: LedgerRow) -> asyncio.Future[None]:
        """Write what an attempt came to; the row's state is no longer `open`. The future never fails.

        strict: done when the row is on disk, or when the disk fails (then the row waits in memory); relaxed: done already.
        A row that was not opened is written all the same.
        """
        strict = self._db.durability is Durability.STRICT
        return self._db.put(("usage_events", row.id), Upsert(_SETTLE, _all(row)), wait=strict)

    def checkpoint(self, rows: Iterable[LedgerRow]) -> None:
        """Write what running attempts have come to so far, all in one commit. Rows that are settled, here or on disk, are left alone."""
        came = {row.id: mended((*_growing(row), row.id)) for row in rows if row.state is State.OPEN}
        if not came:
            return
        # One that still waits, behind a slow disk, is replaced by this one, which must have its rows as well: nobody tells of them again.
        latest = self._progress = {**self._progress, **came}

        def write(connection: sqlite3.Connection) -> None:
            if self._progress is latest:
                self._progress = {}
            connection.executemany(_CHECKPOINT, list(latest.values()))

        self._db.put("usage_events checkpoint", write, wait=False)

    async def prune(self, before_us: int) -> int:
        """Delete settled rows from before a moment, a few at a time. Returns how many. Raises StoreError."""
        deleted = 0
        while step := await self._db.submit(lambda connection: _prune(connection, before_us)):
            deleted += step
        return deleted

    async def recover(self, now_us: int) -> int:
        """Close the rows that an earlier run left open as `interrupted`, with what is known of them. Returns how many.

        Reads which ids are taken, too. Once, at start, before any row is opened. Raises StoreError.
        """

        def interrupt(connection: sqlite3.Connection) -> tuple[int, int]:
            sql = "UPDATE usage_events SET state = 'interrupted', settled_at = ? WHERE state = 'open'"
            changed = connection.execute(sql, (now_us,)).rowcount
            return changed, connection.execute("SELECT coalesce(max(id), 0) FROM usage_events").fetchone()[0]

        interrupted, self._last = await self._db.submit(interrupt)
        return interrupted

    def spent(self, caller: str, unit: str, since_us: int, but: Sequence[int]) -> asyncio.Future[int]:
        """Sum what a caller's attempts that ended since a moment came to: tokens, or 10⁻⁹ of a currency.

        Whatever was handed to `settle` before is in it, but not the rows of `but`, which is read when the sum is made and may grow
        until then. Fails with StoreError.
        """
        what, currency = (_TOKENS_SPENT, None) if unit == TOKENS else ("cost_nano", unit)
        sql = _SPENT.format(what=what)

        def add_up(connection: sqlite3.Connection) -> int:
            rows = (caller, since_us - _DAY, since_us, currency, currency, orjson.dumps(list(but)).decode())
            return int(connection.execute(sql, rows).fetchone()[0])

        return self._db.submit(add_up)


def _prune(connection: sqlite3.Connection, before_us: int) -> int:
    return connection.execute(_EXPIRED, (before_us, PRUNE_ROWS)).rowcount


# These three run twice per exchange on the event loop, hence spelled out: a flat tuple costs half of one put together from
# parts. sqlite3 binds plain str and int several times faster than enums and booleans.


def _opening(row: LedgerRow) -> tuple[Value, ...]:
    """Return the values of OPENING."""
    # fmt: off
    return (
        row.id, row.request_id, row.attempt, row.caller, str(row.endpoint), row.protocol, row.model, row.upstream,
        1 if row.streamed else 0, row.created_at,
        row.state.value, row.conversation_id, row.upstream_model, row.tokens_source.value, row.bytes_in, row.bytes_out,
    )
    # fmt: on


def _growing(row: LedgerRow) -> tuple[Value, ...]:
    """Return the values of GROWING, as they are now."""
    usage = row.usage
    # fmt: off
    return (
        row.state.value, row.conversation_id, row.upstream_model, row.upstream_request_id,
        usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cached_tokens, usage.reasoning_tokens,
        usage.cache_write_tokens, usage.audio_input_tokens, usage.audio_output_tokens, row.tokens_source.value, row.service_tier,
        row.cost_nano, row.currency, row.price_source, row.price_version,
        row.status, row.error, row.finish_reason, row.bytes_in, row.bytes_out, row.ttft_ms, row.latency_ms, row.settled_at,
    )
    # fmt: on


def _all(row: LedgerRow) -> tuple[Value, ...]:
    """Return the values of all columns: FIXED, then GROWING."""
    # fmt: off
    return (
        row.id, row.request_id, row.attempt, row.caller, str(row.endpoint), row.protocol, row.model, row.upstream,
        1 if row.streamed else 0, row.created_at, *_growing(row),
    )
    # fmt: on
