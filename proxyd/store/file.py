"""The database file: where it is, whose it is, how it is opened, and which schema it has."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

WAL_LIMIT = 64 * 1024 * 1024
"""Bytes that the -wal file is cut back to after a checkpoint."""

CHECKED_WHOLE = 64 * 1024 * 1024
"""Bytes up to which a database is checked page by page at start (about 0.1 s); beyond, only `proxyd db check` does it."""

_MIGRATION = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process holds its lock: end that process (a sqlite3 shell, a backup, another program)",
    sqlite3.SQLITE_LOCKED: "another process holds its lock: end that process (a sqlite3 shell, a backup, another program)",
    sqlite3.SQLITE_FULL: "the disk is full: make room in {folder}",
    sqlite3.SQLITE_READONLY: "it cannot be written: make the file, {folder} and its file system writable for this user",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: {folder} must exist and be writable for this user",
    sqlite3.SQLITE_PERM: "this user may not open it: make the file and {folder} writable for this user",
    sqlite3.SQLITE_IOERR: "the disk failed: look at the kernel's log and at {folder}",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore a backup, or move it aside to begin anew; nothing was changed",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database: storage.url names the wrong file, or it is damaged; nothing was changed",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
    sqlite3.SQLITE_PROTOCOL: "its lock protocol failed: the file must be on a local disk, not on a network file system",
    sqlite3.SQLITE_INTERRUPT: "the operation was interrupted",
}
"""What is wrong with the file or its disk, not with what was to be written, by primary result code; and what to do."""


_FOLDER = "{path} is a folder: storage.url must name a file"


class StoreError(Exception):
    """The database cannot be used now. The message says which file, why, and what to do."""


class InUseError(StoreError):
    """Another proxyd writes the file."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A step of the schema. `number` counts from 1 without gaps and is the `user_version` that the step ends with."""

    number: int
    sql: str


def database_path(url: str, config_dir: Path, state_directory: str | None) -> Path:
    """Find the file of `storage.url`: `sqlite:////absolute`, or `sqlite:///relative` to `state_directory`, else to `config_dir`.

    `state_directory` is systemd's $STATE_DIRECTORY, of which the first of several counts (systemd.exec(5)). Raises StoreError.
    """
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator or not rest.startswith("/") or "\0" in rest:
        raise StoreError(f"storage.url is {scheme}://…: write sqlite:///FILE or sqlite:////absolute/path/FILE")
    name = rest[1:]
    if not name or name.endswith("/") or Path(name).name in {".", ".."}:
        raise StoreError("storage.url names no file: write sqlite:///proxyd.db")
    first = state_directory.split(":")[0] if state_directory else ""
    return Path(first or config_dir) / name


def trouble(error: BaseException) -> int | None:
    """Tell whether the file or its disk failed: the primary result code if so, None if it is the statement's own fault."""
    if not isinstance(error, sqlite3.Error):
        return None
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code if code in _ADVICE else None


def told(error: BaseException, path: Path) -> StoreError:
    """Put an error of the database in words: which file, why, and what to do."""
    if isinstance(error, StoreError):
        return error
    code = trouble(error)
    if code is None:
        return StoreError(f"{path}: {error}")
    return StoreError(f"{path}: {_ADVICE[code].format(folder=path.absolute().parent)} ({error})")


