"""The database: one read-write connection in the whole system, one writer task, group commit.

The law of this file: a write that somebody was told is on disk is on disk, and a write that must not be lost waits in
memory, in order, until it is. Everything that waits is written in one transaction (at most `Tuning.batch`), and only then
are those who wait for it told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import aiosqlite

from proxyd.clock import Clock
from proxyd.config.schema import Durability, OnFailure
from proxyd.store.entry import Entry
from proxyd.store.file import StoreError, database_path, read, take, told
from proxyd.store.writer import Batch, Op, Upsert, Writer, open_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

__all__ = ["Database", "Op", "StoreError", "Tuning", "Upsert", "database_path"]

T = TypeVar("T")

_SYNCHRONOUS = {Durability.STRICT: "FULL", Durability.RELAXED: "NORMAL"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Bounds of the writer. Times in seconds."""

    batch: int = 512
    """Writes in one transaction."""
    backlog: int = 100_000
    """Writes that wait in memory before new work is refused; ends of work that has begun may go past it."""
    linger: float = 0.010
    """How long writes that nobody waits for gather before they are written."""
    busy: float = 5.0
    """How long a transaction waits for another process's lock before that counts as a failure."""
    retry_first: float = 0.05
    retry_last: float = 2.0
    """Between attempts on a failing disk; doubled from the one to the other."""
    grace: float = 5.0
    """How long `close` goes on trying on a failing disk before what waits is given up."""


