"""Streams of protobuf that outlive their clients: resumed by frames, joined and replayed in whichever form."""

from __future__ import annotations

import asyncio

import pytest

from proxyd.client import AsyncClient, Client, Settings
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto import name_text
from tests.e2e.client import Visit, ask, chat, request
from tests.e2e.conftest import at, rigged
from tests.e2e.test_protobuf import DELIMITED, KIND, PATH, asked, frames, post, text_of
from tests.origin import DONE, Gate, delta, stream, usage_event
from tests.process import KEY
from tests.wire.pb_samples import messages

HANDLE = b"handle-1"
NAME = name_text(HANDLE)
EACH = pb.Delivery(max_delay_ms=0)


async def begun(rig, model: str, *, handle: bytes = HANDLE, **delivery: object) -> tuple[Visit, Gate]:
    """A client that has begun a stream and got its first text; the gate holds the rest back."""
    gate = Gate()
    rig.origin.on(model, stream(delta("One "), gate, delta("two "), delta("three"), delta("", finish="stop"), usage_event(4, 3), DONE))
    visit = await Visit.open(rig.url)
    body = asked(model, stream=True, handle=handle, delivery=pb.Delivery(max_delay_ms=0, **delivery))
    await visit.say(request("POST", PATH, body, {"content-type": KIND}))
    assert (await visit.head()).status == 200, (await visit.rest()).body
    await visit.some()
    return visit, gate


@pytest.fixture
def restarted(tmp_path):
    """A daemon of one test's own."""
    models = {"*": {"upstream": "origin", "retry": {"attempts": 1}}}
    with rigged(tmp_path, lambda origin: {"upstreams": {"origin": at(origin)}, "models": models}) as found:
        yield found


def again(rig, name: str, received: int, method: str = "GET", **headers: str):
    return ask(rig.url, f"/v1/streams/{name}?received={received}", method=method, **headers)


async def test_a_cut_stream_goes_on_behind_the_frames_that_came(rig):
    visit, gate = await begun(rig, "cut", handle=b"cut-cut-cut")
    await visit.leave(reset=True)
    gate.open()
    rig.daemon.settled("cut")
    name = name_text(b"cut-cut-cut")
    whole = await again(rig, name, 0)
    count = len(messages(whole.body))
    assert (text_of(whole.body), whole.headers["content-type"], whole.whole) == ("One two three", DELIMITED, True)
    for received in range(1, count):
        rest = await again(rig, name, received, Accept=KIND)
        assert messages(whole.body)[received:] == messages(rest.body)
    past = await again(rig, name, count + 1, Accept=KIND)
    assert (past.status, pb.Error.FromString(past.body).param) == (400, "received")
    asking = await Visit.open(rig.url)
    await asking.say(request("HEAD", f"/v1/streams/{name}"))
    state = await asking.head()
    await asking.leave()
    assert (state.headers["stream-events"], state.headers["stream-state"]) == (str(count), "done")


async def test_a_stream_is_gone_on_with_while_it_runs(rig):
    visit, gate = await begun(rig, "live", handle=b"live-live")
    await visit.leave(reset=True)
    coming = await Visit.open(rig.url)
    await coming.say(request("GET", f"/v1/streams/{name_text(b'live-live')}?received=1", headers={"accept": KIND}))
    assert (await coming.head()).status == 200
    gate.open()
    assert text_of((await coming.rest()).body) == "two three"
    await coming.leave()


async def test_keep_alives_are_counted_like_any_frame(launch, origin):
    daemon = launch(upstreams={"o": {"kind": "openai", "base_url": origin.url}}, models={"*": "o"}, streams={"ping": "100ms"})
    gate = Gate()
    origin.on("ping", stream(delta("One "), gate, delta("two", finish="stop"), DONE))
    visit = await Visit.open(daemon.url)
    await visit.say(request("POST", PATH, asked("ping", stream=True, handle=b"ping-ping", delivery=EACH), {"content-type": KIND}))
    await visit.head()
    while b"" not in messages(visit.answer.body):
        await visit.some()
    gate.open()
    whole = messages((await visit.rest()).body)
    rest = await ask(daemon.url, f"/v1/streams/{name_text(b'ping-ping')}?received=2", method="GET", Accept=KIND)
    assert messages(rest.body) == whole[2:]
    await visit.leave()


