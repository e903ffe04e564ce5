"""Connect and gRPC-Web, by the bytes: envelopes, endings, errors, time limits. `test_thin_clients.py` has the official clients."""

from __future__ import annotations

import base64
import gzip
import json

import pytest
from google.protobuf import json_format

from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.connect import END, TRAILERS, EnvelopeReader, envelope, from_text
from proxyd.wire.proto import name_text
from tests.e2e.client import Visit, ask, happens, request
from tests.e2e.test_protobuf import asked, frames, post
from tests.origin import DONE, Ending, Gate, completion, delta, stream, usage_event, whole

CHAT = "/proxyd.v1.ChatService/"
PROTO, STREAM, WEB = "application/proto", "application/connect+proto", "application/grpc-web+proto"
WORDS = [delta("Hel"), delta("lo"), delta(" there"), delta("", finish="stop"), usage_event(4, 3)]


async def call(rig, method: str, body: bytes, kind: str = PROTO, **headers: str):
    return await ask(rig.url, method if method.startswith("/") else CHAT + method, body, Content_Type=kind, **headers)


def read(body: bytes) -> tuple[list[pb.ChatCompletionChunk], dict]:
    """The messages of a Connect stream, and what its last envelope says."""
    reader = EnvelopeReader()
    *messages, (flags, last) = reader.feed(body)
    assert (flags, reader.broken) == (END, False)
    assert all(flags == 0 for flags, _ in messages)
    return [pb.ChatCompletionChunk.FromString(message) for _, message in messages], json.loads(last)


def detail(error: dict) -> pb.Error:
    (one,) = error["details"]
    assert one["type"] == "proxyd.v1.Error"
    return pb.Error.FromString(base64.b64decode(one["value"] + "=="))


def text(frames: list[pb.ChatCompletionChunk]) -> str:
    return "".join(frame.content for frame in frames)


async def test_a_unary_call(rig):
    rig.origin.on("unary", whole(completion("Hello there")))
    answer = await call(rig, "CreateChatCompletion", asked("unary", stream=True))  # the method says whether it streams
    assert (answer.status, answer.headers["content-type"]) == (200, PROTO)
    assert pb.ChatCompletion.FromString(answer.body).choices[0].message.content == "Hello there"
    (row,) = rig.daemon.settled("unary")
    assert (row["protocol"], row["endpoint"], row["streamed"], row["bytes_out"]) == ("connect", "/v1/chat/completions", 0, len(answer.body))


async def test_a_unary_call_in_json(rig):
    rig.origin.on("unary-json", whole(completion("Hello there")))
    body = json.dumps({"model": "unary-json", "messages": [{"content": "Say something."}]}).encode()
    answer = await call(rig, "CreateChatCompletion", body, "application/json")
    found = json_format.Parse(answer.body, pb.ChatCompletion())
    assert (answer.headers["content-type"], found.choices[0].message.content) == ("application/json", "Hello there")


@pytest.mark.parametrize("kind", ["proto", "json"])
async def test_a_stream(rig, kind):
    rig.origin.on(f"stream-{kind}", stream(*WORDS, DONE))
    message = asked(f"stream-{kind}")
    if kind == "json":
        message = json_format.MessageToJson(pb.ChatCompletionRequest.FromString(message)).encode()
    answer = await call(rig, "StreamChatCompletion", envelope(message), f"application/connect+{kind}")
    assert (answer.status, answer.headers["content-type"], answer.whole) == (200, f"application/connect+{kind}", True)
    if kind == "proto":
        frames, end = read(answer.body)
    else:
        *messages, (_, last) = EnvelopeReader().feed(answer.body)
        frames, end = [json_format.Parse(one, pb.ChatCompletionChunk()) for _, one in messages], json.loads(last)
    assert (text(frames), end) == ("Hello there", {})
    assert (frames[-1].finish_reason, frames[-1].usage.prompt_tokens) == (pb.FINISH_REASON_STOP, 4)
    assert rig.daemon.settled(f"stream-{kind}")[0]["bytes_out"] == len(answer.body)


async def test_a_compressed_message(rig):
    rig.origin.on("gzipped", stream(*WORDS, DONE))
    answer = await call(rig, "StreamChatCompletion", envelope(gzip.compress(asked("gzipped")), 1), STREAM)
    assert text(read(answer.body)[0]) == "Hello there"


