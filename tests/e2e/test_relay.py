"""What passes between an upstream and a client while an answer runs: order, endings, leaving, waiting."""

import asyncio
import json
import re

import pytest

from tests.e2e.client import PATH, Visit, ask, becomes, begin, chat, happens
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, LAST_CHUNK, Ending, Gate, chunk, completion, delta, event, head, stream, usage_event, whole

FAILED = {"error": {"message": "Overloaded for now.", "type": "server_error", "param": None, "code": "overloaded"}}
MIB = 1024 * 1024


# Order


async def test_the_first_event_leaves_before_the_second_exists(rig):
    gate = Gate()
    rig.origin.on("first", stream(delta("a"), gate, delta("b"), DONE))
    visit = await begin(rig, "first")
    assert await visit.until(delta("a")) == delta("a")
    assert not gate._opened
    gate.open()
    answer = await visit.rest()
    assert (answer.body, answer.whole) == (delta("a") + delta("b") + DONE, True)
    await visit.leave()


async def test_half_an_event_waits_for_its_other_half(rig):
    gate, text = Gate(), delta("ab")
    rig.origin.on("half", stream(delta("x") + text[:20], gate, text[20:], DONE))
    visit = await begin(rig, "half")
    assert await visit.until(delta("x")) == delta("x")
    gate.open()
    assert (await visit.rest()).body == delta("x") + text + DONE
    await visit.leave()


async def test_an_event_larger_than_any_buffer_passes_byte_for_byte(rig):
    big = event({"choices": [{"index": 0, "delta": {"content": "x" * 3 * MIB}, "finish_reason": "stop"}]})
    rig.origin.on("big", stream(big, DONE))
    answer = await ask(rig.url, PATH, chat("big", stream=True))
    assert (answer.body == big + DONE, answer.whole) == (True, True)


