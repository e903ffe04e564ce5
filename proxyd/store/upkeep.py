"""The care of the database: look at it, check it, copy it, make it smaller. All but `prune` and `vacuum` only read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.store.file import StoreError, migrations, read, reading, told

if TYPE_CHECKING:
    from pathlib import Path

    from proxyd.config.schema import Retain
    from proxyd.store.conversations import Conversations
    from proxyd.store.db import Database
    from proxyd.store.idempotency import Claims
    from proxyd.store.ledger import Ledger

MOST_PROBLEMS = 100
"""Damaged places that `check` tells; one is reason enough."""
ROOM = 2
"""How many times its size a database needs free on its disk to be written anew (sqlite.org/lang_vacuum.html)."""

_MENDED_BRANCHES = {(3, 44): 6, (3, 50): 7}
"""Releases of older branches that got the repair too, by branch (sqlite.org/wal.html, "WAL-reset bug")."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a database is. Sizes in bytes, moments in microseconds since the epoch."""

    size: int
    wal: int
    """What waits beside the file to be taken into it."""
    free: int
    """Of the file, what deleted rows have left and new ones will take; `vacuum` gives it back."""
    schema: int
    rows: dict[str, int]
    """By table."""
    oldest: int | None
    """The first usage row."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` did: rows and conversations deleted, and bytes of answers that are still kept under Idempotency-Keys."""

    usage: int
    conversations: int
    kept: int


@dataclass(frozen=True, slots=True)
class Horizon:
    """Moments before which things are deleted, in microseconds since the epoch; None: they are kept."""

    usage: int | None
    """By the creation of a row."""
    conversations: int | None
    """By the last turn."""


def horizon(retain: Retain, now_us: int) -> Horizon:
    """Tell what `storage.retain` comes to at a moment."""
    return Horizon(*(None if kept is None else now_us - int(kept * 1e6) for kept in (retain.usage, retain.conversations)))


def facts(path: Path) -> Facts:
    """Look at a database while a daemon may be writing it. Reads every table once. Raises StoreError."""

    def look(connection: sqlite3.Connection) -> Facts:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
        rows = {name: _number(connection, f'SELECT count(*) FROM "{name}"') for name in sorted(names)}  # noqa: S608 - names of tables
        return Facts(
            size=_size(connection),
            wal=wal_size(path),
            free=_number(connection, "PRAGMA page_size") * _number(connection, "PRAGMA freelist_count"),
            schema=_number(connection, "PRAGMA user_version"),
            rows=rows,
            oldest=connection.execute("SELECT min(created_at) FROM usage_events").fetchone()[0],
        )

    return read(path, look)


def check(path: Path) -> list[str]:
    """Read every page of a database while a daemon may be writing it, and tell what is wrong; nothing if it is sound.

    About a second for 200 MB; the -wal file grows meanwhile. Raises StoreError where it cannot even be read.
    """
    with reading(path) as connection:
        try:
            connection.execute("BEGIN")
            found = [str(line) for (line,) in connection.execute(f"PRAGMA integrity_check({MOST_PROBLEMS})") if line != "ok"]
            found += [f"a row of {table} points nowhere" for table, *_ in connection.execute("PRAGMA foreign_key_check")]
            return found + _schema_problems(connection)
        except sqlite3.Error as error:
            raise told(error, path) from error


def backup(path: Path, target: Path) -> Facts:
    """Copy a database, of one moment, while a daemon may be writing it; check the copy, and tell what is in it.

    The copy is compact, readable by its owner only, on disk when this returns, and there under its name only if it is whole.
    What is at `target` already is never touched. Raises StoreError.
    """
    folder = target.absolute().parent
    if not folder.is_dir():
        raise StoreError(f"the folder {folder} does not exist: create it, or name another file")
    _absent(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with reading(path) as connection:
                _room(folder, _size(connection))
                connection.execute("VACUUM INTO ?", (str(part),))
            if problems := check(part):
                raise StoreError(f"the copy of {path} is damaged, and was not kept: {problems[0]}")
            found = facts(part)
            _on_disk(part)
            _absent(target)
            part.rename(target)
            _on_disk(folder)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from error
    return found


async def prune(ledger: Ledger, claims: Claims, conversations: Conversations, before: Horizon, now_us: int) -> Pruned:
    """Delete settled usage rows and conversations from before the horizon, and kept answers whose time is up, a few at a time.

    The room that they leave is used again; `vacuum` gives it back to the disk. Raises StoreError.
    """
    kept = await claims.prune(now_us)
    usage = 0 if before.usage is None else await ledger.prune(before.usage)
    forgotten = 0 if before.conversations is None else await conversations.prune(before.conversations)
    return Pruned(usage, forgotten, kept)


async def vacuum(database: Database) -> tuple[int, int]:
    """Write the database anew without its free room; its size before and after, in bytes. Raises StoreError.

    Writes wait meanwhile, about a second for 100 MB, and with `durability: strict` answers wait for their ends.
    """
    path = database.path
    before = await database.read(_size)
    _room(path.absolute().parent, ROOM * before)
    await database.vacuum()
    return before, await database.read(_size)


def free_space(path: Path) -> int:
    """Bytes that an ordinary user may still write on the disk of a file or folder."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def wal_size(path: Path) -> int:
    """Bytes of the -wal file beside a database."""
    with contextlib.suppress(OSError):
        return path.with_name(path.name + "-wal").stat().st_size
    return 0


def library() -> tuple[str, bool]:
    """The version of SQLite, and whether it may damage a file that two connections write or checkpoint at once.

    Versions 3.7.0 to 3.51.2 have the WAL-reset bug, but for the branches of _MENDED_BRANCHES. proxyd writes by one connection
    only, and so is safe with them; a second program that writes into its file is not.
    """
    major, minor, patch = sqlite3.sqlite_version_info
    mended = (major, minor, patch) >= (3, 51, 3) or _MENDED_BRANCHES.get((major, minor), patch + 1) <= patch
    return sqlite3.sqlite_version, not mended


def _schema_problems(connection: sqlite3.Connection) -> list[str]:
    """Compare the tables and indexes with those that the migrations make."""
    sql = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    steps = migrations()[: _number(connection, "PRAGMA user_version")]
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        for step in steps:
            model.executescript(step.sql)
        wanted = dict(model.execute(sql))
    there = dict(connection.execute(sql))
    missing = [f"{name} is missing" for name in wanted if name not in there]
    other = [f"{name} is not as proxyd made it" for name in wanted if name in there and there[name] != wanted[name]]
    return missing + other + [f"{name} is not proxyd's" for name in there if name not in wanted and not name.startswith("sqlite_")]


def _absent(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} is there already, and is left as it is: name a new file")


def _room(folder: Path, needed: int) -> None:
    if (free := free_space(folder)) < needed:
        raise StoreError(f"{folder} has {free // 1_000_000} MB free, and {needed // 1_000_000 + 1} MB are needed: make room")


def _on_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(connection: sqlite3.Connection) -> int:
    return _number(connection, "PRAGMA page_count") * _number(connection, "PRAGMA page_size")


def _number(connection: sqlite3.Connection, sql: str) -> int:
    found: int = connection.execute(sql).fetchone()[0]
    return found
