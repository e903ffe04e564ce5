"""The disk fails, for real: full, locked, read-only, erring, gone. Nothing waits for it, nothing is lost, and it heals by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from proxyd.config.schema import Durability, OnFailure
from proxyd.store.db import Database, StoreError, Tuning
from proxyd.store.ledger import Ledger
from tests.store.rows import opened, query, settled, states

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Tuning(busy=0.05, retry_first=0.01, retry_last=0.05, grace=0.2)


async def start(path, on_failure=OnFailure.REFUSE, durability=Durability.STRICT):
    db = Database(path, on_failure=on_failure, durability=durability, tuning=QUICK)
    await db.open()
    ledger = Ledger(db)
    await ledger.recover(1)
    return db, ledger


async def until(condition) -> None:
    """Wait for something that happens by itself; ten seconds are a failure."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the write lock."""
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        yield


async def test_under_a_lock_new_work_is_refused_and_running_work_finishes_and_is_written_after(tmp_path, caplog):
    db, ledger = await start(tmp_path / "l.db")
    running, refused = opened(ledger.next_id()), opened(ledger.next_id())
    await ledger.open(running)
    with locked(db.path):
        await ledger.settle(settled(running))
        assert not ledger.healthy
        assert not ledger.accepting
        assert db.backlog == 1
        with pytest.raises(StoreError, match="another process holds its lock"):
            await ledger.open(refused)
        assert states(db.path) == {running.id: "open"}
    await until(lambda: ledger.healthy and not db.backlog)
    assert states(db.path) == {running.id: "done"}
    await ledger.open(refused)
    await db.close()
    assert "cannot be written" in caplog.text
    assert "can be written again" in caplog.text


async def test_the_open_that_meets_the_lock_is_refused_and_leaves_nothing(tmp_path):
    db, ledger = await start(tmp_path / "l.db")
    row = opened(ledger.next_id())
    with locked(db.path), pytest.raises(StoreError):
        await ledger.open(row)
    await until(lambda: ledger.healthy)
    await db.close()
    assert states(db.path) == {}


async def test_where_new_work_is_served_its_rows_wait_in_order_and_are_written_after(tmp_path):
    db, ledger = await start(tmp_path / "l.db", OnFailure.SERVE)
    rows = [opened(ledger.next_id()) for _ in range(1200)]
    with locked(db.path):
        await asyncio.gather(*map(ledger.open, rows))
        assert ledger.accepting
        assert not ledger.healthy
        await asyncio.gather(*(ledger.settle(settled(row)) for row in rows[:700]))
        assert db.backlog == 1200
    await until(lambda: ledger.healthy and not db.backlog)
    found = states(db.path)
    assert list(found) == [row.id for row in rows]
    assert [found[row.id] for row in rows] == ["done"] * 700 + ["open"] * 500
    await db.close()


async def test_what_waits_is_bounded_where_new_work_is_served(tmp_path):
    db = Database(tmp_path / "l.db", on_failure=OnFailure.SERVE, tuning=Tuning(busy=0.05, backlog=50, retry_last=0.05, grace=0.2))
    await db.open()
    ledger = Ledger(db)
    await ledger.recover(1)
    rows = [opened(ledger.next_id()) for _ in range(50)]
    with locked(db.path):
        await asyncio.gather(*map(ledger.open, rows))
        with pytest.raises(StoreError, match="50 writes wait"):
            await ledger.open(opened(ledger.next_id()))
        await ledger.settle(settled(rows[0]))
        assert db.backlog == 50
    await until(lambda: not db.backlog)
    await db.close()
    assert len(states(db.path)) == 50


async def test_closing_on_a_failing_disk_ends_and_says_what_is_lost(tmp_path, caplog):
    db, ledger = await start(tmp_path / "l.db")
    row = opened(ledger.next_id())
    await ledger.open(row)
    with locked(db.path):
        await ledger.settle(settled(row))
        await db.close()
    assert "1 writes are lost" in caplog.text
    assert states(db.path) == {row.id: "open"}


async def test_closing_waits_for_a_disk_that_heals_in_time(tmp_path):
    db, ledger = await start(tmp_path / "l.db")
    row = opened(ledger.next_id())
    await ledger.open(row)
    db.tuning = Tuning(busy=0.05, grace=30)
    with locked(db.path):
        await ledger.settle(settled(row))
        closing = asyncio.ensure_future(db.close())
        await until(db._closing.is_set)
    await closing
    assert states(db.path) == {row.id: "done"}


