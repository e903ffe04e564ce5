"""Once means once: each row of the table, over real sockets, for streams and for documents."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.e2e.client import Visit, ask, chat, happens, request, send
from tests.e2e.conftest import rigged
from tests.e2e.once import EVENTS, OTHER, PATH, again, answering, begun, served, told
from tests.origin import DONE, Ending, Gate, completion, delta, stream, whole

KINDS = pytest.mark.parametrize("streamed", [False, True], ids=["unary", "streamed"])


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A daemon with two callers and one origin."""
    with rigged(tmp_path_factory.mktemp("once"), served) as it:
        yield it


@pytest.fixture
def own(launch, origin):
    """Daemons of one test's own, with settings of its own."""
    return lambda **more: launch(**served(origin, **more))


# ---- the first is done


@KINDS
async def test_a_repeated_request_gets_the_same_bytes_and_costs_nothing(rig, streamed):
    model = f"replay-{streamed}"
    rig.origin.on(model, answering(streamed), answering(streamed, "another"))
    first, *others = [await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model) for _ in range(4)]
    assert first.status == 200
    assert "idempotent-replayed" not in first.headers
    assert all(other.headers["idempotent-replayed"] == "true" for other in others)
    assert [told(other) for other in others if not streamed] == [told(first)] * (0 if streamed else 3)
    assert {other.body for other in others} == {first.body}
    assert {other.headers["x-request-id"] for other in others} == {first.headers["x-request-id"]}
    assert len(rig.origin.asked(model)) == 1
    (row,) = rig.daemon.rows(model)
    assert (row["state"], row["attempt"], row["request_id"]) == ("done", 1, first.headers["x-request-id"])


@KINDS
async def test_what_was_done_survives_a_kill_and_a_restart(own, origin, streamed):
    daemon = own()
    origin.on("m", answering(streamed), answering(streamed, "another"))
    first = await ask(daemon.url, PATH, chat("m", stream=streamed), Idempotency_Key="k")
    daemon.kill()
    daemon.start()
    second = await ask(daemon.url, PATH, chat("m", stream=streamed), Idempotency_Key="k")
    assert (second.body, second.headers["idempotent-replayed"]) == (first.body, "true")
    assert len(origin.asked("m")) == 1
    if streamed:
        assert (await again(daemon, first.headers["x-request-id"], 1)).body == first.body[len(delta("a")) :]
        assert (await again(daemon, "k", 0)).body == first.body


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@KINDS
async def test_a_refusal_that_would_be_the_same_again_is_kept(rig, streamed, status):
    model = f"kept-{status}-{streamed}"
    body = b'{"error": {"message": "no", "type": "t", "param": null, "code": "c"}}'
    rig.origin.on(model, whole(body, status=status), answering(streamed))
    first = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    second = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    assert first.status == status
    assert told(first) == told(second)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(rig.origin.asked(model)) == 1


async def test_a_body_that_came_coded_keeps_its_label_when_it_is_sent_again(rig):
    import gzip  # noqa: PLC0415

    body = gzip.compress(completion("zipped"))
    rig.origin.on("coded", whole(body, headers={"content-encoding": "gzip"}))
    first, second = [await ask(rig.url, PATH, chat("coded"), Idempotency_Key="coded") for _ in range(2)]
    assert first.headers["content-encoding"] == "gzip"
    assert told(first) == told(second)


async def test_completions_and_embeddings_have_keys_too(rig):
    vectors = b'{"object":"list","data":[],"model":"e","usage":{"prompt_tokens":1,"total_tokens":1}}'
    rig.origin.on("emb", whole(vectors), whole(b"{}"))
    answers = [await ask(rig.url, "/v1/embeddings", {"model": "emb", "input": "x"}, Idempotency_Key="emb") for _ in range(2)]
    assert [answer.body for answer in answers] == [vectors] * 2
    assert len(rig.origin.asked("emb")) == 1


# ---- the first is running


@KINDS
async def test_ten_at_once_cost_one_call_and_all_get_the_same_bytes(rig, streamed):
    gate = Gate()
    model = f"ten-{streamed}"
    script = stream(delta("a"), gate, *EVENTS[1:]) if streamed else [gate, *whole(completion("x"))]
    rig.origin.on(model, script, answering(streamed, "another"))
    asked = [asyncio.create_task(ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)) for _ in range(10)]
    await happens(gate.reached)
    asked += [asyncio.create_task(ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)) for _ in range(10)]
    await asyncio.sleep(0.05)
    gate.open()
    answers = await asyncio.gather(*asked)
    assert {(answer.status, answer.whole) for answer in answers} == {(200, True)}
    assert {answer.body for answer in answers} == {
        (b"".join(event for event in EVENTS if b"usage" not in event)) if streamed else completion("x")
    }
    assert len(rig.origin.asked(model)) == 1
    assert [row["state"] for row in rig.daemon.rows(model)] == ["done"]


