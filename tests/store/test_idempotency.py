"""Claims on disk: taken once, finished once, recovered after a crash, pruned in small steps."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from proxyd.config.schema import Durability, OnFailure
from proxyd.store import idempotency
from proxyd.store.db import Database, StoreError, Tuning
from proxyd.store.idempotency import Claim, Claims, Kept
from proxyd.store.ledger import Ledger
from tests.store.rows import opened, query, settled
from tests.store.test_ledger import Hand

NOW = 1_800_000_000_000_000
DAY = 86_400_000_000


def claim(key: str = "k", request_id: str = "r1", caller: str = "laptop", expires: int = NOW + DAY) -> Claim:
    return Claim(caller, key, "/v1/chat/completions", True, b"print", request_id, 1, NOW, expires)


def kept(key: str = "k", request_id: str = "r1", state: str = "done", body: bytes | None = b"answer", attempt: int = 1) -> Kept:
    headers = ((b"Content-Type", b"text/event-stream"), (b"X-Odd", b"caf\xe9"))
    return Kept("laptop", key, "/v1/chat/completions", True, b"print", request_id, attempt, state, 200, headers, body)


async def start(path, durability=Durability.STRICT):
    db = Database(path, durability=durability, on_failure=OnFailure.REFUSE, clock=Hand(NOW))
    await db.open()
    await Ledger(db).recover(NOW)
    claims = Claims(db)
    await claims.recover()
    return db, claims


@pytest.fixture
async def store(tmp_path):
    db, claims = await start(tmp_path / "c.db")
    yield db, claims
    await db.close()


async def test_a_claim_is_on_disk_when_it_is_told(store):
    db, claims = store
    await claims.write(claim())
    assert query(db.path, "SELECT caller, key, state, begun FROM idempotency_keys") == [("laptop", "k", "running", 0)]


async def test_what_was_kept_comes_back_byte_for_byte(store):
    _, claims = store
    await claims.write(claim())
    await claims.finish(kept(body=bytes(range(256)) * 100), NOW + DAY)
    assert await claims.look("laptop", "k", NOW) == kept(body=bytes(range(256)) * 100)
    assert await claims.find("laptop", "k", NOW) == await claims.find("anybody", "r1", NOW) == kept(body=bytes(range(256)) * 100)


async def test_a_key_that_is_taken_again_holds_the_new_request_alone(store):
    db, claims = store
    await claims.write(claim())
    await claims.finish(kept(state="broken", attempt=3), NOW + DAY)
    await claims.write(claim(request_id="r2"))
    columns = "request_id, state, begun, status, headers, body"
    assert query(db.path, f"SELECT {columns} FROM idempotency_keys") == [("r2", "running", 0, None, None, None)]
    await claims.finish(kept(), NOW + DAY)  # of the first one: too late
    assert (await claims.look("laptop", "k", NOW)).state == "running"


async def test_callers_share_no_keys(store):
    _, claims = store
    await claims.write(claim())
    await claims.finish(kept(), NOW + DAY)
    assert await claims.look("phone", "k", NOW) is None
    assert await claims.find("third", "k", NOW) is None


async def test_a_look_sees_what_was_put_a_moment_ago(store):
    """A claim that is finished and looked for again in one moment must not seem to run."""
    _, claims = store
    claims.write(claim())
    claims.finish(kept(), NOW + DAY)
    assert await claims.look("laptop", "k", NOW) == kept()


async def test_a_claim_that_nobody_waited_for_does_not_stay_running(store):
    db, claims = store
    written = claims.write(claim())
    await asyncio.sleep(0)
    written.cancel()
    for name in ("second", "third"):
        await claims.write(claim(key=name, request_id=name))
    assert query(db.path, "SELECT state FROM idempotency_keys WHERE key = 'k' AND state = 'running'") == []


@pytest.mark.parametrize(("begun", "state"), [(False, "failed"), (True, "broken")])
async def test_a_crash_leaves_no_claim_running_and_its_attempts_counted(tmp_path, begun, state):
    db, claims = await start(tmp_path / "c.db")
    await claims.write(claim())
    ledger = Ledger(db)
    await ledger.recover(NOW)
    await ledger.settle(settled(opened(ledger.next_id(), request_id="r1", attempt=1)))
    await ledger.open(opened(ledger.next_id(), request_id="r1", attempt=2))
    if begun:
        await claims.begun("r1", wait=True)
    await db.close()
    db, claims = await start(tmp_path / "c.db")
    assert query(db.path, "SELECT state, attempt FROM idempotency_keys") == [(state, 2)]
    assert (await claims.look("laptop", "k", NOW)).attempt == 2
    await db.close()


async def test_the_start_reads_only_what_was_running(store):
    """A gigabyte of kept answers must not be read for it."""
    plan = query(store[0].path, f"EXPLAIN QUERY PLAN {idempotency._RECOVER}")
    assert "idempotency_keys_running" in plan[0][3]


async def test_an_expired_claim_is_none(store):
    _, claims = store
    await claims.write(claim())
    await claims.finish(kept(), NOW + 10)
    assert await claims.look("laptop", "k", NOW + 9) == kept()
    assert await claims.look("laptop", "k", NOW + 10) is None


async def fill(claims: Claims, count: int, size: int) -> None:
    for number in range(count):
        await claims.write(claim(key=f"k{number}", request_id=f"r{number}"))
        await claims.finish(kept(f"k{number}", f"r{number}", body=b"x" * size), NOW + number)


async def test_pruning_deletes_what_has_expired_and_never_what_runs(store):
    db, claims = store
    await fill(claims, 10, 100)
    await claims.write(claim(key="runs", request_id="rr", expires=NOW + 1))
    assert await claims.prune(NOW + 4) == claims.size == 500
    assert query(db.path, "SELECT key FROM idempotency_keys ORDER BY key") == [("k5",), ("k6",), ("k7",), ("k8",), ("k9",), ("runs",)]


async def test_pruning_goes_in_steps_of_rows_and_bytes(store, monkeypatch):
    db, claims = store
    monkeypatch.setattr(idempotency, "PRUNE_ROWS", 4)
    monkeypatch.setattr(idempotency, "PRUNE_BYTES", 250)
    await fill(claims, 10, 100)
    steps, submit = [], db.submit

    def watched(operation, **more):
        future = submit(operation, **more)
        future.add_done_callback(lambda done: steps.append(done.result()))
        return future

    db.submit = watched
    await claims.prune(NOW + 100)
    assert steps == [3, 3, 3, 1, 0]


async def test_an_answer_larger_than_a_step_is_deleted_all_the_same(store, monkeypatch):
    _, claims = store
    monkeypatch.setattr(idempotency, "PRUNE_BYTES", 10)
    await fill(claims, 3, 100)
    assert await claims.prune(NOW + 100) == 0


async def test_the_size_is_bounded_and_the_oldest_go_first(store, monkeypatch):
    db, claims = store
    monkeypatch.setattr(idempotency, "SIZE_LIMIT", 450)
    monkeypatch.setattr(idempotency, "PRUNE_BYTES", 100)
    assert not claims.crowded.is_set()
    await fill(claims, 10, 100)
    assert claims.crowded.is_set()
    assert await claims.prune(NOW - 1) <= 450
    assert not claims.crowded.is_set()
    assert query(db.path, "SELECT key FROM idempotency_keys ORDER BY key") == [("k6",), ("k7",), ("k8",), ("k9",)]


async def test_others_write_between_two_steps(store, monkeypatch):
    _, claims = store
    monkeypatch.setattr(idempotency, "PRUNE_ROWS", 1)
    await fill(claims, 30, 10)
    pruning = asyncio.create_task(claims.prune(NOW + 100))
    await asyncio.sleep(0)
    await claims.write(claim(key="new", request_id="new"))
    assert not pruning.done()
    await pruning


async def test_relaxed_tells_at_once_and_writes_all_the_same(tmp_path):
    db, claims = await start(tmp_path / "c.db", Durability.RELAXED)
    await claims.write(claim())
    assert claims.finish(kept(), NOW + DAY).done()
    await db.close()
    assert query(db.path, "SELECT state FROM idempotency_keys") == [("done",)]


async def test_a_database_that_cannot_be_written_gives_no_claim(tmp_path):
    db = Database(tmp_path / "c.db", tuning=Tuning(busy=0.01, grace=0.1))
    await db.open()
    claims = Claims(db)
    with sqlite3.connect(db.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError):
            await claims.write(claim())
        other.execute("ROLLBACK")
    other.close()
    await db.close()


async def test_a_new_key_needs_no_look_and_a_known_one_does(store):
    db, claims = store
    assert not claims.fresh("laptop", "k0")  # nothing is learnt yet
    await fill(claims, 3, 10)
    await claims.prune(NOW - 1)
    assert [claims.fresh("laptop", key) for key in ("k1", "new", "new")] == [False, True, False]
    await claims.write(claim("new", "rn"))
    assert query(db.path, "SELECT state, attempt FROM idempotency_keys WHERE key = 'new'") == [("running", 1)]
    assert (await claims.look("laptop", "new", NOW)).request_id == "rn"


async def test_a_claim_and_the_row_of_its_call_are_one_commit(store):
    db, claims = store
    ledger = Ledger(db)
    await ledger.recover(NOW)
    await claims.prune(NOW)
    commits = []
    db.observe = lambda _seconds, writes: commits.append(writes)
    assert claims.fresh("laptop", "k")
    written, opened_row = claims.write(claim()), ledger.open(opened(ledger.next_id(), request_id="r1"))
    await asyncio.gather(written, opened_row)
    assert commits == [2]


async def test_what_is_known_is_made_anew_when_much_has_come_and_gone(store, monkeypatch):
    _, claims = store
    monkeypatch.setattr(idempotency, "ROOM", 5)
    await claims.prune(NOW)
    await fill(claims, 10, 10)
    for number in range(10):
        claims.fresh("laptop", f"k{number}")
    await claims.prune(NOW + 4)  # listens for one round
    assert not claims.fresh("laptop", "k2")
    claims.fresh("laptop", "meanwhile")
    await claims.prune(NOW + 4)
    assert [claims.fresh("laptop", key) for key in ("k1", "k7", "meanwhile")] == [True, False, False]


@pytest.mark.parametrize("durability", Durability)
async def test_a_claim_that_ends_in_the_commit_that_takes_it_has_ended(tmp_path, durability):
    """Whatever of others stands before it in the batch."""
    db, claims = await start(tmp_path / "c.db", durability)
    claims.finish(kept("other", "r0"), NOW + DAY)
    claims.begun("r0")
    claims.write(claim())
    claims.begun("r1")
    claims.finish(kept(), NOW + DAY)
    claims.write(claim("broken", "r2"))
    claims.begun("r2")
    assert await claims.look("laptop", "k", NOW) == kept()
    await db.close()
    assert query(db.path, "SELECT state, begun FROM idempotency_keys WHERE key = 'broken'") == [("running", 1)]


async def test_two_who_prune_at_once_forget_no_key(store, monkeypatch):
    """The second one's look into the file is older than what the first one has learnt."""
    db, claims = store
    read, gates = db.read, [asyncio.Event(), asyncio.Event()]
    gate = iter(gates)

    async def slowly(query):
        found = await read(query)
        if isinstance(found, tuple):  # the keys
            await next(gate).wait()
        return found

    monkeypatch.setattr(db, "read", slowly)
    first, second = asyncio.create_task(claims.prune(NOW)), asyncio.create_task(claims.prune(NOW))
    gates[0].set()
    await first
    assert claims.fresh("laptop", "k")
    await claims.write(claim())
    gates[1].set()
    await second
    assert not claims.fresh("laptop", "k")
