"""Reports: sums that are right, beside a daemon that writes."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.model import Source, State, Usage
from proxyd.store.db import Database, StoreError
from proxyd.store.ledger import Ledger
from proxyd.store.usage import By, Line, Period, Report, report
from tests.store.rows import opened, settled

DAY = 86_400_000_000
FIRST = 20_000 * DAY  # 2024-10-04


async def write(path, rows):
    db = Database(path)
    await db.open()
    await asyncio.gather(*map(Ledger(db).settle, rows))
    await db.close()


def sample():
    """Three requests: one tried twice, one that failed, one cut short."""
    return [
        settled(opened(1, "a", caller="ann", created_at=FIRST), State.FAILED, Usage(), tokens_source=Source.NONE, ttft_ms=None),
        settled(opened(2, "a", attempt=2, caller="ann", upstream="ollama", created_at=FIRST), ttft_ms=100.0, cost_nano=5, currency="USD"),
        settled(opened(3, "b", caller="bob", created_at=FIRST + DAY), State.FAILED, Usage(10, 0, 10), tokens_source=Source.ESTIMATED),
        settled(
            opened(4, "c", caller="bob", model="slow", conversation_id="c_1", created_at=FIRST + DAY),
            *(State.CANCELLED, Usage(1, 2, 3, 4, 5)),
            tokens_source=Source.COUNTED,
            ttft_ms=300.0,
            cost_nano=7,
            currency="EUR",
        ),
    ]


async def test_the_sums_are_right(tmp_path):
    await write(tmp_path / "l.db", sample())
    found = report(tmp_path / "l.db", By.CALLER, Period())
    bob, ann = found.lines
    assert (bob.key, bob.requests, bob.failed, bob.attempts) == ("bob", 2, 1, 2)
    assert (bob.prompt_tokens, bob.completion_tokens, bob.total_tokens, bob.cached_tokens, bob.reasoning_tokens) == (11, 2, 13, 4, 5)
    assert bob.sources == {Source.ESTIMATED: 1, Source.COUNTED: 1}
    assert (bob.cost_nano, bob.unpriced) == ({"EUR": 7}, 1)
    assert (ann.key, ann.requests, ann.failed, ann.attempts, ann.unpriced) == ("ann", 1, 0, 2, 0)
    assert (ann.share(Source.UPSTREAM), ann.share(Source.NONE), ann.share(Source.COUNTED)) == (0.5, 0.5, 0.0)
    total = found.total
    assert (total.requests, total.failed, total.attempts, total.total_tokens) == (3, 1, 4, 20)
    assert total.cost_nano == {"EUR": 7, "USD": 5}
    assert (total.ttft_ms, total.latency_ms) == (200.0, 12.5)


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        (By.MODEL, ["fast", "slow"]),
        (By.CALLER, ["bob", "ann"]),
        (By.UPSTREAM, ["openai", "ollama"]),
        (By.DAY, ["2024-10-04", "2024-10-05"]),
        (By.CONVERSATION, [None, "c_1"]),
    ],
)
async def test_each_grouping_has_its_lines(tmp_path, by, keys):
    await write(tmp_path / "l.db", sample())
    assert [line.key for line in report(tmp_path / "l.db", by, Period()).lines] == keys


async def test_a_request_that_failed_over_failed_at_the_one_and_not_at_the_other(tmp_path):
    await write(tmp_path / "l.db", sample()[:2])
    lines = report(tmp_path / "l.db", By.UPSTREAM, Period()).lines
    assert {line.key: (line.requests, line.failed) for line in lines} == {"openai": (1, 1), "ollama": (1, 0)}


async def test_a_request_that_failed_every_time_failed_once(tmp_path):
    rows = [settled(opened(number, "a", attempt=number), State.FAILED) for number in (1, 2, 3)]
    await write(tmp_path / "l.db", rows)
    found = report(tmp_path / "l.db", By.MODEL, Period())
    assert [(line.requests, line.failed, line.attempts) for line in (*found.lines, found.total)] == [(1, 1, 3), (1, 1, 3)]


async def test_a_period_takes_its_start_and_leaves_its_end(tmp_path):
    await write(tmp_path / "l.db", sample())

    def counted(since, until):
        return report(tmp_path / "l.db", By.DAY, Period(since, until)).total.attempts

    assert [counted(FIRST, FIRST + DAY), counted(FIRST + 1, None), counted(None, FIRST), counted(None, None)] == [2, 2, 0, 4]


async def test_one_callers_report_has_nobody_elses(tmp_path):
    await write(tmp_path / "l.db", sample())
    found = report(tmp_path / "l.db", By.CALLER, Period(), "ann")
    assert [line.key for line in found.lines] == ["ann"]
    assert (found.total.requests, found.total.cost_nano) == (1, {"USD": 5})


async def test_an_empty_ledger_is_an_empty_report(tmp_path):
    await write(tmp_path / "l.db", [])
    assert report(tmp_path / "l.db", By.MODEL, Period()) == Report((), Line(None))


async def test_a_report_is_made_while_a_daemon_writes(tmp_path):
    db = Database(tmp_path / "l.db")
    await db.open()
    ledger = Ledger(db)
    await ledger.recover(1)
    await asyncio.gather(*map(ledger.settle, sample()))
    assert (await asyncio.to_thread(report, db.path, By.MODEL, Period())).total.requests == 3
    await ledger.open(opened(ledger.next_id()))
    assert (await asyncio.to_thread(report, db.path, By.MODEL, Period())).total.requests == 4
    await db.close()


def test_no_database_is_said(tmp_path):
    with pytest.raises(StoreError, match="is not there"):
        report(tmp_path / "l.db", By.MODEL, Period())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 2**40), st.none() | st.integers(-5, 2**40), st.sampled_from(["USD", "EUR"])),
        max_size=20,
    )
)
def test_the_groups_add_up_to_the_total(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("sums") / "l.db"
    rows = [
        settled(opened(number, model=model), usage=Usage(tokens, 0, tokens), cost_nano=cost, currency=None if cost is None else currency)
        for number, (model, tokens, cost, currency) in enumerate(facts, 1)
    ]
    asyncio.run(write(path, rows))
    found = report(path, By.MODEL, Period())
    costs: dict[str, int] = defaultdict(int)
    for line in found.lines:
        for currency, nano in line.cost_nano.items():
            costs[currency] += nano
    assert found.total.cost_nano == costs
    assert found.total.total_tokens == sum(line.total_tokens for line in found.lines) == sum(tokens for _, tokens, _, _ in facts)
    assert found.total.requests == sum(line.requests for line in found.lines) == len(facts)
    assert found.total.unpriced == sum(cost is None for _, _, cost, _ in facts)