async def test_who_joins_gets_all_from_the_first_event_on_and_lives_on_with_it(rig):
    gate, second = Gate(), Gate()
    rig.origin.on("join", stream(delta("a"), delta("b"), gate, delta("c"), second, delta("", finish="stop"), DONE))
    first = await begun(rig, "join", "join")
    await first.until(delta("b"))
    late = await begun(rig, "join", "join")
    await late.until(delta("b"))
    gate.open()
    for visit in (first, late):
        await visit.until(delta("c"))
    second.open()
    bodies = [(await visit.rest()).body for visit in (first, late)]
    assert bodies == [delta("a") + delta("b") + delta("c") + delta("", finish="stop") + DONE] * 2
    for visit in (first, late):
        await visit.leave()


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_who_joins_and_leaves_disturbs_nobody(rig, reset):
    gate = Gate()
    model = f"leaver-{reset}"
    rig.origin.on(model, stream(delta("a"), gate, *EVENTS[1:4], DONE))
    first, joiner = await begun(rig, model, model), await begun(rig, model, model)
    await joiner.leave(reset=reset)
    await asyncio.sleep(0.05)
    gate.open()
    assert (await first.rest()).whole
    await first.leave()
    assert [row["state"] for row in rig.daemon.rows(model)] == ["done"]


@KINDS
async def test_the_first_may_leave_and_the_others_have_their_answer(rig, streamed):
    gate = Gate()
    model = f"first-{streamed}"
    rig.origin.on(model, stream(delta("a"), gate, *EVENTS[1:4], DONE) if streamed else [gate, *whole(completion("x"))])
    first = await (await Visit.open(rig.url)).post(PATH, chat(model, stream=streamed), Idempotency_Key=model)
    await happens(gate.reached)
    other = asyncio.create_task(ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model))
    await asyncio.sleep(0.05)
    await first.leave(reset=True)
    await asyncio.sleep(0.05)
    gate.open()
    answer = await other
    assert (answer.status, answer.whole) == (200, True)
    assert len(rig.origin.asked(model)) == 1


async def test_a_unary_caller_who_leaves_finds_its_answer_when_it_asks_again(rig):
    gate = Gate()
    rig.origin.on("unary-back", [gate, *whole(completion("x"))])
    first = await (await Visit.open(rig.url)).post(PATH, chat("unary-back"), Idempotency_Key="unary-back")
    await happens(gate.reached)
    await first.leave(reset=True)
    gate.open()
    rig.daemon.settled("unary-back")
    assert (await ask(rig.url, PATH, chat("unary-back"), Idempotency_Key="unary-back")).body == completion("x")
    assert len(rig.origin.asked("unary-back")) == 1


async def test_a_slow_reader_holds_nobody_else_up(rig):
    """It falls behind on its own; the tape waits for it."""
    gate, text = Gate(), "x" * 4000
    parts = [delta(text) for _ in range(400)]
    rig.origin.on("slow", stream(delta("a"), gate, *parts, delta("", finish="stop"), DONE))
    slow = await (await Visit.open(rig.url, receive_buffer=4096)).post(PATH, chat("slow", stream=True), Idempotency_Key="slow")
    await happens(gate.reached)
    quick = await begun(rig, "slow", "slow")
    gate.open()
    answer = await quick.rest()
    assert (answer.whole, len(answer.body)) == (True, len(b"".join([delta("a"), *parts, delta("", finish="stop"), DONE])))
    assert (await slow.rest()).body == answer.body
    for visit in (slow, quick):
        await visit.leave()


# ---- another request under the key


@KINDS
async def test_another_body_path_or_stream_flag_is_a_conflict_that_says_what_differs(rig, streamed):
    model = f"differs-{streamed}"
    rig.origin.on(model, answering(streamed))
    await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    cases = {
        "body": (PATH, chat(model, stream=streamed, temperature=1)),
        "stream": (PATH, chat(model, stream=not streamed)),
        "path": ("/v1/completions", {"model": model, "prompt": "x", "stream": streamed}),
    }
    for word, (path, document) in cases.items():
        answer = await ask(rig.url, path, document, Idempotency_Key=model)
        assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
        assert answer.error()["code"] == "idempotency_key_reused"
        assert word in answer.error()["message"]
    assert len(rig.origin.asked(model)) == 1