async def test_a_json_caller_joins_and_replays_what_a_protobuf_caller_began(rig):
    visit, gate = await begun(rig, "both", handle=b"both-both")
    name = name_text(b"both-both")
    joining = asyncio.create_task(ask(rig.url, PATH, chat("both", stream=True), Idempotency_Key=name))
    follower = await Visit.open(rig.url)
    await follower.say(request("POST", PATH, asked("both", stream=True, handle=b"both-both"), {"content-type": KIND}))
    await follower.head()
    gate.open()
    first, second, third = await visit.rest(), await joining, await follower.rest()
    sse = delta("One ") + delta("two ") + delta("three") + delta("", finish="stop") + DONE
    assert (second.body, second.whole) == (sse, True)
    assert first.body == third.body  # the same frames, whoever listens
    replayed = await ask(rig.url, PATH, chat("both", stream=True), Idempotency_Key=name)
    assert (replayed.body, replayed.headers["idempotent-replayed"]) == (sse, "true")
    assert len(rig.origin.asked("both")) == 1
    (row,) = rig.daemon.settled("both")
    assert (row["protocol"], row["bytes_out"]) == ("protobuf", len(first.body))
    await visit.leave()
    await follower.leave()


USAGE = usage_event(4, 3)
ASKING = {"stream_options": {"include_usage": True}}
TEXT = [delta("One "), delta("two"), delta("", finish="stop")]


@pytest.mark.parametrize("first", ["protobuf", "asking", "silent"])
@pytest.mark.parametrize("when", ["joined", "replayed", "from disk"])
async def test_each_listener_is_given_the_usage_that_it_asked_for_whoever_began(rig, restarted, first, when):
    """Promise 1 for who comes second: the upstream's bytes, as they would be had it come first."""
    rig = restarted if when == "from disk" else rig
    model = f"usage-{first}-{when.split()[-1]}"
    gate, handle = Gate(), model.encode()[-16:]
    name = name_text(handle)
    rig.origin.on(model, stream(TEXT[0], gate, *TEXT[1:], USAGE, DONE))
    visit = await Visit.open(rig.url)
    if first == "protobuf":
        await visit.say(request("POST", PATH, asked(model, stream=True, handle=handle, delivery=EACH), {"content-type": KIND}))
    else:
        await visit.post(PATH, chat(model, stream=True, **(ASKING if first == "asking" else {})), Idempotency_Key=name)
    await visit.head()
    await visit.some()
    if when != "joined":
        gate.open()
        await visit.rest()
    if when == "from disk":
        rig.daemon.stop()
        rig.daemon.start()

    def listening() -> list:
        return [
            ask(rig.url, PATH, chat(model, stream=True), Idempotency_Key=name),
            ask(rig.url, PATH, chat(model, stream=True, **ASKING), Idempotency_Key=name),
            again(rig, name, 0, Accept="text/event-stream"),
            ask(rig.url, f"/v1/streams/{name}?include_usage=true", method="GET", Accept="text/event-stream"),
            post(rig, asked(model, stream=True, handle=handle, delivery=EACH)),
        ]

    tasks = [asyncio.create_task(each) for each in listening()]
    await asyncio.sleep(0.05)
    gate.open()
    silent, asking, resumed, resumed_asking, framed = [await task for task in tasks]
    body = b"".join(TEXT)
    assert (silent.body, silent.whole) == (body + DONE, True)
    assert (asking.body, asking.whole) == (body + USAGE + DONE, True)
    assert resumed.body == (asking if first == "asking" else silent).body
    assert resumed_asking.body == asking.body
    assert text_of(framed.body) == "One two"
    assert frames(framed.body)[-1].usage.prompt_tokens == 4
    own = (await visit.rest()).body
    assert own == {"protobuf": own, "asking": asking.body, "silent": silent.body}[first]
    assert len(rig.origin.asked(model)) == 1
    assert rig.daemon.settled(model)[0]["bytes_out"] == len(own)
    await visit.leave()


async def test_who_resumes_counts_the_events_that_it_was_given(rig):
    rig.origin.on("counted", stream(*TEXT, USAGE, DONE))
    first = await ask(rig.url, PATH, chat("counted", stream=True), Idempotency_Key="counted")
    assert first.body == b"".join(TEXT) + DONE
    for usage, events in ((False, [*TEXT, DONE]), (True, [*TEXT, USAGE, DONE])):
        path = f"/v1/streams/counted?include_usage={str(usage).lower()}&received="
        for received in range(len(events) + 1):
            assert (await ask(rig.url, f"{path}{received}", method="GET")).body == b"".join(events[received:])
        visit = await Visit.open(rig.url)
        await visit.say(request("HEAD", f"{path}0"))
        assert (await visit.head()).headers["stream-events"] == str(len(events))
        await visit.leave()
        assert (await ask(rig.url, f"{path}{len(events) + 1}", method="GET")).error()["param"] == "received"
    assert (await ask(rig.url, "/v1/streams/counted?include_usage=1", method="GET")).error()["param"] == "include_usage"


async def test_an_upstream_that_was_not_asked_and_tells_its_usage_is_passed_on_as_it_is(launch, origin):
    upstream = {"kind": "openai", "base_url": origin.url, "include_usage": False}
    daemon = launch(upstreams={"o": upstream}, models={"*": "o"})
    origin.on("unasked", stream(*TEXT, USAGE, DONE))
    for _ in range(2):
        answer = await ask(daemon.url, PATH, chat("unasked", stream=True), Idempotency_Key="unasked")
        assert answer.body == b"".join(TEXT) + USAGE + DONE