class Database:
    """One SQLite file, and the only way to write into it. Made and used on one event loop.

    `open` it first, `close` it last. Stores put their writes here; their reads go through `read`.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = Durability.STRICT,
        on_failure: OnFailure = OnFailure.REFUSE,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.path = path
        self.durability = durability
        self.on_failure = on_failure
        self.clock = Clock() if clock is None else clock
        self.tuning = Tuning() if tuning is None else tuning
        self.trouble: StoreError | None = None
        """Why the disk cannot be written now."""
        self.observe: Callable[[float, int], None] | None = None
        """Told of each commit: how long it took in seconds, and how many writes it held."""
        self.observe_failure: Callable[[], None] | None = None
        """Told of each commit that failed."""
        self._pending: dict[Hashable, Entry] = {}
        self._writing = 0
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._closing = asyncio.Event()
        self._connection: aiosqlite.Connection | None = None
        self._writer: Writer | None = None
        self._suspect = False
        self._lock: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False

    @property
    def healthy(self) -> bool:
        """Whether it is open and the last attempt to write succeeded."""
        return self._shut() is None and self.trouble is None and not self._closing.is_set()

    @property
    def backlog(self) -> int:
        """Writes that are not on disk yet."""
        return len(self._pending) + self._writing

    def refusal(self) -> StoreError | None:
        """Say why new work should be turned away now; None if it need not. Ask before work begins, never when it ends."""
        if self._shut() is not None or self._closing.is_set():
            return StoreError(f"{self.path} is closed")
        if self.trouble is not None and self.on_failure is OnFailure.REFUSE:
            return self.trouble
        if self.backlog >= self.tuning.backlog:
            return StoreError(f"{self.path}: {self.backlog} writes wait in memory: {self.trouble or 'the disk is too slow'}")
        return None

    async def open(self) -> None:
        """Open or make the file, migrate it, and start the writer. Raises StoreError; then nothing is left open."""
        if self._task is not None:
            raise RuntimeError("a Database is opened once")
        try:
            await self._connect(first=True)
        except BaseException as error:
            await self._disconnect()
            self._unlock()
            if isinstance(error, sqlite3.Error | OSError):
                raise told(error, self.path) from error
            raise
        self._task = asyncio.create_task(self._run(), name="database writer")

    async def close(self) -> None:
        """Write everything that waits, and end the connection and its thread. Bounded by `Tuning.grace` and one attempt on a failing disk.

        May be called twice. Being cancelled meanwhile does not stop it.
        """
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    def configure(self, durability: Durability, on_failure: OnFailure) -> None:
        """Change both while running, from the next batch on."""
        self.durability, self.on_failure = durability, on_failure

    def put(
        self, key: Hashable, work: Upsert | Op, *, keep: bool = True, wait: bool = True, undo: Upsert | None = None
    ) -> asyncio.Future[None]:
        """Enqueue a write under a key; one that still waits under the same key is replaced, and its waiters wait for this one.

        The future is done when the write is on disk; at once without `wait`, and at once when the disk fails and `keep` is
        given, for then it waits in memory. Without `keep` a failing disk fails the future with StoreError, and the write is
        dropped. `undo` is applied when a dropped write turns out to be on disk perhaps, or when all who waited for it were
        cancelled. With `keep`, never refused: what bounds it is that new work asked `refusal` first.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        trouble = self._shut() or (None if keep else self.trouble)
        if trouble is not None:
            if keep:
                log.error("a write came after the database was closed, and is lost: %r", work)
                future.set_result(None)
            else:
                future.set_exception(trouble)
            return future
        entry = self._pending.get(key)
        if entry is None:
            entry = self._pending[key] = Entry(work, keep, undo)
        else:
            entry.work, entry.keep, entry.undo = work, keep, undo
        if not wait or self.trouble is not None:
            future.set_result(None)
        else:
            entry.waiters.append(future)
            self._urgent.set()
        if len(self._pending) >= self.tuning.batch:
            self._urgent.set()
        self._wake.set()
        return future

    def submit(self, operation: Callable[[sqlite3.Connection], T], *, undo: Upsert | None = None) -> asyncio.Future[T]:
        """Enqueue an operation with a result: the future has what it returned, once that is on disk.

        It fails with what the operation raised, or with StoreError when the disk fails, when too much waits, or after `close`.
        `undo` is as with `put`.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        refused = self._shut() or self.trouble
        if refused is None and self.backlog >= self.tuning.backlog:
            refused = self.refusal()
        if refused is not None:
            future.set_exception(refused)
            return future
        self._pending[object()] = Entry(operation, keep=False, undo=undo, waiters=[future])
        self._urgent.set()
        self._wake.set()
        return future

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in a thread, on a read-only connection of its own: see `file.read`. Raises StoreError."""
        return await asyncio.to_thread(read, self.path, query)

    async def vacuum(self) -> None:
        """Write the file anew without its free room. Writes wait meanwhile, in memory. Raises StoreError; then nothing has changed."""
        connection = self._connection
        refused = self._shut() or self.trouble
        if refused is not None or connection is None:
            raise refused or StoreError(f"{self.path} is closed")
        try:
            # The thread that commits runs one thing at a time, and between two of them no transaction is open.
            # A cursor that is left open would keep the next COMMIT from ending.
            await connection.execute_fetchall("VACUUM")
            await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, ValueError) as error:  # ValueError: the connection was given up meanwhile
            raise told(error, self.path) from error

    # ---- the writer task

    async def _run(self) -> None:
        """Write until closed and nothing waits."""
        try:
            while await self._gathered():
                await self._attempt()
                if self.trouble is not None:
                    await self._heal()
        except asyncio.CancelledError:
            # The loop is torn down around us. The batch in flight has been put back; write what waits once more, then go.
            self._closing.set()
            while self._pending and self.trouble is None:
                await self._attempt()
        finally:
            self._over = True
            self._give_up()
            await self._disconnect()
            self._unlock()

    async def _gathered(self) -> bool:
        """Wait for work, and, where nobody waits for it, for more of it. False when closed and nothing is left."""
        if not self._pending:
            if self._closing.is_set():
                return False
            self._wake.clear()
            self._urgent.clear()
            await self._wake.wait()
        if not self._urgent.is_set() and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.tuning.linger):
                    await self._urgent.wait()
        self._urgent.clear()
        return True

    async def _heal(self) -> None:
        """Try again, ever more slowly, until the disk can be written or closing has taken too long."""
        delay, closing_since = self.tuning.retry_first, None
        while self.trouble is not None:
            if self._closing.is_set():
                closing_since = closing_since or self.clock.monotonic()
                if self.clock.monotonic() - closing_since >= self.tuning.grace:
                    self._give_up()
                    return
                await asyncio.sleep(delay)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._closing.wait()
            delay = min(delay * 2, self.tuning.retry_last)
            await self._attempt()

    async def _attempt(self) -> None:
        """Write one batch, on a fresh connection if the old one is suspect. Sets or clears `trouble`."""
        entries = self._take()
        batch = Batch([entry.work for entry in entries.values()])
        try:
            await self._commit(batch)
        except (StoreError, sqlite3.Error, OSError) as error:
            self._failed(entries, batch, error)
        except BaseException:
            self._put_back(entries)
            raise
        else:
            self._succeeded(entries, batch)
        finally:
            self._writing = 0

    async def _commit(self, batch: Batch) -> None:
        if self._suspect or self._connection is None:
            await self._disconnect()
            await self._connect(first=False)
            self._suspect = False
        connection, writer = self._connection, self._writer
        assert connection is not None  # noqa: S101 - connected above
        assert writer is not None  # noqa: S101
        writer.synchronous = _SYNCHRONOUS[self.durability]
        writer.batch = batch
        begun = self.clock.monotonic()
        try:
            await connection.commit()
        except asyncio.CancelledError:
            await connection.rollback()  # comes after the commit on the same thread: that is over now
            raise
        if self.observe is not None:
            self.observe(self.clock.monotonic() - begun, len(batch.work))

    def _take(self) -> dict[Hashable, Entry]:
        """Take the next batch out of what waits, without writes whose every waiter was cancelled before they began."""
        if len(self._pending) <= self.tuning.batch:
            entries, self._pending = self._pending, {}
        else:
            entries = {key: self._pending.pop(key) for key in list(islice(self._pending, self.tuning.batch))}
        for key in [key for key, entry in entries.items() if entry.undo is not None and entry.abandoned()]:
            del entries[key]
        self._writing = len(entries)
        return entries

    def _succeeded(self, entries: dict[Hashable, Entry], batch: Batch) -> None:
        """Tell those who wait."""
        if self.trouble is not None:
            log.warning("the database can be written again; %d writes wait", len(self._pending))
            self.trouble = None
        for place, (key, entry) in enumerate(entries.items()):
            error = batch.errors.get(place)
            if error is not None and entry.keep:
                log.error("a write was refused by the schema, and is lost: %r", entry.work, exc_info=error)
                error = None
            if entry.undo is not None and entry.abandoned():
                self._undo(key, entry.undo)
            entry.tell(batch.results.get(place), error)

    def _failed(self, entries: dict[Hashable, Entry], batch: Batch, error: Exception) -> None:
        """Keep what must not be lost, fail the rest, and let nobody wait for a disk that fails."""
        if self.observe_failure is not None:
            self.observe_failure()
        trouble, before = told(error, self.path), self.trouble
        self.trouble = trouble
        # After a failed fsync the kernel may have dropped the pages and call the next one a success: only what a new
        # connection reads back counts (fsync(2), "EIO"; LWN 752063). A lock or a full disk leaves the connection as it was.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
        self._suspect = code not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
        self._put_back(entries)
        if before is not None:
            return  # nobody waits, and all that waits is kept: since the first failure nothing else was let in
        log.error("the database cannot be written: %s", trouble)
        for key, entry in list(self._pending.items()):
            if not entry.keep:
                del self._pending[key]
                if batch.committing and entry.undo is not None and key in entries:
                    self._undo(key, entry.undo)
            entry.release(trouble)

    def _undo(self, key: Hashable, undo: Upsert) -> None:
        """Enqueue an undo, unless a newer write under the same key has come."""
        if key not in self._pending:
            self._pending[key] = Entry(undo, keep=True)
            self._wake.set()

    def _put_back(self, entries: dict[Hashable, Entry]) -> None:
        """Put a batch back before what has come since; a newer write under the same key takes the older one's place and waiters."""
        newer, self._pending = self._pending, dict(entries)
        for key, entry in newer.items():
            if (older := entries.get(key)) is not None:
                entry.waiters = [*older.waiters, *entry.waiters]
            self._pending[key] = entry

    def _give_up(self) -> None:
        """Say what is lost; nobody waits any longer."""
        if self._pending:
            log.critical("%d writes are lost: %s", len(self._pending), self.trouble or "the database was closed")
        for entry in self._pending.values():
            entry.release(self.trouble or StoreError(f"{self.path} is closed"))
        self._pending = {}

    def _shut(self) -> StoreError | None:
        if self._task is None or self._over:
            return StoreError(f"{self.path} is closed")
        return None

    # ---- the connection

    async def _connect(self, *, first: bool) -> None:
        """Open the file for writing, on a thread of its own. Raises StoreError, sqlite3.Error; then the thread has ended.

        Being cancelled waits until the file is open or refused, or the thread would go on alone with the lock.
        """
        opening = asyncio.create_task(self._opened(first=first))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.gather(opening, return_exceptions=True)
            raise

    async def _opened(self, *, first: bool) -> None:
        errors: list[Exception] = []

        def connect() -> sqlite3.Connection:
            try:
                if first:
                    self._lock = take(self.path)
                self._writer = open_writer(self.path, self.tuning.busy, first=first)
            except (StoreError, sqlite3.Error, OSError) as error:
                # aiosqlite does not wait for its thread after a connector that raises; it does when it closes.
                errors.append(error)
                return sqlite3.connect(":memory:")
            return self._writer

        self._connection = await aiosqlite.Connection(connect, iter_chunk_size=64)
        if errors:
            await self._disconnect()
            raise errors[0]

    async def _disconnect(self) -> None:
        """End the connection and its thread, whatever state they are in."""
        connection, self._connection, self._writer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error, ValueError):
                await connection.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
