"""How an answer leaves, as the client or the route says: held, padded, compressed; the bytes are the upstream's all the same."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest

from proxyd.wire._pb import chat_pb2 as pb
from tests.e2e.client import Visit, ask, chat, request
from tests.e2e.test_protobuf import KIND, PATH, asked, frames, post, text_of
from tests.origin import DONE, Ending, Gate, completion, delta, event, stream, usage_event, whole
from tests.process import settings

LONG = "word " * 200


async def streaming(rig, document: dict, **headers: str) -> Visit:
    visit = await (await Visit.open(rig.url)).post(PATH, {"stream": True, **document}, **headers)
    assert (await visit.head()).status == 200, (await visit.rest()).body
    return visit


@pytest.mark.parametrize("way", ["header", "member"])
async def test_events_are_held_and_the_bytes_stay_the_upstreams(rig, way):
    gate = Gate()
    parts = [delta("Hel"), delta("lo"), delta(" there"), delta("!"), delta("", finish="stop"), usage_event(1, 2)]
    rig.origin.on(f"sse-{way}", stream(parts[0], gate, *parts[1:], DONE))
    document, headers = chat(f"sse-{way}", stream_options={"include_usage": True}), {}
    if way == "header":
        headers = {"Delivery": "max-delay-ms=10000"}
    else:
        document["delivery"] = {"max_delay_ms": 10_000}
    visit = await streaming(rig, document, **headers)
    assert await visit.some() == parts[0]  # the first text at once
    gate.open()
    answer = await visit.rest()
    assert (answer.body, answer.whole) == (b"".join([*parts, DONE]), True)
    assert rig.daemon.settled(f"sse-{way}")[0]["bytes_out"] == len(answer.body)
    assert "delivery" not in rig.origin.asked(f"sse-{way}")[0].json()
    await visit.leave()


async def test_what_is_held_leaves_by_the_clock(rig):
    gate = Gate()
    rig.origin.on("sse-clock", stream(delta("Hel"), delta("lo"), delta(" there"), gate, delta("", finish="stop"), DONE))
    visit = await streaming(rig, chat("sse-clock"), Delivery="max-delay-ms=50")
    await visit.until(delta(" there"))
    gate.open()
    assert (await visit.rest()).whole
    await visit.leave()


async def test_held_events_are_sent_before_an_error(rig):
    gate = Gate()
    rig.origin.on("sse-error", stream(delta("Hel"), delta("lo"), gate, ending=Ending.CLOSE))
    visit = await streaming(rig, chat("sse-error"), Delivery="max-delay-ms=10000")
    await visit.some()
    gate.open()
    answer = await visit.rest()
    assert answer.body.startswith(delta("Hel") + delta("lo") + b'data: {"error"')
    assert not answer.whole
    await visit.leave()


async def test_much_held_text_leaves_early(rig):
    gate = Gate()
    words = [delta(LONG) for _ in range(4)]
    rig.origin.on("sse-much", stream(delta("Hel"), *words, gate, DONE))
    visit = await streaming(rig, chat("sse-much", delivery={"max_delay_ms": 10_000, "max_bytes": 2000}))
    await visit.until(words[1])
    gate.open()
    await visit.rest()
    await visit.leave()


async def test_a_stream_is_compressed_when_it_is_asked_for_and_taken(rig):
    gate = Gate()
    parts = [delta("Hello"), delta(LONG), delta("", finish="stop")]
    rig.origin.on("gzip", stream(parts[0], gate, *parts[1:], DONE))
    visit = await streaming(rig, chat("gzip"), Delivery="compress", Accept_Encoding="gzip, br")
    assert (visit.answer.headers["content-encoding"], visit.answer.headers["vary"]) == ("gzip", "Accept-Encoding")
    reader = zlib.decompressobj(31)
    assert reader.decompress(await visit.some()) == parts[0]  # flushed: readable at once
    gate.open()
    answer = await visit.rest()
    assert gzip.decompress(answer.body) == b"".join([*parts, DONE])
    assert rig.daemon.settled("gzip")[0]["bytes_out"] == len(answer.body)
    await visit.leave()
    plain = await ask(rig.url, PATH, chat("gzip", stream=True), Delivery="compress")
    assert ("content-encoding" in plain.headers, plain.body) == (False, b"".join([*parts, DONE]))
    unasked = await ask(rig.url, PATH, chat("gzip", stream=True), Accept_Encoding="gzip")
    assert "content-encoding" not in unasked.headers


async def test_a_broken_compressed_stream_says_why_and_does_not_end(rig):
    gate = Gate()
    rig.origin.on("gzip-broken", stream(delta("Hel"), gate, ending=Ending.CLOSE))
    visit = await streaming(rig, chat("gzip-broken"), Delivery="compress", Accept_Encoding="gzip")
    await visit.some()
    gate.open()
    answer = await visit.rest()
    reader = zlib.decompressobj(31)
    assert b'data: {"error"' in reader.decompress(answer.body)
    assert (reader.eof, answer.whole) == (False, False)
    await visit.leave()


@pytest.mark.parametrize(("accept", "coding"), [("gzip", "gzip"), ("br;q=0.5, gzip;q=0.4", "br"), ("identity", None), ("gzip;q=0", None)])
async def test_a_whole_answer_is_compressed_as_the_client_takes_it(rig, accept, coding):
    rig.origin.on("whole", whole(completion(LONG)))
    answer = await ask(rig.url, PATH, chat("whole"), Delivery="compress", Accept_Encoding=accept)
    assert answer.headers.get("content-encoding") == coding
    read = {"gzip": gzip.decompress, "br": brotli.decompress, None: bytes}[coding]
    assert read(answer.body) == completion(LONG)
    message = await post(rig, asked("whole"), Accept_Encoding=accept)  # protobuf: without being asked
    assert message.headers.get("content-encoding") == coding
    assert pb.ChatCompletion.FromString(read(message.body)).choices[0].message.content == LONG
    unasked = await ask(rig.url, PATH, chat("whole"), Accept_Encoding=accept)
    assert unasked.body == completion(LONG)


async def test_vectors_are_compressed_for_whoever_asks(rig):
    vectors = b'{"object":"list","data":[%s],"usage":{"prompt_tokens":1,"total_tokens":1}}' % b",".join([b'{"embedding":[0.5]}'] * 200)
    rig.origin.on("vectors", whole(vectors))
    asked = {"model": "vectors", "input": "x"}
    plain = await ask(rig.url, "/v1/embeddings", asked, Accept_Encoding="br")
    answer = await ask(rig.url, "/v1/embeddings", asked, Delivery="compress", Accept_Encoding="br")
    assert (plain.body, "content-encoding" in plain.headers) == (vectors, False)
    assert (answer.headers["content-encoding"], brotli.decompress(answer.body)) == ("br", vectors)
    assert (await ask(rig.url, "/v1/embeddings", asked, Delivery="faster")).error()["code"] == "invalid_request"


@pytest.mark.parametrize(("delay", "coded"), [(100, False), (199, False), (200, True)])
async def test_frames_are_compressed_from_200_ms_up(rig, delay, coded):
    rig.origin.on("frames", stream(delta("Hello"), delta(LONG), delta("", finish="stop"), DONE))
    delivery = pb.Delivery(max_delay_ms=delay, compress=True)
    answer = await post(rig, asked("frames", stream=True, delivery=delivery), Accept_Encoding="gzip")
    assert ("content-encoding" in answer.headers) is coded
    body = gzip.decompress(answer.body) if coded else answer.body
    assert text_of(body) == "Hello" + LONG


async def test_a_route_says_how_where_the_client_does_not(launch, origin):
    upstreams = {"o": {"kind": "openai", "base_url": origin.url}}
    slow = {"upstream": "o", "delivery": {"max_delay_ms": 10_000, "compress": True}}
    daemon = launch(upstreams=upstreams, models={"slow": slow, "never": {"upstream": "o", "delivery": {"compress": False}}})
    parts = [delta("Hel"), delta("lo"), delta(" there"), delta("", finish="stop")]
    origin.on("slow", stream(*parts, DONE))
    origin.on("never", whole(completion(LONG)))
    answer = await ask(daemon.url, PATH, chat("slow", stream=True), Accept_Encoding="gzip")
    assert gzip.decompress(answer.body) == b"".join([*parts, DONE])
    framed = await ask(daemon.url, PATH, asked("slow", stream=True, delivery=pb.Delivery(max_delay_ms=0)), Content_Type=KIND)
    assert [frame.content for frame in frames(framed.body)][:3] == ["Hel", "lo", " there"]
    never = await ask(daemon.url, PATH, chat("never"), Delivery="compress", Accept_Encoding="gzip")
    assert "content-encoding" not in never.headers
    also = await ask(daemon.url, PATH, asked("never"), Content_Type=KIND, Accept_Encoding="gzip")
    assert "content-encoding" not in also.headers


async def test_key_route_and_everybody_have_their_say_and_a_reload_changes_it(launch, origin):
    parts = [delta("Hel"), delta("lo"), delta("", finish="stop")]
    origin.on("*", stream(*parts, DONE))
    names = {"plain": {}, "keen": {"max_delay_ms": 0}, "never": {"compress": False}}
    keys = [{"name": name, "key": f"{name}-key-0123456789abcdef", "delivery": said} for name, said in names.items()]
    upstreams = {"o": {"kind": "openai", "base_url": origin.url}}
    settled = {"upstreams": upstreams, "models": {"bare": "o", "quick": {"upstream": "o", "delivery": {"max_delay_ms": 1}}}}
    settled |= {"auth": {"keys": keys}, "delivery": {"max_delay_ms": 9000, "compress": True}}
    daemon = launch(**settled)

    async def coded(key: str, model: str, **delivery: object) -> bool:
        """Whether frames were compressed, as those are that are held for 200 ms or more: it shows whose word counted."""
        body = asked(model, stream=True, delivery=pb.Delivery(**delivery))
        bearer = f"Bearer {key}-key-0123456789abcdef"
        answer = await ask(daemon.url, PATH, body, Content_Type=KIND, Authorization=bearer, Accept_Encoding="gzip")
        small = "content-encoding" in answer.headers
        assert text_of(gzip.decompress(answer.body) if small else answer.body) == "Hello"
        return small

    assert await coded("plain", "bare")
    assert not await coded("plain", "bare", max_delay_ms=100)
    assert not await coded("plain", "quick")
    assert await coded("plain", "quick", max_delay_ms=300)
    assert not await coded("keen", "bare")
    assert not await coded("never", "bare")
    assert not await coded("never", "bare", compress=True)
    daemon.write(settings(**{**settled, "delivery": {}}))
    assert (await ask(daemon.ops, "/reload")).json()["ok"]
    assert not await coded("plain", "bare")
    assert await coded("plain", "bare", max_delay_ms=300, compress=True)


async def test_reasoning_is_left_out_on_request(rig):
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}]})
    rig.origin.on("thinks", stream(thought, delta("Yes", finish="stop"), DONE))
    with_it = await post(rig, asked("thinks", stream=True))
    without = await post(rig, asked("thinks", stream=True, delivery=pb.Delivery(omit_reasoning=True)))
    assert "".join(frame.reasoning for frame in frames(with_it.body)) == "Hm."
    assert "".join(frame.reasoning for frame in frames(without.body)) == ""
    assert text_of(without.body) == "Yes"


@pytest.mark.parametrize(
    ("headers", "members"),
    [
        ({"Delivery": "max-delay-ms=10001"}, {}),
        ({"Delivery": "speed=1"}, {}),
        ({"Delivery": "omit-reasoning"}, {}),
        ({}, {"delivery": {"pad_to": 16}}),
        ({}, {"delivery": {"max_delay_ms": "fast"}}),
        ({}, {"delivery": 7}),
        ({}, {"handle": "!"}),
        ({}, {"handle": 5}),
    ],
)
async def test_what_cannot_be_done_is_refused(rig, headers, members):
    answer = await ask(rig.url, PATH, chat("refused", stream=True, **members), **headers)
    assert (answer.status, answer.error()["type"]) == (400, "invalid_request_error")
    assert rig.origin.asked("refused") == []


async def test_a_json_caller_may_name_its_request_in_the_body(rig):
    rig.origin.on("named", whole(completion("Hello")))
    document = chat("named", handle="AQIDBAUGBwg")
    first, second = await ask(rig.url, PATH, document), await ask(rig.url, PATH, document)
    assert (first.body, second.headers["idempotent-replayed"]) == (second.body, "true")
    assert "handle" not in rig.origin.asked("named")[0].json()


async def test_a_held_and_compressed_stream_is_joined_and_replayed_by_others_as_they_like(rig):
    rig.origin.on("mixed", stream(delta("Hello"), delta(LONG), delta("", finish="stop"), DONE))
    first = await ask(rig.url, PATH, chat("mixed", stream=True), Idempotency_Key="mixed", Delivery="compress", Accept_Encoding="gzip")
    second = await ask(rig.url, PATH, chat("mixed", stream=True), Idempotency_Key="mixed")
    assert gzip.decompress(first.body) == second.body
    visit = await Visit.open(rig.url)
    await visit.say(request("GET", "/v1/streams/mixed?received=1"))
    assert (await visit.rest()).body == second.body[len(delta("Hello")) :]
    await visit.leave()