async def test_a_stream_says_how_it_is_to_be_treated(rig):
    rig.origin.on("headers", stream(delta("a"), DONE))
    answer = await ask(rig.url, PATH, chat("headers", stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"]


# Usage


async def test_the_usage_that_only_proxyd_asked_for_is_taken_out_again(rig):
    rig.origin.on("strip", stream(delta("a"), delta("", finish="stop"), usage_event(7, 5), DONE))
    answer = await ask(rig.url, PATH, chat("strip", stream=True))
    assert answer.body == delta("a") + delta("", finish="stop") + DONE
    assert rig.origin.asked("strip")[0].json()["stream_options"] == {"include_usage": True}
    (row,) = rig.daemon.settled("strip")
    assert (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"], row["tokens_source"]) == (7, 5, 12, "upstream")


async def test_the_usage_that_the_client_asked_for_passes(rig):
    body = [delta("a"), delta("", finish="stop"), usage_event(7, 5), DONE]
    rig.origin.on("keep", stream(*body))
    answer = await ask(rig.url, PATH, chat("keep", stream=True, stream_options={"include_usage": True, "include_obfuscation": False}))
    assert answer.body == b"".join(body)
    assert rig.origin.asked("keep")[0].json()["stream_options"] == {"include_usage": True, "include_obfuscation": False}


async def test_other_stream_options_survive_the_injection(rig):
    rig.origin.on("options", stream(delta("a"), DONE))
    await ask(rig.url, PATH, chat("options", stream=True, stream_options={"include_obfuscation": False}))
    assert rig.origin.asked("options")[0].json()["stream_options"] == {"include_obfuscation": False, "include_usage": True}


async def test_a_unary_request_is_not_given_stream_options(rig):
    rig.origin.on("unary", whole(completion("hello")))
    answer = await ask(rig.url, PATH, chat("unary"))
    assert answer.body == completion("hello")
    assert "stream_options" not in rig.origin.asked("unary")[0].json()


async def test_members_that_proxyd_does_not_know_reach_the_upstream_as_they_were(rig):
    rig.origin.on("unknown", whole(completion("hello")))
    body = (
        b'{ "x_new" : {"a":[1e400,  "\\u00e9"]}, "model":"unknown","messages":[{"role":"user","content":"hi"}],"seed":12345678901234567890}'
    )
    await ask(rig.url, PATH, body)
    sent = rig.origin.requests[-1].body
    assert b'{"a":[1e400,  "\\u00e9"]}' in sent
    assert b"12345678901234567890" in sent


# Leaving


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_leaving_before_the_first_byte_stops_the_upstream(rig, reset):
    model = f"leave-early-{reset}"
    rig.origin.on(model, [Ending.HANG])
    visit = await (await Visit.open(rig.url)).post(PATH, chat(model, stream=True))
    await becomes(lambda: rig.origin.asked(model))
    connection = rig.origin.asked(model)[0].connection
    assert not connection.closed.is_set()
    await visit.leave(reset=reset)
    await happens(connection.closed)
    assert connection.ended_by == "peer"
    (row,) = rig.daemon.settled(model)
    assert (row["state"], row["error"], row["status"]) == ("cancelled", "client_gone", 499)
    assert row["prompt_tokens"] > 0


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_leaving_mid_stream_stops_the_upstream_and_bills_what_was_produced(rig, reset):
    model = f"leave-late-{reset}"
    rig.origin.on(model, stream(delta("Some words"), delta(" were written"), ending=Ending.HANG))
    visit = await begin(rig, model)
    await visit.until(delta(" were written"))
    connection = rig.origin.asked(model)[0].connection
    assert not connection.closed.is_set()
    await visit.leave(reset=reset)
    await happens(connection.closed)
    assert connection.ended_by == "peer"
    (row,) = rig.daemon.settled(model)
    assert (row["state"], row["error"], row["status"], row["streamed"]) == ("cancelled", "client_gone", 200, 1)
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] >= 3
    assert row["tokens_source"] in ("counted", "estimated")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("kind", "body"), [("text/html", b"<!doctype html><title>Welcome</title>"), ("application/json", b'{"id":')])
async def test_a_200_that_is_no_answer_of_this_kind_is_a_bad_gateway(rig, kind, body, streamed):
    """A base_url that leads to some other server: its page is no completion, and not proxyd's own failure."""
    model = f"page-{streamed}-{kind}"
    rig.origin.on(model, whole(body, headers={"content-type": kind}))
    answer = await ask(rig.url, PATH, chat(model, stream=streamed))
    assert (answer.status, answer.error()["code"]) == (502, "upstream_bad_response")
    (row,) = rig.daemon.settled(model)
    assert (row["state"], row["error"], row["status"]) == ("failed", "upstream_bad_response", 502)


async def test_leaving_a_unary_call_stops_the_upstream(rig):
    rig.origin.on("leave-unary", [head(200, {"content-type": "application/json", "content-length": "500"}) + b'{"id":', Ending.HANG])
    visit = await (await Visit.open(rig.url)).post(PATH, chat("leave-unary"))
    await becomes(lambda: rig.origin.asked("leave-unary"))
    await visit.leave()
    await happens(rig.origin.asked("leave-unary")[0].connection.closed)
    (row,) = rig.daemon.settled("leave-unary")
    assert row["state"] == "cancelled"


async def test_leaving_after_done_is_success(rig):
    """The sync OpenAI SDK closes right after [DONE], without reading the end of the chunked body."""
    rig.origin.on("after", stream(delta("a"), delta("", finish="stop"), usage_event(2, 1), DONE))
    visit = await begin(rig, "after")
    await visit.until(DONE)
    await visit.leave()
    (row,) = rig.daemon.settled("after")
    assert (row["state"], row["error"], row["finish_reason"]) == ("done", None, "stop")


async def test_drain_reads_on_for_exact_usage_when_the_client_left(special):
    daemon, origin = special.daemon, special.origin
    gate = Gate()
    origin.on("drain", stream(delta("a"), gate, delta("b"), delta("", finish="stop"), usage_event(7, 5), DONE))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("drain", stream=True))
    await visit.head()
    await visit.until(delta("a"))
    await visit.leave()
    await asyncio.sleep(0.1)
    gate.open()
    (row,) = daemon.settled("drain")
    assert (row["prompt_tokens"], row["completion_tokens"], row["tokens_source"]) == (7, 5, "upstream")
    assert row["finish_reason"] == "stop"
    assert not origin.asked("drain")[0].connection.closed.is_set()


