"""Protobuf on the same URLs, against the real daemon: what goes in, what comes out, and how errors are told."""

from __future__ import annotations

import json

import pytest

from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto import name_text
from proxyd.wire.proto_frames import FrameReader
from proxyd.wire.proto_rebuild import Rebuilder
from tests.e2e.client import Visit, ask, chat, happens, request, send
from tests.origin import DONE, Ending, Gate, chunk, completion, delta, head, stream, usage_event, whole
from tests.wire.pb_samples import STREAMS, sample, sse_data

PATH = "/v1/chat/completions"
KIND = "application/protobuf"
DELIMITED = "application/protobuf; delimited=true"
WORDS = [delta("Hel"), delta("lo"), delta(" there"), delta("", finish="stop")]


def asked(model: str, *, stream: bool = False, **more: object) -> bytes:
    message = pb.ChatCompletionRequest(model=model, messages=[pb.Message(content="Say something.")], stream=stream, **more)
    return message.SerializeToString()


async def post(rig, body: bytes, path: str = PATH, **headers: str):
    """A protobuf request; `headers` replace the Content-Type and the like."""
    return await ask(rig.url, path, body, **{"Content_Type": KIND, **headers})


def frames(body: bytes) -> list[pb.ChatCompletionChunk]:
    reader = FrameReader()
    found = [pb.ChatCompletionChunk.FromString(message) for message in reader.feed(body)]
    assert not reader.broken
    return found


def text_of(body: bytes) -> str:
    return "".join(frame.content for frame in frames(body))


# Forms


@pytest.mark.parametrize("incoming", ["json", "protobuf"])
@pytest.mark.parametrize("outgoing", ["json", "sse", "protobuf", "frames"])
async def test_every_form_goes_in_and_every_form_comes_out(rig, incoming, outgoing):
    model, streamed = f"{incoming}-{outgoing}", outgoing in ("sse", "frames")
    rig.origin.on(model, stream(*WORDS, usage_event(4, 3), DONE) if streamed else whole(completion("Hello there")))
    accept = {"json": "application/json", "sse": "text/event-stream", "protobuf": KIND, "frames": KIND}[outgoing]
    if incoming == "json":
        answer = await ask(rig.url, PATH, chat(model, stream=streamed), Accept=accept)
    else:
        answer = await post(rig, asked(model, stream=streamed), Accept=accept)
    assert (answer.status, answer.whole) == (200, True), answer.body
    if outgoing == "json":
        assert answer.body == completion("Hello there")
    elif outgoing == "sse":
        assert answer.body == b"".join(WORDS) + DONE
    elif outgoing == "protobuf":
        assert answer.headers["content-type"] == KIND
        found = pb.ChatCompletion.FromString(answer.body)
        assert (found.choices[0].message.content, found.usage.completion_tokens) == ("Hello there", 3)
    else:
        assert answer.headers["content-type"] == DELIMITED
        found = frames(answer.body)
        assert text_of(answer.body) == "Hello there"
        assert (found[-1].finish_reason, found[-1].usage.prompt_tokens) == (pb.FINISH_REASON_STOP, 4)
    (row,) = rig.daemon.settled(model)
    told = {"frames": "protobuf"}.get(outgoing, outgoing)
    assert (row["protocol"], row["state"], row["endpoint"], row["bytes_out"]) == (told, "done", PATH, len(answer.body))
    (seen,) = rig.origin.asked(model)
    assert seen.json()["messages"] == [{"role": "user", "content": "Say something."}]
    if incoming == "protobuf":
        assert row["bytes_in"] == len(asked(model, stream=streamed))


@pytest.mark.parametrize(
    "kind", ["application/protobuf", "application/x-protobuf", "application/x-protobuffer", "APPLICATION/Protobuf;v=1"]
)
async def test_all_names_of_protobuf_are_understood(rig, kind):
    rig.origin.on("names", whole(completion("Hello")))
    answer = await post(rig, asked("names"), Content_Type=kind)
    assert (answer.status, answer.headers["content-type"]) == (200, KIND)


async def test_a_pb_path_needs_no_content_type(rig):
    rig.origin.on("pb-path", whole(completion("Hello")))
    answer = await post(rig, asked("pb-path"), PATH + ".pb", Content_Type="")
    assert pb.ChatCompletion.FromString(answer.body).choices[0].message.content == "Hello"
    assert rig.daemon.settled("pb-path")[0]["endpoint"] == PATH


