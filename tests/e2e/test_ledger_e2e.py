"""The ledger is written ahead of the call and settled before the client has its end; a kill in between is told."""

import asyncio

import pytest

from tests.e2e.client import Visit, ask, becomes, chat, happens
from tests.origin import DONE, HANG, Ending, Gate, completion, delta, stream, usage_event, whole

PATH = "/v1/chat/completions"


async def test_the_open_row_is_on_disk_before_the_upstream_hears_of_it(rig):
    """The origin itself reads the database while it is being called."""
    seen: list[dict] = []
    rig.origin.on("opened", [lambda _: seen.extend(rig.daemon.rows("opened")), *whole(completion("hi"))])
    await ask(rig.url, PATH, chat("opened"))
    (row,) = seen
    assert (row["state"], row["model"], row["upstream"], row["caller"], row["attempt"]) == ("open", "opened", "origin", "tester", 1)
    assert row["settled_at"] is None


async def test_the_settled_row_is_on_disk_before_a_unary_body_arrives(rig):
    rig.origin.on("unary", whole(completion("hi", prompt=4, produced=2)))
    for turn in range(1, 11):
        visit = await (await Visit.open(rig.url)).post(PATH, chat("unary"))
        await visit.head()
        await visit.some()
        rows = rig.daemon.rows("unary")
        assert [row["state"] for row in rows] == ["done"] * turn
        assert (rows[-1]["prompt_tokens"], rows[-1]["completion_tokens"], rows[-1]["total_tokens"]) == (4, 2, 6)
        await visit.leave()


async def test_the_settled_row_is_on_disk_before_done_arrives(rig):
    rig.origin.on("done", stream(delta("a"), delta("", finish="stop"), usage_event(4, 2), DONE))
    for turn in range(1, 11):
        visit = await (await Visit.open(rig.url)).post(PATH, chat("done", stream=True))
        await visit.head()
        await visit.until(DONE)
        rows = rig.daemon.rows("done")
        assert [row["state"] for row in rows] == ["done"] * turn
        assert (rows[-1]["finish_reason"], rows[-1]["total_tokens"], rows[-1]["tokens_source"]) == ("stop", 6, "upstream")
        await visit.leave()


async def test_a_broken_stream_is_settled_before_its_error_event_arrives(rig):
    rig.origin.on("broken", stream(delta("a"), 0.05, ending=Ending.CLOSE))
    visit = await (await Visit.open(rig.url)).post(PATH, chat("broken", stream=True))
    await visit.head()
    await visit.until(b'"error"')
    assert [row["state"] for row in rig.daemon.rows("broken")] == ["failed"]
    await visit.leave()


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (whole(b"{}", status=422), 422),  # told as it came
        ([Ending.CLOSE], 502),  # the upstream was at work: what it has read is counted, in a thread
    ],
)
async def test_attempts_that_failed_are_settled_before_the_error_arrives(rig, script, status):
    model = f"failing-{status}"
    rig.origin.on(model, script)
    for _ in range(4):
        visit = await (await Visit.open(rig.url)).post(PATH, chat(model))
        assert (await visit.head()).status == status
        assert {row["state"] for row in rig.daemon.rows(model)} == {"failed"}
        await visit.leave()


async def test_kill_9_in_mid_stream_is_interrupted_at_the_next_start(daemon, origin):
    """What was known of a running stream (checkpointed once a second) is kept and billed."""
    gate = Gate()
    origin.on("m", stream(delta("Many words were"), delta(" said already"), gate, DONE))
    origin.on("fine", whole(completion("hi")))
    await ask(daemon.url, PATH, chat("fine"))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("m", stream=True))
    await visit.head()
    await visit.until(delta(" said already"))
    await becomes(lambda: (daemon.rows("m")[0]["completion_tokens"] or 0) >= 3)
    daemon.kill()
    assert not (await visit.rest()).whole
    await visit.leave()
    assert [row["state"] for row in daemon.rows()] == ["done", "open"]
    daemon.start()
    rows = daemon.rows()
    assert [row["state"] for row in rows] == ["done", "interrupted"]
    assert rows[1]["completion_tokens"] >= 3
    assert rows[1]["prompt_tokens"] > 0
    assert rows[1]["tokens_source"] in ("counted", "estimated")
    assert rows[1]["settled_at"] is not None
    await ask(daemon.url, PATH, chat("fine"))
    ids = [row["id"] for row in daemon.rows()]
    assert ids == sorted(set(ids))


