"""The one writer: groups, results, order, cancellation, the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from proxyd.config.schema import Durability, OnFailure
from proxyd.store.db import Database, StoreError, Tuning, Upsert
from tests.store.rows import query

PUT = "INSERT INTO notes (id, text) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET text = excluded.text"
FORGET = "DELETE FROM notes WHERE id = ?"


def put(number, text):
    return Upsert(PUT, (number, text))


def table(connection):
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")


def threads_left():
    """The writer's threads that have not ended; one that has said its last word gets a moment for it."""
    found = [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]
    for thread in found:
        thread.join(5)
    return [thread for thread in found if thread.is_alive()]


@pytest.fixture
async def db(tmp_path):
    """A database with a table of notes."""
    db = Database(tmp_path / "l.db")
    await db.open()
    await db.submit(table)
    yield db
    await db.close()
    assert threads_left() == []


def notes(db):
    return dict(query(db.path, "SELECT id, text FROM notes"))


async def test_all_that_waits_is_one_commit(db):
    commits = []
    db.observe = lambda seconds, writes: commits.append(writes)
    await asyncio.gather(*(db.put(number, put(number, "a")) for number in range(300)))
    assert commits == [300]
    assert len(notes(db)) == 300


async def test_a_batch_has_a_bound(tmp_path):
    db = Database(tmp_path / "l.db", tuning=Tuning(batch=10))
    await db.open()
    await db.submit(table)
    commits = []
    db.observe = lambda seconds, writes: commits.append(writes)
    await asyncio.gather(*(db.put(number, put(number, "a")) for number in range(25)))
    assert commits == [10, 10, 5]
    await db.close()


async def test_a_later_write_under_the_same_key_takes_the_place_of_a_waiting_one_and_its_waiters(db):
    commits = []
    db.observe = lambda seconds, writes: commits.append(writes)
    await asyncio.gather(db.put("k", put(1, "first")), db.put("k", put(1, "second")))
    assert notes(db) == {1: "second"}
    assert commits == [1]


async def test_an_operation_gives_its_result_when_it_is_on_disk(db):
    """The claim's pattern: who inserts first has won, the other one gets the row."""

    def claim(text):
        def work(connection):
            won = connection.execute("INSERT INTO notes VALUES (1, ?) ON CONFLICT DO NOTHING", (text,)).rowcount == 1
            return None if won else connection.execute("SELECT text FROM notes WHERE id = 1").fetchone()[0]

        return work

    assert await asyncio.gather(db.submit(claim("a")), db.submit(claim("b"))) == [None, "a"]
    assert notes(db) == {1: "a"}


async def test_what_an_operation_raises_reaches_its_caller_and_nobody_else(db):
    def wrong(connection):
        raise KeyError("judged")

    results = await asyncio.gather(db.submit(wrong), db.put(1, put(1, "a")), return_exceptions=True)
    assert isinstance(results[0], KeyError)
    assert results[1] is None
    assert notes(db) == {1: "a"}
    assert db.healthy


async def test_a_kept_write_that_the_schema_refuses_is_logged_and_its_waiter_goes_on(db, caplog):
    await db.put(1, put(1, None))
    assert notes(db) == {}
    assert "refused by the schema" in caplog.text


async def test_a_write_whose_waiter_was_cancelled_before_it_began_is_not_made(db):
    future = db.put(1, put(1, "a"), keep=False, undo=Upsert(FORGET, (1,)))
    future.cancel()
    await db.put(2, put(2, "b"))
    assert notes(db) == {2: "b"}


async def test_a_write_whose_waiter_is_cancelled_under_way_is_taken_back(db):
    """The operation holds the batch open until the waiter has been cancelled."""
    begun, cancelled = threading.Event(), threading.Event()

    def hold(connection):
        begun.set()
        assert cancelled.wait(10)

    held = db.submit(hold)
    future = db.put(1, put(1, "a"), keep=False, undo=Upsert(FORGET, (1,)))
    await asyncio.to_thread(begun.wait, 10)
    future.cancel()
    cancelled.set()
    await held
    await db.put(2, put(2, "b"))
    assert notes(db) == {2: "b"}