@pytest.mark.parametrize(
    "accept", ["*/*", "application/*", "", "text/html, */*;q=0.1", "application/protobuf;q=0.9, application/json;q=0.1"]
)
async def test_where_accept_leaves_it_open_the_answer_has_the_form_of_the_request(rig, accept):
    rig.origin.on("open", whole(completion("Hello")))
    assert (await post(rig, asked("open"), Accept=accept)).headers["content-type"] == KIND


async def test_what_cannot_be_read_or_written_is_415_and_406(rig):
    for kind in ("text/plain", "application/grpc", "multipart/form-data"):
        answer = await post(rig, asked("x"), Content_Type=kind)
        assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type")
    answer = await post(rig, asked("x"), Accept="text/html, application/json;q=0, text/event-stream;q=0")
    assert answer.status == 406
    assert pb.Error.FromString(answer.body).code == "not_acceptable"
    answer = await ask(rig.url, PATH, chat("x"), Accept="image/png")
    assert (answer.status, answer.error()["code"]) == (406, "not_acceptable")
    answer = await ask(rig.url, "/v1/completions", {"model": "x", "prompt": "a"}, Accept=KIND)
    assert answer.status == 406
    assert "Protobuf is spoken at /v1/chat/completions" in answer.error()["message"]
    answer = await post(rig, asked("x"), path="/v1/completions")
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type")
    assert "`Content-Type: application/json`. Protobuf is spoken at /v1/chat/completions" in answer.error()["message"]
    assert rig.origin.asked("x") == []


async def test_a_large_request_is_read_beside_the_event_loop(rig):
    rig.origin.on("large", whole(completion("Hello")))
    text = "A large text, \u00e4 and \n. " * 20_000
    message = pb.ChatCompletionRequest(model="large", messages=[pb.Message(content=text)])
    assert pb.ChatCompletion.FromString((await post(rig, message.SerializeToString())).body).choices[0].message.content == "Hello"
    assert rig.origin.asked("large")[0].json()["messages"] == [{"role": "user", "content": text}]
    broken = await post(rig, message.SerializeToString()[:-1])
    assert (broken.status, pb.Error.FromString(broken.body).code) == (400, "invalid_request")


async def test_who_takes_token_ids_is_sent_text_for_there_is_no_vocabulary(rig):
    rig.origin.on("ids", stream(*WORDS, usage_event(4, 3), DONE))
    plain, ids = [
        await post(rig, asked("ids", stream=True, delivery=pb.Delivery(max_delay_ms=0, token_vocabulary=vocabulary)))
        for vocabulary in (0, 1)
    ]
    assert (ids.body, text_of(ids.body)) == (plain.body, "Hello there")
    unknown = await post(rig, asked("ids", stream=True, delivery=pb.Delivery(token_vocabulary=2)))
    assert pb.Error.FromString(unknown.body).param == "delivery.token_vocabulary"


async def test_heads_are_lean_unless_everything_is_asked_for(rig):
    rig.origin.on("lean", whole(completion("Hello"), headers={"x-request-id": "up_1", "openai-version": "1"}))
    answer = await post(rig, asked("lean"))
    assert answer.headers.keys() == {"date", "content-type", "content-length"}
    full = await post(rig, asked("lean", delivery=pb.Delivery(detail=pb.DETAIL_FULL)))
    assert {"x-request-id", "upstream-request-id", "openai-version"} <= full.headers.keys()
    assert pb.ChatCompletion.FromString(full.body).id == "chatcmpl-1"
    rig.origin.on("lean-stream", stream(*WORDS, DONE))
    streamed = await post(rig, asked("lean-stream", stream=True))
    assert streamed.headers.keys() == {"date", "content-type", "transfer-encoding"}


