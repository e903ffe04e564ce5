"""The writer's thread: one batch, one transaction.

The law of this file: a batch is on disk whole or not at all, and no single write can spoil it for the others.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from proxyd.store.file import StoreError, migrations, prepare, trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

Value: TypeAlias = str | int | float | bytes | None
Op: TypeAlias = Callable[[sqlite3.Connection], object]
"""Work inside the batch's transaction, on the writer's thread: it reads and writes, and must neither begin nor commit. What it
raises undoes its own changes only. It may run again when the disk fails, so it must bear that."""

WIDE = (256, 64, 16, 4)
"""Rows that one INSERT takes, where there are as many. sqlite3 lets go of the interpreter at each statement, and a busy event loop gives
it back only after 5 ms: row by row the writer falls behind for good."""
_ROW = re.compile(r"VALUES (\([^()]*\))")
_REFUSED = (sqlite3.Error, OverflowError, UnicodeError)
"""What sqlite3 raises for values that it cannot store, or that break a constraint."""


class Upsert(NamedTuple):
    """One statement that may be applied twice with the effect of once, and in any order with the batch's other work of its turn."""

    sql: str
    params: tuple[Value, ...]
    turn: int = 0
    """What changes a row that another statement of the batch may have to write before has a later turn than that one."""


@dataclass(slots=True)
class Batch:
    """What one transaction is to do, and what came of it. None in `work` only proves that the disk can be written."""

    work: Sequence[Upsert | Op]
    results: dict[int, object] = field(default_factory=dict)
    """What operations returned, by place in `work`."""
    errors: dict[int, Exception] = field(default_factory=dict)
    """What could not be applied, by place in `work`: its own fault, the rest of the batch is on disk."""
    committing: bool = False
    """COMMIT has begun: if it raises, nobody knows whether the batch is on disk."""


class Writer(sqlite3.Connection):
    """The read-write connection. `commit` applies the handed batch and commits it: one visit to this thread for a whole batch.

    (sqlite3 and aiosqlite know no other public way to run several statements in one visit; a visit costs 50 to 100 µs.)
    """

    batch: Batch | None = None
    synchronous = "FULL"
    """What the next batch is written with: FULL is on disk after COMMIT, NORMAL outlives the process but not a power cut."""
    path = Path()
    _synchronous = ""
    _inode = (0, 0)

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._wide: dict[tuple[str, int], str] = {}

    def commit(self) -> None:
        """Apply and commit the batch, if there is one. Raises sqlite3.Error when the disk fails; then nothing is left half done."""
        batch, self.batch = self.batch, None
        if batch is None:
            super().commit()
            return
        if self._synchronous != self.synchronous:
            self.execute(f"PRAGMA synchronous = {self.synchronous}")
            self._synchronous = self.synchronous
        try:
            self._check_place()
            self.execute("BEGIN IMMEDIATE")
            if batch.work:
                self._apply(batch)
            else:
                self._touch()
            batch.committing = True
            self.execute("COMMIT")
        except BaseException:
            # A failing disk may have rolled back already: in_transaction says so.
            if self.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self.execute("ROLLBACK")
            raise

    def belong(self, path: Path) -> None:
        """Remember which file this connection writes."""
        self.path, self._inode = path, _inode(path)

    def _check_place(self) -> None:
        """Refuse to write into a file that was deleted or replaced meanwhile; SQLite itself does not notice in WAL mode."""
        if _inode(self.path) != self._inode:
            raise StoreError(f"{self.path} was moved or deleted while in use: put it back, or restart proxyd to begin anew")

    def _touch(self) -> None:
        """Write something that changes nothing: the schema's number, again."""
        version = self.execute("PRAGMA user_version").fetchone()[0]
        self.execute(f"PRAGMA user_version = {version:d}")

    def _apply(self, batch: Batch) -> None:
        """Upserts first, turn by turn, those of one statement together; then the operations in their order."""
        groups: dict[tuple[int, str], list[int]] = {}
        operations = []
        for place, work in enumerate(batch.work):
            if isinstance(work, Upsert):
                groups.setdefault((work.turn, work.sql), []).append(place)
            else:
                operations.append((place, work))
        for (_, sql), places in sorted(groups.items(), key=lambda group: group[0][0]):
            self._upsert(sql, places, batch)
        for place, operation in operations:
            self._operate(place, operation, batch)

    def _upsert(self, sql: str, places: list[int], batch: Batch) -> None:
        """Apply upserts of one statement in one go; where one of them is refused, one by one."""
        self.execute("SAVEPOINT piece")
        try:
            self._insert(sql, [batch.work[place].params for place in places])  # type: ignore[union-attr]  # chosen by the caller
        except _REFUSED as error:
            if trouble(error) is not None:
                raise
            self.execute("ROLLBACK TO piece")
            for place in places:
                self._upsert_alone(sql, place, batch)
        self.execute("RELEASE piece")

    def _insert(self, sql: str, rows: list[tuple[Value, ...]]) -> None:
        """Run a statement for each row: in few statements, where it is an INSERT."""
        done = 0
        for size in WIDE:
            while len(rows) - done >= size and (wide := self._widened(sql, size)):
                self.execute(wide, tuple(itertools.chain.from_iterable(rows[done : done + size])))
                done += size
        self.executemany(sql, rows[done:])

    def _widened(self, sql: str, rows: int) -> str:
        """Write an INSERT of one row as one of several; empty for what is none."""
        wide = self._wide.get((sql, rows))
        if wide is None:
            wide, found = _ROW.subn(lambda row: "VALUES " + ", ".join([row[1]] * rows), sql, count=1)
            wide = self._wide[sql, rows] = wide if found else ""
        return wide

    def _upsert_alone(self, sql: str, place: int, batch: Batch) -> None:
        """Apply one upsert; if its values cannot be stored, what remains of them when mended."""
        work = batch.work[place]
        assert isinstance(work, Upsert)  # noqa: S101 - chosen by the caller
        for params in (work.params, mended(work.params)):
            try:
                self.execute(sql, params)
            except _REFUSED as error:
                if trouble(error) is not None:
                    raise
                batch.errors[place] = error
            else:
                batch.errors.pop(place, None)
                return

    def _operate(self, place: int, operation: Op, batch: Batch) -> None:
        """Run one operation; what it raises is its own, unless the disk failed."""
        self.execute("SAVEPOINT piece")
        try:
            batch.results[place] = operation(self)
        except Exception as error:
            if trouble(error) is not None:
                raise
            batch.errors[place] = error
            self.execute("ROLLBACK TO piece")
        self.execute("RELEASE piece")


def open_writer(path: Path, busy: float, *, first: bool) -> Writer:
    """Open the read-write connection, waiting up to `busy` seconds for locks of other processes. Raises StoreError, sqlite3.Error.

    Only the `first` time the file may be new or older; later it must be the database that it was, never an empty one instead.
    """
    writer = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=busy, isolation_level=None, factory=Writer)
    try:
        prepare(writer, path, migrations(), first=first)
        writer.belong(path)
    except BaseException:
        writer.close()
        raise
    return writer


def mended(params: tuple[Value, ...]) -> tuple[Value, ...]:
    """Make values storable that came from outside unchecked: numbers past 64 bits become unknown, lone surrogates a question mark."""
    return tuple(_mended(value) for value in params)


def _mended(value: Value) -> Value:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value


def _inode(path: Path) -> tuple[int, int]:
    """Tell files apart that have the same name."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino
