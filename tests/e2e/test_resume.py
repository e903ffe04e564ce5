"""Lose your connection, keep your answer: streams that go on without their client, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.client import Visit, ask, chat, happens, request
from tests.e2e.conftest import rigged
from tests.e2e.once import EVENTS, OTHER, PATH, again, answering, begun, served
from tests.origin import DONE, HANG, LAST_CHUNK, Ending, Gate, chunk, completion, delta, head, stream, whole


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A daemon with two callers and one origin."""
    with rigged(tmp_path_factory.mktemp("once"), served) as it:
        yield it


@pytest.fixture
def own(launch, origin):
    """Daemons of one test's own, with settings of its own."""
    return lambda **more: launch(**served(origin, **more))


@pytest.mark.parametrize("by", ["id", "key", "preference"])
async def test_lose_the_connection_and_keep_the_answer(rig, by):
    gate = Gate()
    model = f"resume-{by}"
    rig.origin.on(model, stream(*EVENTS[:2], gate, *EVENTS[2:]))
    named = {"Prefer": "resumable"} if by == "preference" else {"Idempotency_Key": model}
    first = await (await Visit.open(rig.url)).post(PATH, chat(model, stream=True), **named)
    answer = await first.head()
    assert answer.headers.get("preference-applied") == ("resumable" if by == "preference" else None)
    await first.until(EVENTS[1])
    await first.leave(reset=True)
    name = model if by == "key" else answer.headers["x-request-id"]
    back = asyncio.create_task(again(rig, name, 1))
    await asyncio.sleep(0.05)
    gate.open()
    rest = await back
    assert (rest.status, rest.whole, rest.body) == (200, True, b"".join([EVENTS[1], *EVENTS[2:4], DONE]))
    assert rest.headers["x-request-id"] == answer.headers["x-request-id"]
    whole_again = await again(rig, name)
    assert whole_again.body == EVENTS[0] + rest.body
    assert (await again(rig, name, 5)).body == b""
    assert [row["state"] for row in rig.daemon.rows(model)] == ["done"]
    assert len(rig.origin.asked(model)) == 1


async def test_a_resumed_stream_may_be_lost_again_as_often_as_it_takes(rig):
    gates = [Gate() for _ in EVENTS]
    rig.origin.on("often", stream(*(step for event, gate in zip(EVENTS, gates, strict=True) for step in (gate, event))))
    gates[0].open()
    visit = await begun(rig, "often", "often")
    got = delta("a")
    for received, gate in enumerate(gates[1:4], start=1):
        await visit.leave(reset=True)
        visit = await Visit.open(rig.url)
        await visit.say(request("GET", f"/v1/streams/often?received={received}"))
        await visit.head()
        gate.open()
        got += await visit.until(EVENTS[received])
    for gate in gates:
        gate.open()
    answer = await visit.rest()
    await visit.leave()
    assert got + answer.body.removeprefix(EVENTS[3]) == b"".join([*EVENTS[:4], DONE])


async def test_lines_of_json_are_resumed_by_lines(rig):
    lines = [b'{"message":{"content":"a"},"done":false}\n', b'{"message":{"content":"b"},"done":false}\n', b'{"message":{},"done":true}\n']
    script = [head(200, {"content-type": "application/x-ndjson", "transfer-encoding": "chunked"}), *map(chunk, lines), LAST_CHUNK]
    rig.origin.on("lines", script)
    first = await ask(rig.url, PATH, chat("lines", stream=True), Idempotency_Key="lines")
    assert first.body == b"".join(lines)
    assert [(await again(rig, "lines", n)).body for n in range(4)] == [b"".join(lines[n:]) for n in range(4)]
    assert (await again(rig, "lines", 4)).status == 400
    second = await ask(rig.url, PATH, chat("lines", stream=True), Idempotency_Key="lines")
    assert (second.body, second.headers["content-type"]) == (first.body, "application/x-ndjson")


async def test_head_says_how_far_it_is(rig):
    gate = Gate()
    rig.origin.on("head", stream(*EVENTS[:2], gate, *EVENTS[2:]))
    first = await begun(rig, "head", "head")
    await first.until(EVENTS[1])

    async def far() -> tuple:
        visit = await Visit.open(rig.url)
        await visit.say(request("HEAD", "/v1/streams/head"))
        answer = await visit.head()
        await visit.leave()
        return answer.status, answer.headers["stream-events"], answer.headers["stream-state"]

    assert await far() == (200, "2", "running")
    gate.open()
    await first.rest()
    await first.leave()
    assert await far() == (200, "5", "done")


async def test_delete_stops_the_upstream_and_the_row_is_settled_as_cancelled(rig):
    rig.origin.on("stop", stream(delta("a"), ending=Ending.HANG), answering(True, "b"))
    first = await begun(rig, "stop", "stop")
    answer = await again(rig, "stop", method="DELETE")
    assert (answer.status, answer.json()["stopped"]) == (200, True)
    rest = await first.rest()
    assert not rest.whole
    assert b"[DONE]" not in rest.body
    assert b'"code":"client_gone"' in rest.body
    await first.leave()
    await happens(rig.origin.asked("stop")[0].connection.closed)
    (row,) = rig.daemon.settled("stop")
    assert (row["state"], row["completion_tokens"]) == ("cancelled", 1)
    assert (await again(rig, first.answer.headers["x-request-id"], method="DELETE")).status == 409
    second = await ask(rig.url, PATH, chat("stop", stream=True), Idempotency_Key="stop")
    assert (second.whole, delta("b") in second.body) == (True, True)


async def test_delete_before_the_first_byte_is_told_to_who_waits(rig):
    gate = Gate()
    rig.origin.on("stop-early", [gate])
    waiting = asyncio.create_task(ask(rig.url, PATH, chat("stop-early", stream=True), Idempotency_Key="stop-early"))
    await happens(gate.reached)
    assert (await again(rig, "stop-early", method="DELETE")).status == 200
    answer = await waiting
    assert (answer.status, answer.error()["code"], answer.headers["x-should-retry"]) == (499, "client_gone", "false")
    assert rig.daemon.settled("stop-early")[0]["state"] == "cancelled"


async def test_only_who_began_it_may_resume_or_stop_it(rig):
    gate = Gate()
    rig.origin.on("private", stream(delta("a"), gate, *EVENTS[1:4], DONE))
    first = await begun(rig, "private", "private")
    identity = first.answer.headers["x-request-id"]
    for method in ("GET", "DELETE"):
        assert (await again(rig, identity, method=method, authorization=OTHER)).error()["code"] == "stream_forbidden"
        assert (await again(rig, "private", method=method, authorization=OTHER)).status == 404
        assert (await again(rig, identity, method=method, authorization="Bearer wrong")).status == 401
    gate.open()
    assert (await first.rest()).whole
    await first.leave()
    assert (await again(rig, identity, authorization=OTHER)).status == 403


async def test_an_own_key_comes_before_anothers_request_id(rig):
    gate = Gate()
    rig.origin.on("shadow", stream(delta("a"), gate, *EVENTS[1:4], DONE), answering(True, "mine"))
    first = await begun(rig, "shadow", "shadow")
    identity = first.answer.headers["x-request-id"]
    mine = await ask(rig.url, PATH, chat("shadow", stream=True), Idempotency_Key=identity, authorization=OTHER)
    assert (await again(rig, identity, authorization=OTHER)).body == mine.body
    gate.open()
    await first.rest()
    await first.leave()


@pytest.mark.parametrize("received", ["-1", "x", "1.0", "%D9%A1", "9" * 13, "+1"])
async def test_what_is_no_number_of_events_is_400(rig, received):
    answer = await again(rig, "nothing", received)
    assert (answer.status, answer.error()["param"]) == (400, "received")


async def test_a_place_beyond_the_end_is_400(rig):
    gate, early = Gate(), Gate()
    rig.origin.on("beyond", [early, *stream(delta("a"), gate, *EVENTS[1:4], DONE)])
    first = await (await Visit.open(rig.url)).post(PATH, chat("beyond", stream=True), Idempotency_Key="beyond")
    await happens(early.reached)
    assert (await again(rig, "beyond", 1)).status == 400  # nothing has come yet
    early.open()
    await first.head()
    await first.until(delta("a"))
    assert (await again(rig, "beyond", 2)).error()["param"] == "received"
    gate.open()
    await first.rest()
    await first.leave()
    assert [(await again(rig, "beyond", count)).status for count in (5, 6, 999999)] == [200, 400, 400]


async def test_what_is_not_there_is_404_and_what_is_no_stream_409(rig):
    rig.origin.on("document", whole(completion("x")))
    await ask(rig.url, PATH, chat("document"), Idempotency_Key="document")
    for method in ("GET", "DELETE"):
        assert (await again(rig, "nowhere", method=method)).status == 404
        assert (await again(rig, "document", method=method)).error()["code"] == "stream_conflict"
    plain = rig.origin.on("plain", answering(True)) or await ask(rig.url, PATH, chat("plain", stream=True))
    assert (await again(rig, plain.headers["x-request-id"])).status == 404


async def test_a_refused_stream_says_its_refusal_to_who_comes_back(rig):
    rig.origin.on("refused", whole(b'{"error":{"message":"no","type":"t","param":null,"code":null}}', status=422))
    first = await ask(rig.url, PATH, chat("refused", stream=True), Idempotency_Key="refused")
    assert (first.status, (await again(rig, "refused")).body) == (422, first.body)


async def test_who_comes_back_to_a_broken_stream_gets_what_there_was_and_the_break(rig):
    rig.origin.on("broken-back", stream(*EVENTS[:2], 0.02, ending=Ending.CLOSE))
    first = await ask(rig.url, PATH, chat("broken-back", stream=True), Idempotency_Key="broken-back")
    back = await again(rig, first.headers["x-request-id"], 1)
    assert (back.status, back.whole, back.body) == (200, False, first.body[len(EVENTS[0]) :])
    assert b'"error"' in back.body
    at_its_end = await again(rig, first.headers["x-request-id"], 3)  # the error is an event, too
    assert (at_its_end.status, at_its_end.whole, at_its_end.body) == (200, False, b"")


async def test_nobody_who_listens_for_the_grace_ends_it(own, origin):
    daemon = own(resume={"grace": "200ms"})
    origin.on("m", stream(delta("a"), ending=Ending.HANG))
    visit = await begun(daemon, "m", "k")
    await visit.leave(reset=True)
    await happens(origin.asked("m")[0].connection.closed)
    (row,) = daemon.settled("m")
    assert (row["state"], row["completion_tokens"]) == ("cancelled", 1)


@pytest.mark.parametrize("streamed", [True, False])
async def test_where_the_route_drains_it_is_read_to_its_end_all_the_same(own, origin, streamed):
    """The exact usage is what that route is for, whether or not the request had a key."""
    daemon = own(resume={"grace": "100ms"}, models={"n": {"upstream": "origin", "on_disconnect": "drain"}})
    gate = Gate()
    said = completion("all of it", prompt=11, produced=3)
    whole_answer = [head(200, {"content-type": "application/json", "content-length": str(len(said))}), gate, said]
    origin.on("n", stream(EVENTS[0], gate, *EVENTS[1:]) if streamed else whole_answer)
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("n", stream=streamed), Idempotency_Key="n")
    if streamed:
        await visit.head()
        await visit.until(EVENTS[0])
    else:
        await happens(gate.reached)
    await visit.leave()
    assert not await asyncio.to_thread(origin.asked("n")[0].connection.closed.wait, 0.5)  # five times the grace
    gate.open()
    (row,) = daemon.settled("n")
    assert (row["state"], row["tokens_source"]) == ("done", "upstream")


async def test_what_ended_unheard_is_kept_for_the_grace_and_no_longer(own, origin):
    daemon = own(resume={"grace": "300ms"})
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, *EVENTS[1:4], DONE))
    visit = await begun(daemon, "m", "k")
    await visit.leave(reset=True)
    gate.open()
    daemon.settled("m")
    there = ["running"]
    async with asyncio.timeout(HANG):
        while there:
            state = (await ask(daemon.ops, "/state", method="GET")).json()["idempotency"]
            there = [name for name in ("running", "ended") if state[name]]


async def test_who_is_back_within_the_grace_keeps_it_running(own, origin):
    daemon = own(resume={"grace": "600ms"})
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, *EVENTS[1:4], DONE))
    visit = await begun(daemon, "m", "k")
    await visit.leave(reset=True)
    back = asyncio.create_task(again(daemon, "k", 1))
    await asyncio.sleep(1.0)
    assert not back.done()
    gate.open()
    assert (await back).whole


