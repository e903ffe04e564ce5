"""The ledger's rows: ahead of the call, settled once, recovered after a crash."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.clock import Clock
from proxyd.config.schema import Durability, OnFailure
from proxyd.model import Source, State, Usage
from proxyd.store.db import Database, StoreError
from proxyd.store.ledger import FIXED, GROWING, OPENING, Ledger, _all, _opening
from tests.store.rows import opened, query, settled, states

NOW = 1_800_000_000_000_000


class Hand(Clock):
    """A clock whose wall time is set by hand."""

    __slots__ = ("now",)

    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def now_us(self) -> int:
        return self.now


async def start(path, durability=Durability.STRICT, on_failure=OnFailure.REFUSE, now=NOW):
    db = Database(path, durability=durability, on_failure=on_failure, clock=Hand(now))
    await db.open()
    ledger = Ledger(db)
    await ledger.recover(now)
    return db, ledger


@pytest.fixture
async def strict(tmp_path):
    db, ledger = await start(tmp_path / "l.db")
    yield db, ledger
    await db.close()


@pytest.fixture
async def relaxed(tmp_path):
    db, ledger = await start(tmp_path / "l.db", Durability.RELAXED)
    yield db, ledger
    await db.close()


async def test_the_row_has_every_column_of_the_table_and_every_value_comes_back(strict):
    db, ledger = strict
    columns = {name for (name,) in query(db.path, "SELECT name FROM pragma_table_info('usage_events')")}
    assert columns == {*FIXED, *GROWING}
    row = settled(
        opened(ledger.next_id(), conversation_id="c_1"),
        *(State.CANCELLED, Usage(1, 2, 3, 4, 5, 6, 7, 8)),
        service_tier="flex",
        upstream_request_id="u",
        cost_nano=10,
        currency="USD",
        price_source="route",
        price_version="1",
        error="client_gone",
        finish_reason="stop",
        ttft_ms=1.25,
        tokens_source=Source.COUNTED,
        upstream_model="real",
    )
    await ledger.settle(row)
    (found,) = query(db.path, f"SELECT {', '.join((*FIXED, *GROWING))} FROM usage_events")
    assert found == _all(row)
    assert None not in found


async def test_an_open_row_is_on_disk_before_its_future_is_done(strict):
    db, ledger = strict
    row = opened(ledger.next_id())
    await ledger.open(row)
    (found,) = query(db.path, f"SELECT {', '.join(OPENING)} FROM usage_events")
    assert found == _opening(row)
    await ledger.settle(settled(row))
    assert states(db.path) == {row.id: "done"}


async def test_relaxed_futures_are_done_at_once_and_the_two_writes_become_one(relaxed):
    db, ledger = relaxed
    commits = []
    db.observe = lambda seconds, writes: commits.append(writes)
    row = opened(ledger.next_id())
    assert ledger.open(row).done()
    assert ledger.settle(settled(row)).done()
    assert db.backlog == 1
    await db.close()
    assert commits == [1]
    assert states(db.path) == {row.id: "done"}


async def test_relaxed_rows_reach_the_disk_by_themselves(relaxed):
    db, ledger = relaxed
    written = asyncio.Event()
    db.observe = lambda seconds, writes: written.set()
    row = opened(ledger.next_id())
    ledger.open(row)
    await asyncio.wait_for(written.wait(), 10)
    assert states(db.path) == {row.id: "open"}


async def test_a_row_is_settled_once(strict):
    db, ledger = strict
    row = opened(ledger.next_id())
    await ledger.open(row)
    await ledger.settle(settled(row))
    await ledger.settle(settled(row, State.FAILED))
    await ledger.open(opened(row.id, row.request_id))
    assert states(db.path) == {row.id: "done"}


async def test_a_row_that_was_never_opened_is_settled_all_the_same(strict):
    db, ledger = strict
    row = settled(opened(ledger.next_id()))
    await ledger.settle(row)
    assert states(db.path) == {row.id: "done"}


async def test_what_the_upstream_claims_cannot_lose_the_row(strict):
    db, ledger = strict
    row = settled(opened(ledger.next_id()), usage=Usage(2**70, 4, 2**70), finish_reason="\ud800")
    await ledger.settle(row)
    assert query(db.path, "SELECT prompt_tokens, completion_tokens, finish_reason FROM usage_events") == [(None, 4, "?")]


async def test_checkpoints_of_all_running_rows_are_one_commit_and_survive_a_crash(strict):
    db, ledger = strict
    rows = [opened(ledger.next_id()) for _ in range(1500)]
    await asyncio.gather(*map(ledger.open, rows))
    commits = []
    db.observe = lambda seconds, writes: commits.append(writes)
    for row in rows:
        row.usage, row.tokens_source = Usage(10, 20, 30), Source.ESTIMATED
    rows[0].state = State.DONE
    ledger.checkpoint(rows)
    await db.close()
    assert commits == [1]
    db, ledger = Database(db.path, clock=Hand()), None
    await db.open()
    assert await Ledger(db).recover(NOW) == 1500
    found = query(
        db.path, "SELECT state, total_tokens, tokens_source, settled_at, count(*) FROM usage_events GROUP BY 1, 2, 3, 4 ORDER BY 5"
    )
    assert found == [("interrupted", None, "none", NOW, 1), ("interrupted", 30, "estimated", NOW, 1499)]
    await db.close()


async def test_a_checkpoint_that_waits_for_a_slow_disk_is_not_lost_to_the_next_one(strict):
    """Each tells of what has changed only: a stream that fell silent is in the first one alone."""
    db, ledger = strict
    silent, other = opened(ledger.next_id()), opened(ledger.next_id())
    await asyncio.gather(ledger.open(silent), ledger.open(other))
    disk = threading.Event()
    slow = db.submit(lambda _: disk.wait(10))
    await asyncio.sleep(0.01)  # the writer has taken it
    for row in (silent, other):
        row.usage, row.tokens_source = Usage(5, 6, 11), Source.ESTIMATED
        ledger.checkpoint([row])
    disk.set()
    await slow
    await db.submit(lambda _: None)
    assert query(db.path, "SELECT total_tokens, tokens_source FROM usage_events ORDER BY id") == [(11, "estimated")] * 2


async def test_what_one_upstream_claims_cannot_spoil_the_checkpoint_of_the_others(strict):
    db, ledger = strict
    rows = [opened(ledger.next_id()) for _ in range(2)]
    await asyncio.gather(*map(ledger.open, rows))
    for row, tokens in zip(rows, (2**70, 6), strict=True):
        row.usage, row.tokens_source = Usage(5, tokens, 11), Source.UPSTREAM
    ledger.checkpoint(rows)
    await db.submit(lambda _: None)
    assert query(db.path, "SELECT prompt_tokens, completion_tokens FROM usage_events ORDER BY id") == [(5, None), (5, 6)]


async def test_a_late_checkpoint_does_not_reopen_a_row(strict):
    db, ledger = strict
    row = opened(ledger.next_id())
    await ledger.open(row)
    ledger.checkpoint([row])
    await ledger.settle(settled(row))
    assert query(db.path, "SELECT state, total_tokens FROM usage_events") == [("done", 7)]


async def test_recovering_leaves_settled_rows_alone(strict):
    db, ledger = strict
    one, two = opened(ledger.next_id()), opened(ledger.next_id())
    await asyncio.gather(ledger.open(one), ledger.open(two))
    await ledger.settle(settled(one))
    assert await Ledger(db).recover(NOW) == 1
    assert states(db.path) == {one.id: "done", two.id: "interrupted"}


async def test_recovering_reads_only_the_open_rows(strict):
    """A start must not take longer because the ledger is long."""
    db, _ = strict
    plan = query(db.path, "EXPLAIN QUERY PLAN UPDATE usage_events SET state = 'interrupted', settled_at = ? WHERE state = 'open'", 1)
    assert "usage_events_open" in plan[0][3]


async def test_an_open_whose_waiter_left_leaves_no_row(strict):
    db, ledger = strict
    row = opened(ledger.next_id())
    ledger.open(row).cancel()
    await ledger.settle(settled(opened(ledger.next_id(), "other")))
    assert row.id not in states(db.path)


async def test_ids_are_above_the_file_even_when_the_clock_went_back(tmp_path):
    db, ledger = await start(tmp_path / "l.db")
    first = ledger.next_id()
    assert first == NOW // 1000 << 20
    await ledger.open(opened(first))
    await db.close()
    db, ledger = await start(tmp_path / "l.db", now=NOW - 86_400_000_000)
    assert [ledger.next_id() for _ in range(3)] == [first + 1, first + 2, first + 3]
    await db.close()


def test_no_id_before_recovering(tmp_path):
    with pytest.raises(RuntimeError, match="recover"):
        Ledger(Database(tmp_path / "l.db")).next_id()


@given(st.lists(st.integers(min_value=0, max_value=2**52), min_size=1))
def test_ids_always_rise_and_fit_63_bits_whatever_the_clock_does(times):
    clock = Hand()
    ledger = Ledger(Database.__new__(Database))
    ledger._db.clock = clock
    ledger._last = 0
    ids = []
    for clock.now in times:
        ids.append(ledger.next_id())
    assert ids == sorted(set(ids))
    assert all(0 < number < 2**63 for number in ids)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "settle", "checkpoint", "cancel", "rest", "restart"]),
        st.integers(0, 4),
        st.sampled_from([State.DONE, State.FAILED, State.CANCELLED]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(STEPS, st.sampled_from(Durability))
def test_any_order_of_writes_comes_to_what_was_said_last(tmp_path_factory, steps, durability):
    """A model of five attempts beside the real file: settled once, never reopened, nothing lost over restarts."""
    path = tmp_path_factory.mktemp("model") / "l.db"

    async def play():
        expected: dict[int, str] = {}
        db, ledger = await start(path, durability)
        base = 1 << 61
        for verb, number, state in steps:
            row = opened(base + number)
            if verb == "open" and row.id not in expected:
                await ledger.open(row)
                expected[row.id] = "open"
            elif verb == "settle" and expected.get(row.id, "open") == "open":
                ledger.settle(settled(row, state))
                expected[row.id] = state.value
            elif verb == "checkpoint":
                ledger.checkpoint([row])
            elif verb == "cancel" and row.id not in expected and durability is Durability.STRICT:
                ledger.open(row).cancel()
            elif verb == "rest":
                await asyncio.sleep(0.001)
            elif verb == "restart":
                await db.close()
                db, ledger = await start(path, durability)
                expected = {known: "interrupted" if was == "open" else was for known, was in expected.items()}
        await db.close()
        assert states(path) == expected

    asyncio.run(play())


async def test_a_closed_ledger_refuses(tmp_path):
    db, ledger = await start(tmp_path / "l.db")
    await db.close()
    assert not ledger.accepting
    with pytest.raises(StoreError, match="is closed"):
        await ledger.open(opened(1))