async def test_an_erring_disk_gets_a_new_connection_and_everything_is_there_in_the_end(tmp_path):
    """RLIMIT_FSIZE makes write(2) fail with EFBIG, which SQLite takes for an I/O error."""
    db, ledger = await start(tmp_path / "l.db")
    first = db._connection
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, before[1]))
    try:
        while db.trouble is None:
            row = opened(ledger.next_id())
            with contextlib.suppress(StoreError):
                await ledger.open(row)
                rows.append(row)
                await ledger.settle(settled(row))
        assert "the disk failed" in str(db.trouble)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await until(lambda: ledger.healthy and not db.backlog)
    assert db._connection is not first
    await db.close()
    assert states(db.path) == {row.id: "done" for row in rows}
    assert query(db.path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_commit_whose_outcome_is_unknown_is_not_applied_twice(tmp_path, monkeypatch):
    """COMMIT succeeds, and is told as failed: settled rows are written again, refused opens are taken back."""
    db, ledger = await start(tmp_path / "l.db")
    running, refused = opened(ledger.next_id()), opened(ledger.next_id())
    await ledger.open(running)

    def lie(connection):
        """Turn the end of this batch's commit into an error, once."""
        real = type(connection).execute

        def execute(self, sql, *params):
            result = real(self, sql, *params)
            if sql == "COMMIT":
                monkeypatch.undo()
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error
            return result

        monkeypatch.setattr(type(connection), "execute", execute)

    lying = db.submit(lie)
    opening, settling = ledger.open(refused), ledger.settle(settled(running))
    with pytest.raises(StoreError):
        await lying
    with pytest.raises(StoreError, match="the disk failed"):
        await opening
    await settling
    assert states(db.path) == {running.id: "done", refused.id: "open"}
    await until(lambda: ledger.healthy and not db.backlog)
    assert states(db.path) == {running.id: "done"}
    await db.close()


async def test_a_database_that_was_moved_away_is_noticed_not_replaced_and_taken_up_again(tmp_path):
    db, ledger = await start(tmp_path / "l.db")
    row = opened(ledger.next_id())
    await ledger.open(row)
    db.path.rename(tmp_path / "elsewhere.db")
    (tmp_path / "l.db-wal").rename(tmp_path / "elsewhere.db-wal")
    await ledger.settle(settled(row))
    assert not ledger.healthy
    assert "moved or deleted" in str(db.trouble)
    await asyncio.sleep(0.1)
    assert not db.path.exists()
    (tmp_path / "elsewhere.db-wal").rename(tmp_path / "l.db-wal")
    (tmp_path / "elsewhere.db").rename(db.path)
    await until(lambda: ledger.healthy and not db.backlog)
    assert states(db.path) == {row.id: "done"}
    await db.close()


async def test_relaxed_rows_wait_too(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    db, ledger = await start(tmp_path / "l.db", durability=Durability.RELAXED)
    row = opened(ledger.next_id())
    with locked(db.path):
        await ledger.open(row)
        await until(lambda: not ledger.healthy)
        with pytest.raises(StoreError):
            await ledger.open(opened(ledger.next_id()))
        await ledger.settle(settled(row))
    await until(lambda: ledger.healthy and not db.backlog)
    assert states(db.path) == {row.id: "done"}
    await db.close()


def ran(*command: object) -> bool:
    """Run a command; tell whether it did what it should."""
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or not ran("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place):
        pytest.skip("mounting a small disk takes root")
    yield place
    assert ran("umount", "--lazy", place)


async def test_a_full_disk_refuses_loses_nothing_and_heals_when_there_is_room(small_disk):
    db, ledger = await start(small_disk / "l.db")
    running = [opened(ledger.next_id()) for _ in range(20)]
    await asyncio.gather(*map(ledger.open, running))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    while db.trouble is None:
        running.append(opened(ledger.next_id()))
        try:
            await ledger.open(running[-1])
        except StoreError:
            running.pop()
    assert "the disk is full: make room in" in str(db.trouble)
    await asyncio.gather(*(ledger.settle(settled(row)) for row in running))
    assert db.backlog - len(running) in {0, 1}  # and perhaps the refused open, to be taken back
    ballast.unlink()
    await until(lambda: ledger.healthy and not db.backlog)
    assert states(db.path) == {row.id: "done" for row in running}
    await db.close()
    assert query(db.path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_read_only_disk_is_told_at_start(small_disk):
    db, ledger = await start(small_disk / "l.db")
    row = opened(ledger.next_id())
    await ledger.open(row)
    await db.close()
    assert ran("mount", "-o", "remount,ro", small_disk)
    with pytest.raises(StoreError, match="make it writable for this user"):
        await Database(db.path).open()
    assert ran("mount", "-o", "remount,rw", small_disk)
    db, ledger = await start(small_disk / "l.db")
    assert states(db.path) == {row.id: "interrupted"}
    await db.close()