async def test_embeddings_go_both_ways(rig):
    document = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}], "model": "m"}
    document["usage"] = {"prompt_tokens": 2, "total_tokens": 2}
    rig.origin.on("vectors", whole(json.dumps(document).encode()))
    body = pb.CreateEmbeddingsRequest(model="vectors", input=["a"]).SerializeToString()
    for path in ("/v1/embeddings", "/v1/embeddings.pb"):
        answer = await post(rig, body, path)
        assert list(pb.CreateEmbeddingsResponse.FromString(answer.body).data[0].values) == [0.5, -0.25]
    assert rig.origin.asked("vectors")[0].json()["input"] == ["a"]
    plain = await post(rig, body, "/v1/embeddings", Accept="application/json")
    assert plain.json()["data"][0]["embedding"] == [0.5, -0.25]
    assert rig.daemon.settled("vectors", 3)[0]["protocol"] == "protobuf"
    small = pb.CreateEmbeddingsRequest(model="vectors", input=["a"], encoding=pb.VECTOR_ENCODING_FLOAT16).SerializeToString()
    assert len(pb.CreateEmbeddingsResponse.FromString((await post(rig, small, "/v1/embeddings")).body).data[0].packed) == 4


async def test_models_are_listed_in_protobuf(launch, origin):
    names = ["a/b", "c", "d"]
    daemon = launch(upstreams={"o": {"kind": "openai", "base_url": origin.url}}, models=dict.fromkeys(names, "o"))
    answer = await ask(daemon.url, "/v1/models", method="GET", Accept=KIND)
    assert [model.id for model in pb.ListModelsResponse.FromString(answer.body).models] == names
    assert answer.headers["vary"] == "Accept"
    page = pb.ListModelsResponse.FromString((await ask(daemon.url, "/v1/models.pb?page_size=2", method="GET")).body)
    assert ([model.id for model in page.models], page.next_page_token) == (["a/b", "c"], "c")
    one = await ask(daemon.url, "/v1/models/a/b", method="GET", Accept=KIND)
    assert pb.Model.FromString(one.body).owned_by == "proxyd"
    missing = await ask(daemon.url, "/v1/models/zzz", method="GET", Accept=KIND)
    assert (missing.status, pb.Error.FromString(missing.body).code) == (404, "model_not_found")
    bad = await ask(daemon.url, "/v1/models?page_size=x", method="GET", Accept=KIND)
    assert (bad.status, pb.Error.FromString(bad.body).param) == (400, "page_size")
    assert (await ask(daemon.url, "/v1/models", method="GET")).json()["data"][0]["id"] == "a/b"


# Streams


async def test_the_first_text_leaves_at_once_and_what_follows_is_held_together(rig):
    gate, more = Gate(), Gate()
    rig.origin.on("held", stream(delta("Hel"), gate, delta("lo"), delta(" there"), more, delta("", finish="stop"), DONE))
    body = asked("held", stream=True, delivery=pb.Delivery(max_delay_ms=10_000))
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, body, {"content-type": KIND}))
    await visit.head()
    assert text_of(await visit.some()) == "Hel"
    gate.open()
    more.open()
    answer = await visit.rest()
    assert [frame.content for frame in frames(answer.body)] == ["Hel", "lo there"]
    assert frames(answer.body)[-1].finish_reason == pb.FINISH_REASON_STOP
    await visit.leave()


async def test_what_is_held_leaves_by_the_clock_though_the_upstream_says_nothing(rig):
    gate = Gate()
    rig.origin.on("clock", stream(delta("Hel"), delta("lo"), gate, delta("", finish="stop"), DONE))
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, asked("clock", stream=True, delivery=pb.Delivery(max_delay_ms=50)), {"content-type": KIND}))
    await visit.head()
    while text_of(visit.answer.body) != "Hello":
        assert await visit.some()
    gate.open()
    assert (await visit.rest()).whole
    await visit.leave()


@pytest.mark.parametrize("name", STREAMS)
async def test_every_sample_is_rebuilt_exactly_from_what_the_daemon_sent(rig, name):
    sse = sample(f"streams/{name}.sse")
    rig.origin.on(name, stream(*[part + b"\n\n" for part in sse.split(b"\n\n") if part]))
    delivery = pb.Delivery(detail=pb.DETAIL_FULL, max_delay_ms=0)
    answer = await post(rig, asked(name, stream=True, delivery=delivery))
    rebuilder = Rebuilder()
    rebuilt = [event for message in FrameReader().feed(answer.body) for event in rebuilder.feed(message)]
    sent = [{k: v for k, v in json.loads(data).items() if k != "obfuscation"} for data in sse_data(sse) if data != b"[DONE]"]
    assert [json.loads(event) for event in rebuilt] == sent