# Slow readers


async def test_a_slow_reader_pauses_the_upstream_and_loses_nothing(rig):
    """The origin offers 48 MiB; with nobody reading, only what buffers hold may leave it, and proxyd must not grow by it."""
    line = delta("x" * 65_000)
    count = 48 * MIB // len(line)
    rig.origin.on("slow", stream(*[line] * count, delta("", finish="stop"), DONE))
    visit = await (await Visit.open(rig.url, receive_buffer=64 * 1024)).post(PATH, chat("slow", stream=True))
    await visit.head()
    await becomes(lambda: rig.origin.asked("slow"))
    before, connection = rig.daemon.memory(), rig.origin.asked("slow")[0].connection
    sent = -1
    while sent != connection.sent():  # until nothing moves for half a second
        sent = connection.sent()
        await asyncio.sleep(0.5)
    assert sent < 16 * MIB  # the kernel's buffers of two loopback connections, and a little
    assert rig.daemon.memory() - before < 4 * MIB
    answer = await visit.rest()
    assert (len(answer.body), answer.whole) == (count * len(line) + len(delta("", finish="stop") + DONE), True)
    await visit.leave()


async def test_a_slow_reader_who_leaves_stops_the_paused_upstream(rig):
    line = delta("x" * 65_000)
    rig.origin.on("slow-leave", stream(*[line] * 500, DONE))
    visit = await (await Visit.open(rig.url, receive_buffer=64 * 1024)).post(PATH, chat("slow-leave", stream=True))
    await visit.head()
    connection = rig.origin.asked("slow-leave")[0].connection
    sent = -1
    while sent != connection.sent():
        sent = connection.sent()
        await asyncio.sleep(0.3)
    await visit.leave(reset=True)
    await happens(connection.closed)
    (row,) = rig.daemon.settled("slow-leave")
    assert row["state"] == "cancelled"


# Time


HASTE = {
    "mute": {"first_byte": "200ms"},
    "only-head": {"first_byte": "200ms"},
    "stall": {"between_bytes": "200ms"},
    "drip": {"between_bytes": "5s", "total": "600ms"},
    "dead": {},
    "drain": {},
}


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """A daemon with an upstream of its own for each test that needs other settings, or ends in a failure."""
    own = {"dead": {"base_url": "http://127.0.0.1:9/v1"}}  # discard: nobody serves it on loopback
    routes = {"drain": {"on_disconnect": "drain"}}
    names = [*HASTE, *GARBAGE]
    models = {name: {"upstream": name, "retry": {"attempts": 1}, **routes.get(name, {})} for name in names}
    with rigged(
        tmp_path_factory.mktemp("special"),
        lambda origin: {"upstreams": {n: at(origin, timeouts=HASTE.get(n, {}), **own.get(n, {})) for n in names}, "models": models},
    ) as found:
        yield found


async def test_silence_before_the_first_byte_is_a_timeout(special):
    daemon, origin = special.daemon, special.origin
    origin.on("mute", [Ending.HANG])
    origin.on("only-head", [head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}), Ending.HANG])
    for model in ("mute", "only-head"):
        answer = await ask(daemon.url, PATH, chat(model, stream=True))
        assert (answer.status, answer.error()["code"]) == (504, "upstream_timeout")
        (row,) = daemon.settled(model)
        assert (row["state"], row["error"], row["status"]) == ("failed", "upstream_timeout", 504)
        await happens(origin.asked(model)[0].connection.closed)