async def test_sigterm_lets_a_running_stream_end_and_takes_no_new_work(daemon, origin):
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, delta("b"), delta("", finish="stop"), DONE))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("m", stream=True))
    await visit.head()
    await visit.until(delta("a"))
    assert daemon.child is not None
    daemon.child.process.terminate()

    async def refused() -> bool:
        try:
            return (await ask(daemon.url, "/ready", method="GET")).status == 503
        except (OSError, EOFError):
            return True

    async with asyncio.timeout(HANG):
        while not await refused():  # noqa: ASYNC110 - another process is asked
            await asyncio.sleep(0.01)
    gate.open()
    answer = await visit.rest()
    assert (answer.body, answer.whole) == (delta("a") + delta("b") + delta("", finish="stop") + DONE, True)
    await visit.leave()
    await asyncio.to_thread(daemon.stop)
    assert [row["state"] for row in daemon.rows()] == ["done"]


async def test_a_drain_that_takes_too_long_ends_streams_as_broken(launch, origin):
    daemon = launch(upstreams={"origin": {"kind": "openai", "base_url": origin.url}}, models={"*": "origin"}, streams={"drain": "200ms"})
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, DONE))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("m", stream=True))
    await visit.head()
    await visit.until(delta("a"))
    assert daemon.child is not None
    daemon.child.process.terminate()
    answer = await visit.rest()
    assert b"[DONE]" not in answer.body
    assert not answer.whole
    await visit.leave()
    await asyncio.to_thread(daemon.stop)
    await happens(origin.connections[0].closed)
    (row,) = daemon.rows()
    assert row["state"] != "open"
    assert row["completion_tokens"] > 0


async def test_relaxed_writes_the_same_rows_a_moment_later(launch, origin):
    daemon = launch(
        upstreams={"origin": {"kind": "openai", "base_url": origin.url}},
        models={"*": "origin"},
        storage={"url": "sqlite:///proxyd.db", "durability": "relaxed"},
    )
    origin.on("m", whole(completion("hi", prompt=4, produced=2)))
    for _ in range(20):
        assert (await ask(daemon.url, PATH, chat("m"))).status == 200
    rows = daemon.settled("m", 20)
    assert [(row["state"], row["total_tokens"]) for row in rows] == [("done", 6)] * 20
    daemon.stop()
    assert len(daemon.rows()) == 20


async def test_a_refused_request_leaves_no_row(rig):
    """Rows are exchanges that reached for an upstream; refusals are none."""
    await ask(rig.url, PATH, chat("refused"), authorization="Bearer wrong")
    await ask(rig.url, PATH, b"{")
    assert rig.daemon.rows("refused") == []
    assert rig.origin.asked("refused") == []


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "streamed"])
async def test_many_at_once_each_have_exactly_one_row(rig, streamed):
    model = f"many-{streamed}"
    rig.origin.on(model, stream(delta("a"), delta("", finish="stop"), usage_event(4, 2), DONE) if streamed else whole(completion("hi")))
    answers = await asyncio.gather(*(ask(rig.url, PATH, chat(model, stream=streamed)) for _ in range(100)))
    assert all(answer.whole and answer.status == 200 for answer in answers)
    rows = rig.daemon.rows(model)
    assert [row["state"] for row in rows] == ["done"] * 100
    assert {row["request_id"] for row in rows} == {answer.headers["x-request-id"] for answer in answers}