@pytest.mark.parametrize("name", STREAMS)
async def test_every_sample_has_its_text_when_it_is_compact(rig, name):
    rig.origin.on(name, stream(sample(f"streams/{name}.sse")))
    answer = await post(rig, asked(name, stream=True))
    deltas = [json.loads(line) for line in sample(f"streams/{name}.deltas.jsonl").splitlines()]
    assert text_of(answer.body) == "".join(item.get("choices", [{}])[0].get("delta", {}).get("content") or "" for item in _events(name))
    assert deltas
    assert len(answer.body) < len(sample(f"streams/{name}.sse")) / 5


def _events(name: str) -> list[dict]:
    events = [json.loads(data) for data in sse_data(sample(f"streams/{name}.sse")) if data != b"[DONE]"]
    return [event for event in events if event["choices"]]


async def test_the_answer_of_200_tokens_costs_no_more_than_promised(rig):
    """At most 1,100 bytes of body at 100 ms. Here all comes at once, so this bounds the encoding; bench/thin.py has the pace."""
    rig.origin.on("answer-200", stream(sample("streams/answer-200.sse")))
    assert len((await post(rig, asked("answer-200", stream=True))).body) <= 1100


async def test_padding_makes_all_frames_alike(rig):
    rig.origin.on("padded", stream(*WORDS, DONE))
    answer = await post(rig, asked("padded", stream=True, delivery=pb.Delivery(pad_to=32, max_delay_ms=0)))
    assert (len(answer.body) % 32, text_of(answer.body)) == (0, "Hello there")


# Errors


async def test_a_refusal_is_an_error_message(rig):
    answer = await send(rig.url, request("POST", PATH, asked("x"), {"content-type": KIND, "authorization": "Bearer wrong"}))
    assert (answer.status, answer.headers["content-type"]) == (401, KIND)
    assert pb.Error.FromString(answer.body).code == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_an_upstreams_refusal_keeps_its_words(rig):
    said = {"error": {"message": "Too long.", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}
    rig.origin.on("refused", whole(json.dumps(said).encode(), status=400))
    answer = await post(rig, asked("refused", stream=True))
    error = pb.Error.FromString(answer.body)
    assert (answer.status, error.message, error.code, error.param) == (400, "Too long.", "context_length_exceeded", "messages")


async def test_an_error_in_a_stream_is_its_last_frame_and_the_stream_looks_broken(rig):
    gate = Gate()
    rig.origin.on("broken", stream(delta("Hel"), delta("lo"), gate, ending=Ending.CLOSE))
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, asked("broken", stream=True), {"content-type": KIND}))
    await visit.head()
    await visit.some()
    gate.open()
    answer = await visit.rest()
    await visit.leave()
    last = frames(answer.body)[-1]
    assert (last.error.code, last.error.status, answer.whole) == ("upstream_cut", 502, False)
    assert text_of(answer.body) == "Hello"
    assert not any(frame.finish_reason for frame in frames(answer.body))


async def test_a_timeout_in_a_stream_keeps_its_status(launch, origin):
    upstream = {"kind": "openai", "base_url": origin.url, "timeouts": {"between_bytes": "200ms"}}
    daemon = launch(upstreams={"o": upstream}, models={"*": "o"})
    origin.on("slow", stream(delta("Hel"), ending=Ending.HANG))
    answer = await ask(daemon.url, PATH, asked("slow", stream=True), Content_Type=KIND)
    assert (frames(answer.body)[-1].error.code, frames(answer.body)[-1].error.status) == ("upstream_timeout", 504)


async def test_an_answer_that_is_no_completion_is_the_upstreams_fault(rig):
    rig.origin.on("odd", whole(b"[1, 2]"))
    answer = await post(rig, asked("odd"))
    assert (answer.status, pb.Error.FromString(answer.body).code) == (502, "upstream_bad_response")