async def test_silence_between_bytes_is_a_timeout_told_in_the_stream(special):
    daemon, origin = special.daemon, special.origin
    origin.on("stall", stream(delta("a"), ending=Ending.HANG))
    answer = await ask(daemon.url, PATH, chat("stall", stream=True))
    assert answer.body.startswith(delta("a"))
    assert json.loads(answer.body[len(delta("a")) + 6 :])["error"]["code"] == "upstream_timeout"
    assert not answer.whole
    await happens(origin.asked("stall")[0].connection.closed)
    (row,) = daemon.settled("stall")
    assert (row["state"], row["error"]) == ("failed", "upstream_timeout")
    assert row["completion_tokens"] > 0


async def test_a_drip_is_no_silence_but_the_total_has_an_end(special):
    daemon, origin = special.daemon, special.origin
    origin.on("drip", stream(*[part for _ in range(1000) for part in (delta("a"), 0.02)], DONE))
    answer = await ask(daemon.url, PATH, chat("drip", stream=True))
    assert answer.body.startswith(delta("a") * 3)
    assert not answer.whole
    (row,) = daemon.settled("drip")
    assert (row["state"], row["error"]) == ("failed", "upstream_timeout")


async def test_nobody_listening_is_a_connect_failure(special):
    daemon = special.daemon
    answer = await ask(daemon.url, PATH, chat("dead"))
    assert (answer.status, answer.error()["code"]) == (502, "upstream_connect")
    assert "127.0.0.1" not in answer.body.decode()
    (row,) = daemon.settled("dead")
    assert (row["state"], row["error"]) == ("failed", "upstream_connect")


@pytest.fixture(scope="module")
def pinging(tmp_path_factory):
    """A daemon that fills every 50 ms of silence with a comment."""
    with rigged(
        tmp_path_factory.mktemp("pinging"),
        lambda origin: {"upstreams": {"origin": at(origin)}, "models": {"*": "origin"}, "streams": {"ping": "50ms"}},
    ) as found:
        yield found


async def test_a_silent_stream_is_kept_alive_with_comments_between_events_only(pinging):
    gate, later, text = Gate(), Gate(), delta("bcdefghij")
    pinging.origin.on("ping", stream(delta("a"), gate, text[:30], later, text[30:], DONE))
    visit = await begin(pinging, "ping")
    await visit.until(b": ping\n\n")
    gate.open()
    await happens(later.reached)
    await asyncio.sleep(0.2)
    later.open()
    answer = await visit.rest()
    assert answer.body.replace(b": ping\n\n", b"") == delta("a") + text + DONE
    blocks = re.split(rb"\n\n", answer.body)
    assert all(block in (b": ping", b"", delta("a")[:-2], text[:-2], DONE[:-2]) for block in blocks), blocks
    assert answer.whole
    await visit.leave()