async def test_another_body_is_a_conflict_while_the_first_runs(rig):
    gate = Gate()
    rig.origin.on("differs-running", stream(delta("a"), gate, *EVENTS[1:4], DONE))
    first = await begun(rig, "differs-running", "differs-running")
    answer = await ask(rig.url, PATH, chat("differs-running", stream=True, temperature=1), Idempotency_Key="differs-running")
    assert answer.error()["code"] == "idempotency_key_reused"
    gate.open()
    assert (await first.rest()).whole
    await first.leave()


async def test_order_and_spaces_make_no_difference_values_do(rig):
    rig.origin.on("spelling", whole(completion("x")))
    message = {"role": "user", "content": "é"}
    spellings = [
        json.dumps({"model": "spelling", "messages": [message], "temperature": 1}).encode(),
        json.dumps({"temperature": 1.0, "messages": [dict(reversed(message.items()))], "model": "spelling"}, indent=3).encode(),
        json.dumps({"temperature": 1, "model": "spelling", "messages": [message]}, ensure_ascii=False).encode(),
    ]
    answers = [await ask(rig.url, PATH, spelling, Idempotency_Key="spelling") for spelling in spellings]
    assert [answer.status for answer in answers] == [200] * 3
    assert len(rig.origin.asked("spelling")) == 1
    other = json.dumps({"model": "spelling", "messages": [message], "temperature": 2}).encode()
    assert (await ask(rig.url, PATH, other, Idempotency_Key="spelling")).status == 409


@KINDS
async def test_another_callers_key_is_another_key(rig, streamed):
    model = f"callers-{streamed}"
    rig.origin.on(model, answering(streamed, "a"), answering(streamed, "b"))
    mine = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    theirs = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model, authorization=OTHER)
    assert "idempotent-replayed" not in theirs.headers
    assert mine.body != theirs.body
    assert {row["caller"] for row in rig.daemon.rows(model)} == {"tester", "other"}


# ---- the first failed, or broke


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
@KINDS
async def test_a_failure_worth_retrying_is_not_kept_and_the_next_runs_as_the_next_attempt(rig, streamed, status):
    model = f"failed-{status}-{streamed}"
    rig.origin.on(model, whole(b'{"error":{"message":"no"}}', status=status), answering(streamed))
    first = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    second = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    third = await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model)
    assert first.status >= 400
    assert [answer.status for answer in (second, third)] == [200, 200]
    assert ("idempotent-replayed" in second.headers, "idempotent-replayed" in third.headers) == (False, True)
    assert [(row["attempt"], row["state"]) for row in rig.daemon.rows(model)] == [(1, "failed"), (2, "done")]


@KINDS
async def test_an_upstream_that_says_nothing_is_not_kept(rig, streamed):
    model = f"mute-{streamed}"
    rig.origin.on(model, [b"HTTP/1.1 200 ", Ending.RESET], answering(streamed))  # silence alone would be tried again: a stale connection
    answers = [await ask(rig.url, PATH, chat(model, stream=streamed), Idempotency_Key=model) for _ in range(2)]
    assert [answer.status for answer in answers] == [502, 200]


async def test_those_who_joined_a_failure_are_told_of_it_and_may_try_again(rig):
    gate = Gate()
    rig.origin.on("joined-failure", [gate, *whole(b"{}", status=503, headers={"retry-after": "7"})], whole(completion("x")))
    asked = [asyncio.create_task(ask(rig.url, PATH, chat("joined-failure"), Idempotency_Key="jf")) for _ in range(3)]
    await happens(gate.reached)
    await asyncio.sleep(0.05)
    gate.open()
    answers = await asyncio.gather(*asked)
    assert {(answer.status, answer.headers["retry-after"], answer.headers.get("x-should-retry")) for answer in answers} == {
        (503, "7", None)
    }
    assert (await ask(rig.url, PATH, chat("joined-failure"), Idempotency_Key="jf")).status == 200


async def test_a_stream_that_broke_runs_anew_and_both_are_billed(rig):
    rig.origin.on("broke", stream(delta("a"), 0.02, ending=Ending.CLOSE), answering(True))
    first = await ask(rig.url, PATH, chat("broke", stream=True), Idempotency_Key="broke")
    assert not first.whole
    second = await ask(rig.url, PATH, chat("broke", stream=True), Idempotency_Key="broke")
    assert second.whole
    rows = rig.daemon.rows("broke")
    assert [(row["attempt"], row["state"]) for row in rows] == [(1, "failed"), (2, "done")]
    assert all(row["completion_tokens"] for row in rows)