async def test_a_cancelled_write_that_was_settled_since_stays(db):
    begun, cancelled = threading.Event(), threading.Event()

    def hold(connection):
        begun.set()
        assert cancelled.wait(10)

    held = db.submit(hold)
    future = db.put(1, put(1, "open"), keep=False, undo=Upsert(FORGET, (1,)))
    await asyncio.to_thread(begun.wait, 10)
    future.cancel()
    settled = db.put(1, put(1, "settled"))
    cancelled.set()
    await asyncio.gather(held, settled)
    await db.put(2, put(2, "b"))
    assert notes(db) == {1: "settled", 2: "b"}


async def test_closing_writes_what_waits_and_refuses_what_comes_later(db, caplog):
    futures = [db.put(number, put(number, "a"), wait=False) for number in range(2000)]
    await db.close()
    assert all(future.done() for future in futures)
    assert len(notes(db)) == 2000
    with pytest.raises(StoreError, match="is closed"):
        await db.submit(table)
    await db.put(1, put(1, "late"))
    assert "is lost" in caplog.text
    assert not db.healthy
    assert isinstance(db.refusal(), StoreError)


async def test_a_cancelled_close_still_writes_everything_and_ends_the_thread(db):
    for number in range(2000):
        db.put(number, put(number, "a"), wait=False)
    closing = asyncio.ensure_future(db.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await db.close()
    assert len(notes(db)) == 2000


def test_a_loop_that_is_torn_down_writes_everything_and_ends_the_thread(tmp_path):
    """Nobody closes: asyncio.run cancels the writer, with a batch in flight and writes waiting."""

    async def main():
        db = Database(tmp_path / "l.db", tuning=Tuning(batch=64))
        await db.open()
        await db.submit(table)
        first = db.put("first", put(5000, "a"))
        for number in range(2000):
            db.put(number, put(number, "a"), wait=False)
        await first

    asyncio.run(main())
    assert query(tmp_path / "l.db", "SELECT count(*) FROM notes") == [(2001,)]
    assert threads_left() == []


async def test_being_cancelled_while_opening_leaves_nothing_open(tmp_path):
    db = Database(tmp_path / "l.db")
    opening = asyncio.ensure_future(db.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert threads_left() == []
    again = Database(tmp_path / "l.db")
    await again.open()
    await again.close()


async def test_too_much_waiting_refuses_new_work_but_never_the_end_of_old_work(tmp_path):
    db = Database(tmp_path / "l.db", tuning=Tuning(backlog=5))
    await db.open()
    await db.submit(table)
    ends = [db.put(number, put(number, "a")) for number in range(8)]
    assert db.backlog == 8
    assert "8 writes wait" in str(db.refusal())
    with pytest.raises(StoreError, match="8 writes wait"):
        await db.submit(table)
    await asyncio.gather(*ends)
    assert db.refusal() is None
    assert len(notes(db)) == 8
    await db.close()


async def test_durability_changes_while_running(db):
    async def synchronous():
        return await db.submit(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0])

    assert await synchronous() == 2
    db.configure(Durability.RELAXED, OnFailure.SERVE)
    assert await synchronous() == 1
    db.configure(Durability.STRICT, OnFailure.REFUSE)
    assert await synchronous() == 2


async def test_readers_see_one_moment_and_do_not_hinder_the_writer(db):
    await db.put(1, put(1, "a"))
    looked, written = threading.Event(), threading.Event()

    def twice(connection):
        first = connection.execute("SELECT count(*) FROM notes").fetchone()
        looked.set()
        assert written.wait(10)
        return first, connection.execute("SELECT count(*) FROM notes").fetchone()

    reading = asyncio.ensure_future(db.read(twice))
    await asyncio.to_thread(looked.wait, 10)
    await db.put(2, put(2, "b"))
    written.set()
    assert await reading == ((1,), (1,))


async def test_the_connection_is_as_the_specification_says(db):
    def settings(connection):
        names = ("journal_mode", "synchronous", "foreign_keys", "journal_size_limit", "busy_timeout")
        return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    assert await db.submit(settings) == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "journal_size_limit": 64 * 1024 * 1024, "busy_timeout": 5000,
    }  # fmt: skip
