"""The care of the database: copies that are whole, checks that find, room that is given back, and nothing ever overwritten."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from proxyd.model import Usage
from proxyd.store import upkeep
from proxyd.store.conversations import Conversations
from proxyd.store.db import Database
from proxyd.store.file import StoreError, migrate, migrations
from proxyd.store.idempotency import Claim, Claims
from proxyd.store.ledger import Ledger
from tests.store.rows import opened, query, settled

DAY = 86_400_000_000


@pytest.fixture
async def db(tmp_path):
    """An open database with a hundred settled rows, the first half of them old."""
    database = Database(tmp_path / "l.db")
    await database.open()
    rows = [settled(opened(n, created_at=n * DAY), usage=Usage(1, 2, 3), error="x" * 500) for n in range(1, 101)]
    await asyncio.gather(*map(Ledger(database).settle, rows))
    yield database
    await database.close()


async def test_a_copy_made_while_the_daemon_writes_is_of_one_moment_and_compact(db, tmp_path):
    stop = asyncio.Event()

    async def write():
        n = 1000
        while not stop.is_set():
            n += 2
            await asyncio.gather(*(Ledger(db).settle(settled(opened(m))) for m in (n, n + 1)))

    writing = asyncio.create_task(write())
    copies = [tmp_path / f"copy{n}.db" for n in range(3)]
    for copy in copies:
        await asyncio.to_thread(upkeep.backup, db.path, copy)
    stop.set()
    await writing
    for copy in copies:
        assert query(copy, "SELECT count(*) FROM usage_events WHERE id <= 100") == [(100,)]
        assert query(copy, "SELECT count(*) % 2 FROM usage_events WHERE id > 100") == [(0,)], "half of a commit"
        assert upkeep.check(copy) == []
        assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []


async def test_a_copy_is_a_database_that_proxyd_opens(db, tmp_path):
    found = upkeep.backup(db.path, tmp_path / "copy.db")
    assert (found.rows["usage_events"], found.schema, found.oldest) == (100, len(migrations()), DAY)
    again = Database(tmp_path / "copy.db")
    await again.open()
    assert await Ledger(again).recover(1) == 0
    await again.close()


async def test_what_is_there_is_never_overwritten_and_nothing_is_left_behind(db, tmp_path):
    target = tmp_path / "notes"
    target.write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        upkeep.backup(db.path, target)
    assert target.read_text() == "mine"
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is there already"):
        upkeep.backup(db.path, dangling)
    with pytest.raises(StoreError, match="does not exist: create it"):
        upkeep.backup(db.path, tmp_path / "none" / "copy.db")
    assert not list(tmp_path.glob("*.part"))


async def test_a_copy_needs_room_and_says_how_much(db, tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "free_space", lambda _path: 1000)
    with pytest.raises(StoreError, match=r"0 MB free, and 1 MB are needed: make room"):
        upkeep.backup(db.path, tmp_path / "copy.db")
    with pytest.raises(StoreError, match="make room"):
        await upkeep.vacuum(db)


async def test_a_damaged_database_is_found_out_and_its_copy_is_not_kept(db, tmp_path):
    await db.close()
    damaged = bytearray(db.path.read_bytes())
    at = damaged.index(b"x" * 400)
    damaged[at - at % 4096 : at - at % 4096 + 64] = b"\xa5" * 64
    db.path.write_bytes(damaged)
    try:
        found = upkeep.check(db.path)
    except StoreError as error:
        found = [str(error)]
    assert found
    with pytest.raises(StoreError, match="damaged"):
        upkeep.backup(db.path, tmp_path / "copy.db")
    assert db.path.read_bytes() == damaged
    assert not (tmp_path / "copy.db").exists()


async def test_a_lost_index_and_a_strange_table_are_told(db):
    await db.close()
    with contextlib.closing(sqlite3.connect(db.path)) as connection:
        connection.execute("DROP INDEX usage_events_caller")
        connection.execute("CREATE TABLE recipes (x)")
    assert upkeep.check(db.path) == ["usage_events_caller is missing", "recipes is not proxyd's"]


@pytest.mark.parametrize("schema", range(1, len(migrations()) + 1))
async def test_every_schema_since_the_first_is_sound_and_is_brought_up_to_date_with_its_rows(tmp_path, schema):
    path = tmp_path / "l.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, path, migrations()[:schema])
        connection.execute(
            "INSERT INTO usage_events (id, request_id, attempt, state, caller, endpoint, protocol, model, upstream, upstream_model, "
            "tokens_source, streamed, bytes_in, bytes_out, created_at) VALUES "
            "(7, 'r', 1, 'open', 'c', 'e', 'json', 'm', 'u', 'm', 'none', 0, 0, 0, 5)"
        )
    assert upkeep.check(path) == []
    database = Database(path)
    await database.open()
    assert await Ledger(database).recover(9) == 1
    await database.close()
    assert upkeep.check(path) == []
    assert upkeep.facts(path).schema == len(migrations())
    assert query(path, "SELECT id, state FROM usage_events") == [(7, "interrupted")]


async def test_old_rows_and_late_answers_go_and_their_room_is_given_back(db):
    claim = Claim("c", "k", "e", streamed=False, fingerprint=b"f", request_id="r", attempt=1, created_at=1, expires_at=2)
    await Claims(db).write(claim)
    await Claims(db).recover()
    done = await upkeep.prune(Ledger(db), Claims(db), Conversations(db), upkeep.Horizon(51 * DAY, None), 100 * DAY)
    assert (done.usage, done.kept) == (50, 0)
    assert query(db.path, "SELECT min(id) FROM usage_events") == [(51,)]
    assert query(db.path, "SELECT count(*) FROM idempotency_keys") == [(0,)]
    assert upkeep.facts(db.path).free > 0
    before, after = await upkeep.vacuum(db)
    assert after < before
    assert db.path.stat().st_size == after
    assert upkeep.facts(db.path).free == 0
    assert upkeep.check(db.path) == []


async def test_writes_that_come_during_a_vacuum_are_on_disk_after_it(db):
    vacuuming = asyncio.ensure_future(upkeep.vacuum(db))
    await asyncio.gather(*(Ledger(db).settle(settled(opened(n))) for n in range(200, 260)))
    await vacuuming
    assert query(db.path, "SELECT count(*) FROM usage_events WHERE id >= 200") == [(60,)]
    await db.close()
    with pytest.raises(StoreError, match="is closed"):
        await db.vacuum()


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("3.40.1", True),
        ("3.44.5", True),
        ("3.44.6", False),
        ("3.45.0", True),
        ("3.50.7", False),
        ("3.51.2", True),
        ("3.51.3", False),
        ("3.53.0", False),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(monkeypatch, version, affected):
    monkeypatch.setattr(sqlite3, "sqlite_version", version)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", tuple(map(int, version.split("."))))
    assert upkeep.library() == (version, affected)
