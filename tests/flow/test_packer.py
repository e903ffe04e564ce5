"""Events into frames, held: read together they say what they say one by one."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.clock import Clock
from proxyd.flow.packer import Packer
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.delivery import Delivery
from proxyd.wire.meter import Format, Meter
from proxyd.wire.proto_stream import ChunkEncoder
from tests.wire.pb_samples import STREAMS, messages, sample, sse_data

PLAIN = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
SAID = [
    b"a",
    b"\\u00",
    b"e4",
    b'x",',
    b',"z',
    b'x","y',
    b"word ",
    b"\\n",
    b"\\u00e4",
    "ä".encode(),
    b"\\\\",
    b'\\"',
    b"\\ud83d",
    b"\\ude00",
    b"",
    b"\xff",
    b'"',
    b"\\",
    b'","x":"y',
    b"\n\n",
]
ODD = [
    b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"a","choices":[{"index":1,"delta":{"content":"other"},"finish_reason":null}]}\n\n',
    b'data: {"id":"a","choices":[{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}]}\n\n',
    b'data: {"id":"a","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n',
    b": comment\n\n",
    b"data: {\n",
]


def packed(pieces: list[bytes], delivery: Delivery) -> list[pb.ChatCompletionChunk]:
    """All frames of a stream that comes in these pieces, without a pause."""

    async def run() -> bytes:
        out = bytearray()
        packer = Packer(delivery, Clock(), out.extend)
        for piece in pieces:
            out += packer.feed(piece)
        out += packer.end(b"")
        return bytes(out)

    return [pb.ChatCompletionChunk.FromString(message) for message in messages(asyncio.run(run()))]


def told(frames: list[pb.ChatCompletionChunk]) -> dict[str, object]:
    """What a client makes of frames, however they were cut."""
    said: dict[str, object] = {}
    for frame in frames:
        for name in ("content", "reasoning"):
            said[f"{name} {frame.index}"] = str(said.get(f"{name} {frame.index}", "")) + getattr(frame, name)
        if frame.finish_reason:
            said[f"finish {frame.index}"] = frame.finish_reason
        if frame.HasField("usage"):
            said["usage"] = frame.usage.SerializeToString()
    return {name: value for name, value in said.items() if value}


@pytest.mark.parametrize("name", STREAMS)
def test_a_held_stream_says_what_one_says_that_is_not_held(name: str) -> None:
    events = [b"data: " + data + b"\n\n" for data in sse_data(sample(f"streams/{name}.sse"))]
    held, at_once = packed(events, Delivery(max_delay_ms=10_000)), packed(events, Delivery(max_delay_ms=0))
    assert told(held) == told(at_once)
    assert len(held) < len(at_once) / 10


@given(st.lists(st.sampled_from(SAID).map(lambda text: PLAIN % text) | st.sampled_from(ODD), max_size=12), st.integers(1, 3))
@settings(max_examples=300)
def test_what_only_looks_plain_is_read_as_it_would_be_alone(events: list[bytes], batch: int) -> None:
    """Behind three plain events, so that it is known what one looks like."""
    events = [PLAIN % b"one", PLAIN % b"two", PLAIN % b"three", *events]
    pieces = [b"".join(events[start : start + batch]) for start in range(0, len(events), batch)]
    alone = ChunkEncoder(Delivery(max_delay_ms=0))
    frames = [frame for event in sse_data(b"".join(events)) for frame in alone.feed(event, 0.0)] + alone.end()
    one_by_one = [pb.ChatCompletionChunk.FromString(message) for message in messages(frames)]
    if any(event == b"data: {\n" for event in events) or any(b"\n\n" in event[:-2] for event in events):
        assert told(packed(pieces, Delivery(max_delay_ms=10_000))) == told(packed(pieces, Delivery(max_delay_ms=0)))
    else:
        assert told(packed(pieces, Delivery(max_delay_ms=10_000))) == told(one_by_one)


JSONS = [
    b"null",
    b"hm",
    b'"[DONE]"',
    b"{",
    b'{"error":',
    b'{"error":"x"}',
    b'{"error":{"message":"x"}}',
    b'{"error":null}',
    b'{"error":"\xff"}',
]
JSONS += [b'[{"error":{"message":"x"}}]', b'{"type":"error"}', b'{"object":"error"}', b'{"choices":[],"usage":{"prompt_tokens":1}}']
JSONS += [b'{"choices":[],"error":{"code":1}}', b"[DONE]", b" [DONE] "]
LINES = [
    *(b"data: " + data for data in JSONS),
    *(b"error: " + data for data in (b"[DONE]", b"x", b"{}", b"null", b'{"message":"x"}', b"", b"\xff")),
    *(b"event: error", b"event: x", b"event:", b": comment", b"id: 1", b"data", b"error"),
    *(event[:-2] for event in (PLAIN % b"one", PLAIN % b"two", *ODD[:4])),
]


@given(st.lists(st.lists(st.sampled_from(LINES), min_size=1, max_size=3), max_size=8), st.integers(1, 400), st.sampled_from([0, 10_000]))
@settings(max_examples=600)
def test_a_client_of_frames_is_told_of_an_error_where_the_ledger_is(events: list[list[bytes]], size: int, delay: int) -> None:
    """Two readers of one stream, one for the row and one for the client: what the one takes for an error is one to the other."""
    stream = b"".join(b"\n".join(lines) + b"\n\n" for lines in events)
    meter = Meter(Format.SSE)
    passed = [meter.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    passed += [meter.end(clean=True), meter.take_held()]
    frames = packed(passed, Delivery(max_delay_ms=delay))
    assert meter.had_error == any(frame.HasField("error") for frame in frames)


@pytest.mark.parametrize("second", SAID)
def test_no_two_texts_mean_together_what_they_do_not_mean_alone(second: bytes) -> None:
    for first in SAID:
        events = [PLAIN % text for text in (b"one", b"two", b"three", first, second)]
        alone = ChunkEncoder(Delivery(max_delay_ms=0))
        frames = [frame for event in sse_data(b"".join(events)) for frame in alone.feed(event, 0.0)] + alone.end()
        if b"\n\n" not in first + second:
            expected = told([pb.ChatCompletionChunk.FromString(message) for message in messages(frames)])
            assert told(packed(events, Delivery(max_delay_ms=10_000))) == expected


@pytest.mark.parametrize("most", [1, 50, 1000])
def test_no_more_text_is_held_than_may_be(most: int) -> None:
    frames = packed([PLAIN % (b"%04d" % number) for number in range(500)], Delivery(max_delay_ms=10_000, max_bytes=most))
    assert "".join(frame.content for frame in frames) == "".join(f"{number:04d}" for number in range(500))
    assert max(len(frame.content) for frame in frames) <= most + 3
    assert min(len(frame.content) for frame in frames[1:-1]) >= most


async def test_what_is_kept_leaves_when_its_time_has_come_and_not_before() -> None:
    came: list[bytes] = []
    left = asyncio.Event()
    packer = Packer(Delivery(max_delay_ms=30), Clock(), lambda data: (came.append(data), left.set()))
    first = packer.feed(PLAIN % b"one")
    assert first
    assert all(packer.feed(PLAIN % b"more") == b"" for _ in range(5))
    async with asyncio.timeout(10):
        await left.wait()
    assert [pb.ChatCompletionChunk.FromString(message).content for message in messages(came)] == ["more" * 5]
    assert all(packer.feed(PLAIN % b"last") == b"" for _ in range(3))
    assert "last" * 3 in str(messages(packer.end(PLAIN % b"!")))
    packer.stop()