async def test_no_comment_falls_into_an_event_too_large_to_be_held_back(pinging):
    """Such an event passes as it comes, so the silence inside it must stay silent."""
    later, big = Gate(), delta("x" * MIB)
    pinging.origin.on("ping-big", stream(delta("a"), big[: MIB // 2], later, big[MIB // 2 :], DONE))
    visit = await begin(pinging, "ping-big")
    await visit.until(b"xxx")
    await asyncio.sleep(0.3)
    later.open()
    answer = await visit.rest()
    assert big in answer.body
    assert answer.whole
    await visit.leave()


# Garbage

GARBAGE = {
    "not-http": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Ending.CLOSE],
    "no-answer": [Ending.CLOSE],
    "reset": [Ending.RESET],
    "half-head": [b"HTTP/1.1 200 OK\r\ncontent-ty", Ending.CLOSE],
    "two-lengths": [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ", Ending.CLOSE],
    "bad-chunk": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", Ending.CLOSE],
    "endless-head": lambda _: _endless(b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"b" * 1000 + b"\r\n"),
    "endless-1xx": lambda _: _endless(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
    "switch": [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Ending.HANG],
}


def _endless(first: bytes, more: bytes):
    yield first
    while True:
        yield more


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_from_the_upstream_is_a_502_and_the_connection_is_not_used_again(special, kind):
    special.origin.on(kind, GARBAGE[kind], whole(completion("better")))
    answer = await ask(special.url, PATH, chat(kind))
    assert (answer.status, answer.error()["type"]) == (502, "upstream_error")
    first = special.origin.asked(kind)[0].connection
    await happens(first.closed)
    assert (await ask(special.url, PATH, chat(kind))).body == completion("better")
    assert special.origin.asked(kind)[-1].connection is not first
    assert [row["state"] for row in special.daemon.settled(kind, 2)] == ["failed", "done"]


async def test_polite_interim_answers_are_skipped(rig):
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    rig.origin.on("early", [early, early, *whole(completion("hi"))])
    assert (await ask(rig.url, PATH, chat("early"))).body == completion("hi")


async def test_an_answer_that_ends_with_its_connection_is_read_to_the_end(rig):
    """HTTP/1.0 style: no length, no chunks. JSON tells by itself whether it is whole."""
    rig.origin.on("eof", [head(200, {"content-type": "application/json", "connection": "close"}), completion("hi"), Ending.CLOSE])
    answer = await ask(rig.url, PATH, chat("eof"))
    assert (answer.status, answer.body, answer.whole) == (200, completion("hi"), True)


async def test_a_chunk_that_lies_about_its_end_breaks_the_stream(rig):
    rig.origin.on("liar", [*stream(delta("a"))[:-1], b"5\r\nhelloworld\r\n", LAST_CHUNK, Ending.CLOSE])
    answer = await ask(rig.url, PATH, chat("liar", stream=True))
    assert answer.body.startswith(delta("a"))
    assert not answer.whole
    (row,) = rig.daemon.settled("liar")
    assert row["state"] == "failed"


async def test_bytes_after_the_answer_do_not_become_the_next_answer(rig):
    """Response splitting: what an upstream sends unasked must never be read as somebody else's answer."""
    smuggled = whole(completion("SMUGGLED"))[0]
    rig.origin.on("split", [whole(completion("mine"))[0] + smuggled])
    rig.origin.on("victim", whole(completion("own")))
    answer = await ask(rig.url, PATH, chat("split"))
    assert answer.status in (200, 502)  # an upstream that does this may be called broken
    assert b"SMUGGLED" not in answer.body
    assert (await ask(rig.url, PATH, chat("victim"))).body == completion("own")


async def test_done_leaves_at_once_although_the_upstream_keeps_the_connection_busy(rig):
    """After [DONE] there is nothing to wait for: an upstream that never ends its chunked body holds no client."""
    rig.origin.on("dangling", stream(delta("a"), delta("", finish="stop"), DONE, ending=Ending.HANG))
    answer = await ask(rig.url, PATH, chat("dangling", stream=True))
    assert answer.body.endswith(DONE)
    assert answer.whole
    (row,) = rig.daemon.settled("dangling")
    assert row["state"] == "done"


async def test_a_big_request_body_reaches_the_upstream_whole(rig):
    rig.origin.on("upload", whole(completion("seen")))
    body = chat("upload", messages=[{"role": "user", "content": "y" * 8 * MIB}])
    assert (await ask(rig.url, PATH, body)).status == 200
    assert rig.origin.asked("upload")[0].json()["messages"] == body["messages"]


def test_a_chunk_is_framed_as_http_wants_it():
    """The tool itself: a size in hex, CRLF, the data, CRLF (RFC 9112 7.1)."""
    assert chunk(b"a" * 16) == b"10\r\n" + b"a" * 16 + b"\r\n"