async def test_past_the_tape_is_410_and_what_nobody_can_have_any_more_is_stopped(own, origin):
    daemon = own(resume={"tape": "2KiB"})
    gate, more = Gate(), Gate()
    origin.on("m", stream(delta("a"), delta("x" * 4000), gate, *EVENTS[1:4], DONE), answering(True, "b"))
    visit = await begun(daemon, "m", "k")
    await visit.until(b"xxx")
    joined, resumed = await ask(daemon.url, PATH, chat("m", stream=True), Idempotency_Key="k"), await again(daemon, "k", 1)
    assert [(answer.status, answer.error()["code"]) for answer in (joined, resumed)] == [(410, "stream_gone")] * 2
    gate.open()
    answer = await visit.rest()
    assert (answer.whole, answer.body) == (True, b"".join([delta("a"), delta("x" * 4000), *EVENTS[1:4], DONE]))
    await visit.leave()
    replayed = await ask(daemon.url, PATH, chat("m", stream=True), Idempotency_Key="k")
    assert (replayed.status, replayed.headers["x-should-retry"], len(origin.asked("m"))) == (410, "false", 1)
    origin.on("n", stream(delta("a"), more, delta("x" * 4000), ending=Ending.HANG), answering(True, "b"))
    visit = await begun(daemon, "n", "n")
    await visit.leave(reset=True)
    more.open()
    await happens(origin.asked("n")[0].connection.closed)  # at once, not after the grace
    daemon.settled("n")
    assert (await ask(daemon.url, PATH, chat("n", stream=True), Idempotency_Key="n")).whole


async def test_an_end_in_a_hurry_never_makes_a_whole_answer_run_twice(own, origin):
    """A second SIGTERM while the last tokens are counted: row and claim agree."""
    daemon = own()
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, *EVENTS[1:4], DONE), answering(True, "b"))
    visit = await begun(daemon, "m", "k")
    assert daemon.child is not None
    gate.open()
    for _ in range(2):
        daemon.child.process.terminate()
        await asyncio.sleep(0.02)
    await visit.rest()
    await visit.leave()
    assert await asyncio.to_thread(daemon.child.wait) == 0
    daemon.child.end()
    (row,) = daemon.rows("m")
    daemon.start()
    answer = await ask(daemon.url, PATH, chat("m", stream=True), Idempotency_Key="k")
    assert answer.whole
    assert ("idempotent-replayed" in answer.headers) is (row["state"] == "done")


async def test_a_drain_waits_for_a_stream_that_nobody_listens_to(own, origin):
    daemon = own()
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, *EVENTS[1:4], DONE))
    visit = await begun(daemon, "m", "k")
    await visit.leave(reset=True)
    assert daemon.child is not None
    daemon.child.process.terminate()
    await asyncio.sleep(0.2)
    gate.open()
    assert await asyncio.to_thread(daemon.child.wait) == 0
    daemon.child.end()
    assert [row["state"] for row in daemon.rows("m")] == ["done"]
    daemon.start()
    assert (await again(daemon, "k")).body == b"".join([*EVENTS[:4], DONE])


async def test_expired_answers_are_new_requests(own, origin):
    daemon = own(storage={"url": "sqlite:///proxyd.db", "retain": {"idempotency": "1s"}})
    origin.on("m", whole(completion("x")))
    for _ in range(2):
        await ask(daemon.url, PATH, chat("m"), Idempotency_Key="k")
    assert len(origin.asked("m")) == 1
    await asyncio.sleep(1.1)
    await ask(daemon.url, PATH, chat("m"), Idempotency_Key="k")
    assert len(origin.asked("m")) == 2


async def test_operators_see_what_is_kept(rig):
    rig.origin.on("seen", whole(completion("x" * 1000)))
    await ask(rig.url, PATH, chat("seen"), Idempotency_Key="seen")
    state = (await ask(rig.daemon.ops, "/state", method="GET")).json()
    assert state["idempotency"]["kept_bytes"] > 1000
    assert state["idempotency"]["running"] == 0