async def test_errors_have_codes_and_typed_details(rig):
    said = {"error": {"message": "Slow down.", "type": "rate", "param": None, "code": "rate_limit_exceeded"}}
    rig.origin.on("limited", whole(json.dumps(said).encode(), status=429))
    for method, kind, body in (
        ("CreateChatCompletion", PROTO, asked("limited")),
        ("StreamChatCompletion", STREAM, envelope(asked("limited"))),
    ):
        answer = await call(rig, method, body, kind)
        if kind == PROTO:
            assert (answer.status, answer.headers["content-type"]) == (429, "application/json")
            error = answer.json()
        else:
            assert answer.status == 200
            error = read(answer.body)[1]["error"]
        assert (error["code"], error["message"]) == ("resource_exhausted", "Slow down.")
        assert (detail(error).code, detail(error).status) == ("rate_limit_exceeded", 429)


@pytest.mark.parametrize(
    ("method", "kind", "body"), [("CreateChatCompletion", PROTO, b""), ("StreamChatCompletion", STREAM, envelope(b"")), ("X", WEB, b"")]
)
async def test_nobody_unknown_is_served(rig, method, kind, body):
    answer = await call(rig, method, body, kind, Authorization="Bearer wrong")
    assert answer.status == {"X": 404, PROTO: 401}.get(kind if method != "X" else "X", 200)
    if kind == STREAM:
        assert read(answer.body)[1]["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize("path", ["/proxyd.v1.ModelService/ListModels", CHAT + "DeleteChatCompletion"])
async def test_nobody_unknown_makes_a_body_be_read(rig, path):
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", path, b"", {"content-type": PROTO, "content-length": "1000", "authorization": ""}))
    assert (await visit.head()).status == 401  # nothing of its 1,000 bytes has come
    await visit.leave()


@pytest.mark.parametrize("kind", [STREAM, WEB])
async def test_a_stream_that_breaks_ends_with_its_error(rig, kind):
    gate = Gate()
    rig.origin.on(f"broken-{kind}", stream(delta("Hel"), gate, ending=Ending.CLOSE))
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", CHAT + "StreamChatCompletion", envelope(asked(f"broken-{kind}")), {"content-type": kind}))
    await visit.head()
    await visit.some()
    gate.open()
    answer = await visit.rest()
    assert answer.whole
    *messages, (flags, last) = EnvelopeReader().feed(answer.body)
    assert pb.ChatCompletionChunk.FromString(messages[0][1]).content == "Hel"
    if kind == STREAM:
        assert (flags, json.loads(last)["error"]["code"]) == (END, "unavailable")
        assert detail(json.loads(last)["error"]).code == "upstream_cut"
    else:
        assert (flags, b"grpc-status:14\r\n" in last) == (TRAILERS, True)
    await visit.leave()


async def test_grpc_web_unary_and_streamed(rig):
    rig.origin.on("web", whole(completion("Hello there")))
    rig.origin.on("web-stream", stream(*WORDS, DONE))
    (_, message), (flags, last) = EnvelopeReader().feed((await call(rig, "CreateChatCompletion", envelope(asked("web")), WEB)).body)
    assert pb.ChatCompletion.FromString(message).choices[0].message.content == "Hello there"
    assert (flags, last) == (TRAILERS, b"grpc-status:0\r\n")
    answer = await call(rig, "StreamChatCompletion", envelope(asked("web-stream")), "application/grpc-web")
    *messages, (flags, last) = EnvelopeReader().feed(answer.body)
    assert text([pb.ChatCompletionChunk.FromString(one) for _, one in messages]) == "Hello there"
    assert (flags, last, answer.headers["content-type"]) == (TRAILERS, b"grpc-status:0\r\n", WEB)
    assert rig.daemon.settled("web")[0]["protocol"] == "grpc-web"
    refused = await call(rig, "CreateChatCompletion", envelope(asked("web")), WEB, Authorization="Bearer wrong")
    assert (refused.status, b"grpc-status:16\r\n" in refused.body) == (200, True)


TEXT = "application/grpc-web-text+proto"


async def test_grpc_web_as_text_is_base64_both_ways_padded_where_it_was_flushed(rig):
    gate = Gate()
    rig.origin.on("texted", whole(completion("Hello there")))
    rig.origin.on("texted-stream", stream(WORDS[0], gate, *WORDS[1:], DONE))
    envelope_ = envelope(asked("texted"))
    halves = base64.b64encode(envelope_[:7]) + base64.b64encode(envelope_[7:])  # padding in the middle
    answer = await call(rig, "CreateChatCompletion", halves, "application/grpc-web-text")
    (_, message), (flags, last) = EnvelopeReader().feed(from_text(answer.body))
    assert pb.ChatCompletion.FromString(message).choices[0].message.content == "Hello there"
    assert (flags, last, answer.headers["content-type"]) == (TRAILERS, b"grpc-status:0\r\n", TEXT)
    visit = await Visit.open(rig.url)
    await visit.say(
        request("POST", CHAT + "StreamChatCompletion", base64.b64encode(envelope(asked("texted-stream"))), {"content-type": TEXT})
    )
    await visit.head()
    ((_, first),) = EnvelopeReader().feed(base64.b64decode(await visit.some()))  # readable before there is more
    assert pb.ChatCompletionChunk.FromString(first).content == "Hel"
    gate.open()
    answer = await visit.rest()
    await visit.leave()
    *messages, (flags, last) = EnvelopeReader().feed(from_text(answer.body))
    assert text([pb.ChatCompletionChunk.FromString(one) for _, one in messages]) == "Hello there"
    assert (flags, last) == (TRAILERS, b"grpc-status:0\r\n")
    assert rig.daemon.settled("texted-stream")[0]["bytes_out"] == len(answer.body)
    for bad in (b"!", base64.b64encode(envelope_)[:-1], envelope_):
        refused = await call(rig, "CreateChatCompletion", bad, TEXT)
        assert b"grpc-status:3\r\n" in from_text(refused.body)


@pytest.mark.parametrize("committed", [False, True])
async def test_the_callers_time_limit_ends_the_call_and_stops_the_upstream(rig, committed):
    name = f"late-{committed}"
    rig.origin.on(name, stream(*([delta("Hel")] if committed else []), ending=Ending.HANG) if committed else [Gate()])
    answer = await call(rig, "StreamChatCompletion", envelope(asked(name)), STREAM, Connect_Timeout_Ms="300")
    frames, end = read(answer.body)
    assert (end["error"]["code"], text(frames)) == ("deadline_exceeded", "Hel" if committed else "")
    await happens(rig.origin.connections[-1].closed)
    assert rig.daemon.settled(name)[0]["state"] == "cancelled"
    bad = await call(rig, "CreateChatCompletion", asked("x"), Connect_Timeout_Ms="soon")
    assert (bad.status, bad.json()["code"]) == (400, "invalid_argument")


async def test_resume_and_delete(rig):
    rig.origin.on("resumed", stream(*WORDS, DONE))
    handle = b"rpc-resume"
    delivery = pb.Delivery(max_delay_ms=0)
    whole_answer = await call(rig, "StreamChatCompletion", envelope(asked("resumed", handle=handle, delivery=delivery)), STREAM)
    frames, _ = read(whole_answer.body)
    resume = pb.ResumeChatCompletionRequest(handle=handle, received=2).SerializeToString()
    rest, end = read((await call(rig, "ResumeChatCompletion", envelope(resume), STREAM)).body)
    assert (rest, end) == (frames[2:], {})
    plain = await ask(rig.url, f"/v1/streams/{name_text(handle)}?received=2", method="GET")  # the same frames on the plain route
    assert plain.headers["content-type"] == "application/protobuf; delimited=true"
    forget = pb.DeleteChatCompletionRequest(handle=handle).SerializeToString()
    assert (await call(rig, "DeleteChatCompletion", forget)).body == b""
    gone = await call(rig, "DeleteChatCompletion", forget)
    assert (gone.status, gone.json()["code"]) == (404, "not_found")
    missing, end = read((await call(rig, "ResumeChatCompletion", envelope(resume), STREAM)).body)
    assert (missing, end["error"]["code"]) == ([], "not_found")


async def test_a_running_call_is_stopped_by_delete(rig):
    rig.origin.on("stop", stream(delta("Hel"), ending=Ending.HANG))
    visit = await Visit.open(rig.url)
    body = envelope(asked("stop", handle=b"rpc-stop"))
    await visit.say(request("POST", CHAT + "StreamChatCompletion", body, {"content-type": STREAM}))
    await visit.head()
    await visit.some()
    assert (await call(rig, "DeleteChatCompletion", pb.DeleteChatCompletionRequest(handle=b"rpc-stop").SerializeToString())).status == 200
    _, end = read((await visit.rest()).body)
    assert end["error"]["code"] == "canceled"
    await visit.leave()


async def test_embeddings(rig):
    document = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}], "model": "m"}
    rig.origin.on("rpc-vectors", whole(json.dumps({**document, "usage": {"prompt_tokens": 2, "total_tokens": 2}}).encode()))
    body = pb.CreateEmbeddingsRequest(model="rpc-vectors", input=["a"]).SerializeToString()
    answer = await call(rig, "/proxyd.v1.EmbeddingService/CreateEmbeddings", body)
    assert list(pb.CreateEmbeddingsResponse.FromString(answer.body).data[0].values) == [0.5]