def take(path: Path) -> int:
    """Make the file if it is missing (readable by its owner only), and take the lock that one process holds for its lifetime.

    The lock is flock(2) on a file beside the database, for SQLite's own locks do not keep a second daemon from starting and
    declaring the first one's running exchanges interrupted. It ends with the process, or when the returned descriptor is
    closed. Raises StoreError.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StoreError(f"{path}: the folder {folder} does not exist: create it, or change storage.url")
    if path.is_dir():
        raise StoreError(_FOLDER.format(path=path))
    _expect_own(path, os.R_OK | os.W_OK)
    try:
        lock = os.open(path.with_name(path.name + "-lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: the folder {folder} cannot be written ({error.strerror}): make it writable for this user") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except BlockingIOError as error:
        os.close(lock)
        raise InUseError(f"{path} is in use by another proxyd: stop that one, or give this one its own storage.url") from error
    except OSError as error:
        os.close(lock)
        raise StoreError(f"{path}: cannot be created ({error.strerror}): make {folder} writable for this user, with room in it") from error
    return lock


def _expect_own(path: Path, mode: int) -> None:
    """Say whose the file is where this user may not open it so: SQLite only says that it cannot. Raises StoreError."""
    if path.exists() and not os.access(path, mode, effective_ids=True):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return  # it is nobody's to write: what opens it tells
        owner = str(path.stat().st_uid)
        with contextlib.suppress(KeyError):
            owner = path.owner()
        raise StoreError(
            f"{path} is not for this user to {'write' if mode & os.W_OK else 'read'}: run this as its owner, {owner}, or as root"
        )


def prepare(connection: sqlite3.Connection, path: Path, steps: Sequence[Migration], *, first: bool) -> None:
    """Set a writing connection up; the `first` time, check the pages of a small file and bring the schema up to date.

    Raises StoreError, sqlite3.Error.
    """
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: its file system cannot do write-ahead logging (journal mode {mode}): put it on a local disk")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    if not first:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != len(steps):
            raise StoreError(f"{path} was replaced while in use: put the database back, or restart proxyd to begin anew")
        return
    if path.stat().st_size <= CHECKED_WHOLE:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{path}: {_ADVICE[sqlite3.SQLITE_CORRUPT]} ({found})")
    migrate(connection, path, steps)


def migrate(connection: sqlite3.Connection, path: Path, steps: Sequence[Migration]) -> None:
    """Run the steps that the file has not seen, each in a transaction of its own. Forward only.

    Raises StoreError for a file that is newer than `steps`, or another program's; sqlite3.Error when a step fails, which then
    has changed nothing.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(steps):
        raise StoreError(
            f"{path} has schema {version}, and this proxyd knows {len(steps)}: run the newer proxyd, or restore an older backup"
        )
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        raise StoreError(f"{path} holds another program's tables: give proxyd a file of its own in storage.url")
    for step in steps[version:]:
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{step.sql}\nPRAGMA user_version = {step.number};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def migrations() -> list[Migration]:
    """Read the steps that this proxyd knows, in order."""
    folder = resources.files("proxyd.store") / "migrations"
    found = ((match, entry) for entry in folder.iterdir() if (match := _MIGRATION.fullmatch(entry.name)))
    return sorted((Migration(int(match[1]), entry.read_text("utf-8")) for match, entry in found), key=lambda step: step.number)


def read(path: Path, query: Callable[[sqlite3.Connection], T]) -> T:
    """Run a query on a read-only connection of its own, in one short transaction, while a daemon may be writing. Raises StoreError.

    Everything that `query` reads is of one moment. It should take well under a second: the -wal file grows meanwhile.
    """
    with reading(path) as connection:
        version, known = connection.execute("PRAGMA user_version").fetchone()[0], len(migrations())
        try:
            connection.execute("BEGIN")
            return query(connection)
        except sqlite3.Error as error:
            if version < known and trouble(error) is None:  # it asks for what a step brings that the file has not seen
                raise StoreError(f"{path} has schema {version}, which the next start of this proxyd brings up to {known}") from error
            raise told(error, path) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a read-only connection, refusing a file whose schema is newer than this proxyd. Raises StoreError."""
    if path.is_dir():
        raise StoreError(_FOLDER.format(path=path))
    if not path.is_file():
        raise StoreError(f"{path} is not there: no daemon has run with this configuration yet, or storage.url has changed")
    _expect_own(path, os.R_OK)
    connection = None
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5, isolation_level=None)
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        known = len(migrations())
        if version > known:
            raise StoreError(f"{path} has schema {version}, and this proxyd knows {known}: run the newer proxyd")
        if version == 0:
            raise StoreError(f"{path} is not a database of proxyd")
        yield connection
    except sqlite3.Error as error:
        raise told(error, path) from error
    finally:
        if connection is not None:
            connection.close()