async def test_a_stream_that_broke_is_a_conflict_where_the_file_says_so(own, origin):
    daemon = own(idempotency={"on_broken": "conflict"})
    origin.on("m", stream(delta("a"), 0.02, ending=Ending.CLOSE), answering(True))
    origin.on("mute", [Ending.RESET], answering(True))
    assert not (await ask(daemon.url, PATH, chat("m", stream=True), Idempotency_Key="k")).whole
    answer = await ask(daemon.url, PATH, chat("m", stream=True), Idempotency_Key="k")
    assert (answer.status, answer.headers["x-should-retry"], answer.error()["code"]) == (409, "false", "idempotency_broken")
    assert len(origin.asked("m")) == 1
    statuses = [(await ask(daemon.url, PATH, chat("mute", stream=True), Idempotency_Key="mute")).status for _ in range(2)]
    assert statuses == [502, 200]  # no byte went out: nothing is broken


@pytest.mark.parametrize("on_broken", ["rerun", "conflict"])
async def test_kill_9_in_mid_stream_leaves_no_claim_stuck(own, origin, on_broken):
    """Whoever has seen a byte has a broken answer, though the kill comes right behind it."""
    daemon = own(idempotency={"on_broken": on_broken})
    gate = Gate()
    origin.on("m", stream(delta("a"), gate, DONE), answering(True, "b"))
    visit = await begun(daemon, "m", "k")
    daemon.kill()
    await visit.rest()
    await visit.leave()
    daemon.start()
    gone = await again(daemon, "k", 1)
    assert gone.status == (410 if on_broken == "conflict" else 404)
    answer = await ask(daemon.url, PATH, chat("m", stream=True), Idempotency_Key="k")
    rows = daemon.rows("m")
    if on_broken == "conflict":
        assert (answer.status, answer.error()["code"], len(origin.asked("m"))) == (409, "idempotency_broken", 1)
        assert [(row["attempt"], row["state"]) for row in rows] == [(1, "interrupted")]
    else:
        assert (answer.whole, delta("b") in answer.body, len(origin.asked("m"))) == (True, True, 2)
        assert [(row["attempt"], row["state"]) for row in rows] == [(1, "interrupted"), (2, "done")]


@KINDS
async def test_kill_9_before_the_first_byte_runs_anew(own, origin, streamed):
    daemon = own(idempotency={"on_broken": "conflict"})
    gate = Gate()
    origin.on("m", [gate], answering(streamed))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("m", stream=streamed), Idempotency_Key="k")
    await happens(gate.reached)
    daemon.kill()
    await visit.leave()
    daemon.start()
    assert (await ask(daemon.url, PATH, chat("m", stream=streamed), Idempotency_Key="k")).status == 200
    assert [(row["attempt"], row["state"]) for row in daemon.rows("m")] == [(1, "interrupted"), (2, "done")]


# ---- bad input


@pytest.mark.parametrize("key", ["", "x" * 256, '""', "caf\xe9", "a\tb"], ids=["empty", "long", "quoted nothing", "latin-1", "tab"])
async def test_a_bad_key_is_400_before_the_body_is_looked_at(rig, key):
    data = request("POST", PATH, b"{", {"x-mark": "1"}).replace(b"x-mark: 1", b"idempotency-key: " + key.encode("latin-1"))
    answer = await send(rig.url, data)
    assert answer.status == 400
    assert answer.error()["param"] == "Idempotency-Key"


async def test_two_keys_are_400(rig):
    data = request("POST", PATH, json.dumps(chat("two")).encode(), {"x-mark": "1"})
    answer = await send(rig.url, data.replace(b"x-mark: 1", b"idempotency-key: a\r\nidempotency-key: b"))
    assert (answer.status, answer.error()["param"]) == (400, "Idempotency-Key")
    assert rig.origin.asked("two") == []


async def test_a_key_is_the_same_bare_and_quoted_and_on_get_it_is_nothing(rig):
    rig.origin.on("quoted", whole(completion("x")))
    answers = [await ask(rig.url, PATH, chat("quoted"), Idempotency_Key=key) for key in ("quoted k", '"quoted k"')]
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert (await ask(rig.url, "/v1/models", method="GET", Idempotency_Key="caf\xe9")).status == 200


async def test_what_is_refused_at_the_door_uses_up_no_key(rig):
    rig.origin.on("door", whole(completion("x")))
    assert (await ask(rig.url, PATH, {"model": 1}, Idempotency_Key="door")).status == 400
    assert (await ask(rig.url, PATH, chat("door"), Idempotency_Key="door", authorization="Bearer wrong")).status == 401
    assert (await ask(rig.url, PATH, chat("door"), Idempotency_Key="door")).status == 200