async def test_models_by_post_and_by_get(launch, origin):
    daemon = launch(upstreams={"o": {"kind": "openai", "base_url": origin.url}}, models=dict.fromkeys("abc", "o"))
    path = "/proxyd.v1.ModelService/ListModels"
    body = pb.ListModelsRequest(page_size=2).SerializeToString()
    posted = await ask(daemon.url, path, body, Content_Type=PROTO)
    assert [one.id for one in pb.ListModelsResponse.FromString(posted.body).models] == ["a", "b"]
    message = base64.urlsafe_b64encode(body).decode().rstrip("=")
    got = await ask(daemon.url, f"{path}?connect=v1&encoding=proto&base64=1&message={message}", method="GET")
    assert got.body == posted.body
    named = await ask(daemon.url, path + "?encoding=json&message=%7B%22pageToken%22:%22b%22%7D", method="GET")
    assert [one["id"] for one in named.json()["models"]] == ["c"]
    wrong = await ask(daemon.url, f"{path}?connect=v2&encoding=proto&message=x", method="GET")
    assert (wrong.status, wrong.json()["code"]) == (400, "invalid_argument")
    assert (await ask(daemon.url, CHAT + "CreateChatCompletion", method="GET")).status == 405


HOSTILE = {
    "no envelope": (STREAM, asked("h")),
    "two messages": (STREAM, envelope(asked("h")) * 2),
    "giant length": (STREAM, b"\x00\xff\xff\xff\xff" + b"x"),
    "cut": (STREAM, envelope(asked("h"))[:-2]),
    "bomb": (STREAM, envelope(gzip.compress(bytes(64 << 20)), 1)),
    "many messages": (STREAM, bytes(1 << 20)),
    "many values": ("application/json", b'{"messages": [' + b"{}," * 99_999 + b"{}]}"),
    "no gzip": (STREAM, envelope(b"nonsense", 1)),
    "not proto": (PROTO, b"\xff" * 20),
    "not json": ("application/json", b"\xff{"),
    "wrong json": ("application/json", b'{"messages": 5}'),
    "deep json": ("application/json", b'{"a":' * 5000),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_calls_are_refused(rig, what):
    kind, body = HOSTILE[what]
    answer = await call(rig, "StreamChatCompletion" if kind == STREAM else "CreateChatCompletion", body, kind)
    error = read(answer.body)[1]["error"] if kind == STREAM else answer.json()
    assert error["code"] in {"invalid_argument", "resource_exhausted"}, error
    assert rig.origin.asked("h") == []


async def test_a_type_that_no_protocol_has_is_415(rig):
    for kind in ("application/grpc", "application/grpc-web-text+json", "text/plain", STREAM):
        assert (await call(rig, "CreateChatCompletion", asked("x"), kind)).status == 415


async def test_a_version_or_a_compression_that_is_not_spoken_is_told_as_the_protocol_says(rig):
    wrong = await call(rig, "CreateChatCompletion", asked("x"), Connect_Protocol_Version="2")
    assert (wrong.status, wrong.json()["code"]) == (400, "invalid_argument")
    unary = await call(rig, "CreateChatCompletion", asked("x"), Content_Encoding="snappy")
    assert (unary.status, unary.json()["code"]) == (501, "unimplemented")
    assert "gzip, deflate, br, zstd" in unary.json()["message"]
    streamed = await call(rig, "StreamChatCompletion", envelope(asked("x"), 1), STREAM, Connect_Content_Encoding="br")
    error = read(streamed.body)[1]["error"]
    assert (error["code"], "gzip" in error["message"]) == ("unimplemented", True)
    rig.origin.on("versioned", stream(*WORDS, DONE))
    message = envelope(gzip.compress(asked("versioned")), 1)
    spoken = await call(rig, "StreamChatCompletion", message, STREAM, Connect_Protocol_Version="1", Connect_Content_Encoding="gzip")
    assert text(read(spoken.body)[0]) == "Hello there"


CALLS = [{"id": f"c{place}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for place in range(2)]


@pytest.mark.parametrize("way", ["plain", "connect", "grpc-web", "resumed", "connect, resumed"])
async def test_who_asked_for_a_stream_reads_frames_though_the_upstream_answered_at_once(rig, way):
    model = f"at once, {way}"
    whole_answer = json.loads(completion("At once."))
    whole_answer["choices"][0]["message"]["tool_calls"] = CALLS
    rig.origin.on(model, whole(json.dumps(whole_answer).encode()))
    handle = way.encode()[:8].ljust(8, b"-")
    body = asked(model, stream=True, handle=handle)
    for _ in range(2):  # and who repeats it
        if way.startswith("connect"):
            found, last = read((await call(rig, "StreamChatCompletion", envelope(body), STREAM)).body)
            assert last == {}
        elif way == "grpc-web":
            *messages, trailers = EnvelopeReader().feed((await call(rig, "StreamChatCompletion", envelope(body), WEB)).body)
            found = [pb.ChatCompletionChunk.FromString(message) for _, message in messages]
            assert trailers == (TRAILERS, b"grpc-status:0\r\n")
        else:
            answer = await post(rig, body)
            assert answer.headers["content-type"] == "application/protobuf; delimited=true"
            found = frames(answer.body)
        if way == "resumed":
            found = frames((await ask(rig.url, f"/v1/streams/{name_text(handle)}", method="GET", Accept="application/protobuf")).body)
        elif way == "connect, resumed":
            again = pb.ResumeChatCompletionRequest(handle=handle).SerializeToString()
            found, last = read((await call(rig, "ResumeChatCompletion", envelope(again), STREAM)).body)
            assert last == {}
        assert "".join(frame.content for frame in found) == "At once."
        told = [(one.index, one.id, one.arguments) for frame in found for one in frame.tool_calls]
        assert told == [(0, "c0", "{}"), (1, "c1", "{}")]
        assert [frame.finish_reason for frame in found if frame.finish_reason] == [pb.FINISH_REASON_STOP]
        assert [frame.usage.prompt_tokens for frame in found if frame.HasField("usage")] == [11]
    assert len(rig.origin.asked(model)) == 1


@pytest.mark.parametrize("kind", [PROTO, "application/json", WEB])
async def test_a_stream_where_one_message_was_asked_for_is_the_upstreams_fault(rig, kind):
    rig.origin.on(f"unasked {kind}", stream(*WORDS, DONE))
    body = asked(f"unasked {kind}")
    if kind == "application/json":
        body = json_format.MessageToJson(pb.ChatCompletionRequest.FromString(body)).encode()
    answer = await call(rig, "CreateChatCompletion", envelope(body) if kind == WEB else body, kind)
    if kind == WEB:
        ((flags, trailers),) = EnvelopeReader().feed(answer.body)
        assert (flags, trailers[:15]) == (TRAILERS, b"grpc-status:14\r"), trailers
    else:
        assert (answer.status, answer.json()["code"]) == (503, "unavailable")
    (row,) = rig.daemon.settled(f"unasked {kind}")
    assert (row["state"], row["error"], row["completion_tokens"]) == ("failed", "upstream_bad_response", 3)
