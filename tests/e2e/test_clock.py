"""The wall clock jumps, both ways, under a running daemon: nothing waits for it, no row is lost or out of order, no limit is passed."""

import pytest

from tests.crash import compiler
from tests.e2e.client import Visit, ask, chat
from tests.e2e.conftest import at, rigged
from tests.faults import Faults
from tests.origin import DONE, Gate, completion, delta, stream, usage_event, whole

PATH = "/v1/chat/completions"
HOUR = 3_600 * 10**9
DAY = 24 * HOUR


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A daemon whose clock can be set; it keeps answers for a day, and its caller may use 40 tokens a month."""
    if compiler() is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("clock")
    faults = Faults(folder, folder / "proxyd.db")
    keys = [
        {"name": "tester", "key": "tester-key-0123456789abcdef"},
        {"name": "poor", "key": "poor-key-0123456789abcdef", "budget": {"tokens": 40, "per": "month"}},
    ]

    def config(origin):
        return {"upstreams": {"origin": at(origin)}, "models": {"*": "origin"}, "auth": {"keys": keys}}

    with rigged(folder, config, faults.environ) as found:
        found.daemon.faults = faults
        found.origin.on("*", whole(completion("hi", prompt=4, produced=6)))
        yield found


@pytest.mark.parametrize("jump", [DAY, -DAY, 10_000 * DAY, -10_000 * DAY])
async def test_a_jump_under_a_running_stream_changes_neither_its_end_nor_how_long_it_took(rig, jump):
    faults, model, gate = rig.daemon.faults, f"jump-{jump}", Gate()
    rig.origin.on(model, stream(delta("a"), gate, delta("", finish="stop"), usage_event(4, 6), DONE))
    before = await ask(rig.url, PATH, chat("fine"))
    running = await (await Visit.open(rig.url)).post(PATH, chat(model, stream=True))
    await running.head()
    await running.until(delta("a"))
    with faults.failing(clock_ns=jump):
        during = await ask(rig.url, PATH, chat(model + "-during"))
        gate.open()
        assert (await running.rest()).whole
        assert before.headers["date"] != during.headers["date"]
    await running.leave()
    assert (await ask(rig.url, PATH, chat(model + "-after"))).status == during.status == 200
    (row,) = rig.daemon.rows(model)
    assert (row["state"], row["total_tokens"]) == ("done", 10)
    assert 0 <= row["ttft_ms"] <= row["latency_ms"] < 60_000
    assert abs(row["settled_at"] - row["created_at"] - jump // 1000) < 60 * 10**6  # each as the clock said
    rows = [row for row in rig.daemon.rows() if row["model"].startswith(model)]
    assert [row["model"] for row in rows] == [model, model + "-during", model + "-after"]  # `rows` is in order of id
    assert {row["state"] for row in rows} == {"done"}
    assert (await ask(rig.url, "/ready", method="GET")).status == 200


@pytest.mark.parametrize(("jump", "replayed"), [(HOUR, True), (-HOUR, True), (-400 * DAY, True), (2 * DAY, False)])
async def test_an_answer_is_kept_as_long_as_the_clock_says(rig, jump, replayed):
    model = f"kept-{jump}"
    assert (await ask(rig.url, PATH, chat(model), idempotency_key=model)).status == 200
    with rig.daemon.faults.failing(clock_ns=jump):
        again = await ask(rig.url, PATH, chat(model), idempotency_key=model)
    assert again.status == 200
    assert ("idempotent-replayed" in again.headers) is replayed
    assert len(rig.origin.asked(model)) == (1 if replayed else 2)


async def test_a_clock_that_went_ahead_and_came_back_gives_no_budget_anew(rig):
    async def spend() -> int:
        return (await ask(rig.url, PATH, chat("spend", max_tokens=5), authorization="Bearer poor-key-0123456789abcdef")).status

    spent = [await spend() for _ in range(5)]
    assert spent[0] == 200
    assert spent[-1] == 429
    with rig.daemon.faults.failing(clock_ns=40 * DAY):
        assert await spend() == 200  # another month
    assert await spend() == 429