async def test_a_protobuf_caller_joins_what_a_json_caller_began_and_is_told_how_it_is_numbered(rig):
    rig.origin.on("json-first", stream(delta("One "), delta("two", finish="stop"), DONE))
    first = await ask(rig.url, PATH, chat("json-first", stream=True), Idempotency_Key=name_text(b"json-first"))
    body = asked("json-first", stream=True, handle=b"json-first")
    second = await post(rig, body)
    assert (text_of(second.body), second.headers["idempotent-replayed"]) == ("One two", "true")
    from_start = await again(rig, name_text(b"json-first"), 0, Accept=KIND)
    assert text_of(from_start.body) == "One two"
    middle = await again(rig, name_text(b"json-first"), 1, Accept=KIND)
    assert (middle.status, pb.Error.FromString(middle.body).code) == (409, "stream_conflict")
    assert (await again(rig, name_text(b"json-first"), 1)).body == first.body[len(delta("One ")) :]


async def test_frames_survive_a_restart(launch, origin):
    daemon = launch(upstreams={"o": {"kind": "openai", "base_url": origin.url}}, models={"*": "o"})
    origin.on("restart", stream(delta("One "), delta("two", finish="stop"), usage_event(1, 2), DONE))
    body = asked("restart", stream=True, handle=b"restarted", delivery=EACH)
    first = await ask(daemon.url, PATH, body, Content_Type=KIND)
    daemon.stop()
    daemon.start()
    again = await ask(daemon.url, f"/v1/streams/{name_text(b'restarted')}?received=1", method="GET")
    assert (again.headers["content-type"], messages(again.body)) == (DELIMITED, messages(first.body)[1:])
    sse = await ask(daemon.url, f"/v1/streams/{name_text(b'restarted')}", method="GET", Accept="text/event-stream")
    assert sse.body.endswith(DONE)
    conflict = await ask(daemon.url, f"/v1/streams/{name_text(b'restarted')}?received=1", method="GET", Accept="text/event-stream")
    assert (conflict.status, conflict.error()["code"]) == (409, "stream_conflict")


async def test_without_a_handle_the_server_tells_one(rig):
    visit, gate = await begun(rig, "told", handle=b"", resumable=True)
    (frame,) = frames(visit.answer.body)[:1]
    assert len(frame.start.handle) == 14
    await visit.leave(reset=True)
    gate.open()
    rest = await again(rig, name_text(frame.start.handle), 1, Accept=KIND)
    assert text_of(rest.body) == "two three"
    rig.daemon.settled("told")


async def test_a_stream_is_stopped_by_its_handle(rig):
    visit, gate = await begun(rig, "stopped", handle=b"stop-stop")
    answer = await ask(rig.url, f"/v1/streams/{name_text(b'stop-stop')}", method="DELETE", Accept=KIND)
    assert (answer.status, answer.body) == (200, b"")
    last = frames((await visit.rest()).body)[-1]
    assert (last.error.code, visit.answer.whole) == ("client_gone", False)
    gate.open()
    await visit.leave()


class Cutter:
    """A front that cuts the line behind so many bytes of the first answers, then lets everything pass."""

    def __init__(self, url: str, cuts: list[int]) -> None:
        self.host, self.port = url.removeprefix("http://").split(":")
        self.cuts = cuts
        self.passed = 0

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self.host, int(self.port))
        left = self.cuts.pop(0) if self.cuts else 10**9

        async def upwards() -> None:
            while data := await reader.read(65536):
                up_writer.write(data)

        sending = asyncio.ensure_future(upwards())
        try:
            while left > 0 and (data := await up_reader.read(min(left, 65536))):
                left -= len(data)
                writer.write(data)
                await writer.drain()
        finally:
            sending.cancel()
            writer.transport.abort()
            up_writer.transport.abort()


@pytest.mark.parametrize("kind", ["blocking", "async"])
async def test_the_client_becomes_whole_through_a_line_that_is_cut(rig, kind):
    """The real client, the real daemon, and a line that breaks three times, in the head and in the middle of frames."""
    model = f"client-{kind}"
    words = [delta(f"word{number} ") for number in range(200)]
    rig.origin.on(model, stream(*words, delta("", finish="stop"), usage_event(4, 200), DONE))
    expected = "".join(f"word{number} " for number in range(200))
    async with Cutter(rig.url, [40, 700, 333]) as url:
        settings = Settings(url, KEY, model, max_delay_ms=0, timeout=20)
        if kind == "async":
            async with AsyncClient(settings) as client:
                assert "".join([text async for text in client.stream("Count")]) == expected
        else:

            def run() -> str:
                with Client(settings) as client:
                    return "".join(client.stream("Count"))

            assert await asyncio.to_thread(run) == expected
    assert len(rig.origin.asked(model)) == 1
    assert len(rig.daemon.settled(model)) == 1