HOSTILE = {
    "empty": b"",
    "truncated": asked("hostile")[:-3],
    "no protobuf": b"\xff" * 40,
    "json": b'{"model":"hostile"}',
    "not utf-8": pb.ChatCompletionRequest(model="hostile").SerializeToString() + b"\x12\x04\x0a\x02\xff\xfe",
    "wrong type": b"\x0a\x07hostile\x10\x05",
    "giant length": b"\x12\xff\xff\xff\xff\x07",
    "deep": b"\x12\x80\x80\x04" + b"\x1a\x80\x80\x04" * 200,
    "short handle": asked("hostile", handle=b"x"),
    "long delay": asked("hostile", delivery=pb.Delivery(max_delay_ms=10_001)),
    "bad extra_json": asked("hostile", extra_json="[1"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_bytes_are_refused_and_the_connection_lives(rig, what):
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, HOSTILE[what], {"content-type": KIND}))
    answer = await visit.rest()
    error = pb.Error.FromString(answer.body)
    assert (400 <= answer.status < 500, bool(error.message), bool(error.code)) == (True, True, True)
    rig.origin.on("alive", whole(completion("Hello")))
    await visit.say(request("POST", PATH, asked("alive"), {"content-type": KIND}))
    assert (await visit.head()).status == 200
    await visit.rest()
    await visit.leave()
    assert rig.origin.asked("hostile") == []


async def test_unknown_fields_are_skipped(rig):
    rig.origin.on("unknown", whole(completion("Hello")))
    assert (await post(rig, asked("unknown") + b"\xf2\x3f\x03abc")).status == 200


# Names


async def test_a_handle_is_the_idempotency_key(rig):
    rig.origin.on("handle", whole(completion("Hello")))
    body = asked("handle", handle=b"\x01\x02\x03\x04\x05\x06\x07\x08")
    first, second = await post(rig, body), await post(rig, body)
    assert (first.body, second.headers["idempotent-replayed"]) == (second.body, "true")
    third = await ask(rig.url, PATH, chat("handle"), Idempotency_Key=name_text(b"\x01\x02\x03\x04\x05\x06\x07\x08"))
    assert (third.body, third.headers["idempotent-replayed"]) == (completion("Hello"), "true")  # a JSON caller gets its own form
    assert len(rig.origin.asked("handle")) == 1
    both = await post(rig, body, Idempotency_Key="another")
    assert (both.status, pb.Error.FromString(both.body).param) == (400, "handle")


async def test_a_refusal_that_is_kept_is_replayed_in_the_callers_form(rig):
    said = {"error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": "no"}}
    rig.origin.on("kept", whole(json.dumps(said).encode(), status=422))
    body = asked("kept", handle=b"kept-kept")
    first, second = await post(rig, body), await post(rig, body)
    assert (first.status, second.status, first.body) == (422, 422, second.body)
    assert pb.Error.FromString(second.body).message == "No."


async def test_a_stream_that_cannot_be_written_as_frames_fails_and_its_upstream_stops(rig):
    """Its client is told so at once; that is no answer that was done."""
    head_ = head(200, {"content-type": "application/x-ndjson", "transfer-encoding": "chunked"})
    rig.origin.on("lines", [head_, chunk(b'{"model":"m","message":{"role":"assistant","content":"hi"},"done":false}\n'), Ending.HANG])
    answer = await post(rig, asked("lines", stream=True))
    assert answer.status == 502
    await happens(rig.origin.asked("lines")[0].connection.closed)
    (row,) = rig.daemon.settled("lines")
    assert (row["state"], row["error"], row["status"]) == ("failed", "upstream_bad_response", 502)


@pytest.mark.parametrize(
    "told",
    [
        b'event: error\ndata: {"message":"out of memory"}\n\n',
        b"event: error\ndata: out of memory\n\n",
        b'error: {"message":"out of memory"}\n\n',
        b'error: {"message":"out of memory","half":"\\ud800"}\n\n',
    ],
)
async def test_an_error_that_stands_beside_the_data_of_an_event_is_a_frame_too(rig, told):
    """llama.cpp's servers have told it so in a field of their own."""
    model = f"beside-{len(told)}"
    rig.origin.on(model, stream(delta("Half"), told, DONE))
    answer = await post(rig, asked(model, stream=True))
    found = frames(answer.body)
    assert found[0].content == "Half"
    assert "out of memory" in found[-1].error.message
    (row,) = rig.daemon.settled(model)
    assert (row["state"], row["error"]) == ("failed", "upstream_error")
