"""At DETAIL_FULL and 0 ms nothing is lost: the upstream's events come out of the frames again, whoever the upstream is."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.delivery import Delivery
from proxyd.wire.proto_rebuild import Rebuilder, same
from proxyd.wire.proto_stream import ChunkEncoder
from tests.wire import corpus
from tests.wire.pb_samples import STREAMS, messages, run, sample, sse_data

EXACT = Delivery(max_delay_ms=0, full=True)


CASES = [case.name for case in map(corpus.load, corpus.CASES) if case.sse and "chat/completions" in case.context["endpoint"]]


def corpus_events(name: str) -> list[bytes]:
    body = corpus.load(name).body
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    return sse_data(body)


def rebuilt(frames: list[bytes]) -> list:
    rebuilder = Rebuilder()
    return [json.loads(event) for message in messages(frames) for event in rebuilder.feed(message)]


def wanted(events: list[bytes]) -> list:
    """What the upstream said, up to its end or its error, without obfuscation."""
    out = []
    for event in events:
        if event == b"[DONE]":
            break
        try:
            document = json.loads(event)
        except ValueError:
            continue
        if isinstance(document, dict):
            document.pop("obfuscation", None)
        out.append(document)
        if isinstance(document, dict) and (document.get("error") or document.get("object") == "error"):
            break
    return out


def encoded(events: list[bytes], delivery: Delivery = EXACT, batch: int = 1) -> list[bytes]:
    """Frames of events that come in batches: `now` moves on and the deadline is asked for between them."""
    return run(ChunkEncoder(delivery), [(event, place // batch) for place, event in enumerate(events)])


@pytest.mark.parametrize("batch", [1, 1000])
@pytest.mark.parametrize("name", STREAMS)
def test_each_sample_stream_is_rebuilt_exactly(name: str, batch: int) -> None:
    events = sse_data(sample(f"streams/{name}.sse"))
    got = rebuilt(encoded(events, batch=batch))
    assert got == wanted(events)
    assert all(same(one, other) for one, other in zip(got, wanted(events), strict=True))


def test_obfuscation_is_not_kept() -> None:
    assert rebuilt(encoded(sse_data(sample("streams/answer-200.obf.sse")))) == wanted(sse_data(sample("streams/answer-200.sse")))


@pytest.mark.parametrize("batch", [1, 1000])
@pytest.mark.parametrize("name", CASES)
def test_each_chat_stream_of_the_corpus_is_rebuilt_exactly(name: str, batch: int) -> None:
    events = corpus_events(name)
    got = rebuilt(encoded(events, batch=batch))
    assert len(got) == len(wanted(events))
    assert all(same(one, other) for one, other in zip(got, wanted(events), strict=True))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("delay", [0, 100])
@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_same_at_every_detail_and_delay(name: str, delay: int, *, full: bool) -> None:
    text: dict[str, str] = {}
    for message in messages(encoded(corpus_events(name), Delivery(max_delay_ms=delay, full=full), batch=3)):
        frame = pb.ChatCompletionChunk.FromString(message)
        text[str(frame.index)] = text.get(str(frame.index), "") + frame.content
    expected = corpus.load(name).facts["text_by_choice"]
    assert {index: said for index, said in text.items() if said} == {index: said for index, said in expected.items() if said}


def test_an_event_with_the_usage_of_the_one_before_keeps_it() -> None:
    events = [
        b'{"id":"a","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}],"usage":%b}'
        % (word, b'{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}')
        for word in (b"one", b"two", b"three", b"four")
    ]
    assert rebuilt(encoded(events)) == wanted(events)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=2),
    max_leaves=5,
)
WORD = st.text(st.characters(codec="utf-8"), max_size=6)


def odd(**members):
    return st.fixed_dictionaries({}, optional={name: st.one_of(strategy, strategy, strategy, JUNK) for name, strategy in members.items()})


CALLS = st.lists(odd(index=st.integers(0, 2), id=WORD, type=st.just("function"), function=odd(name=WORD, arguments=WORD)), max_size=2)
DELTA = odd(
    role=st.just("assistant"), content=WORD, refusal=st.none() | WORD, reasoning_content=WORD, reasoning=WORD, tool_calls=CALLS, x=JUNK
)
LOGPROB = odd(token=WORD, logprob=st.floats(-20, 0), bytes=st.lists(st.integers(0, 255), max_size=3), top_logprobs=st.just([]))
CHOICE = odd(
    index=st.integers(0, 2),
    delta=DELTA,
    finish_reason=st.sampled_from([None, None, "stop", "odd"]),
    logprobs=st.none() | odd(content=st.lists(LOGPROB, max_size=2)),
    x=JUNK,
)
USAGE = odd(prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9), total_tokens=st.integers(0, 18), x=JUNK)
EVENT = odd(
    id=st.sampled_from(["", "a", "b"]),
    object=st.just("chat.completion.chunk"),
    created=st.integers(0, 2),
    model=WORD,
    choices=st.lists(CHOICE, max_size=2),
    usage=st.none() | USAGE,
    x=JUNK,
)
PLAIN = WORD.map(
    lambda text: {
        "id": "a",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
)


@given(st.lists(EVENT | PLAIN, max_size=8), st.integers(1, 3))
@settings(max_examples=250, deadline=None)
def test_any_stream_of_objects_is_rebuilt_exactly(documents: list[dict], batch: int) -> None:
    for document in documents:
        document.pop("error", None)
    events = [json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() for document in documents]
    expected = [json.loads(event) for event in events]
    for document in expected:
        document.pop("obfuscation", None)
    got = rebuilt(encoded(events, batch=batch))
    assert got == expected


SAID = st.fixed_dictionaries(
    {
        "index": st.integers(0, 2),
        "delta": st.fixed_dictionaries({}, optional={"content": WORD, "reasoning": WORD, "tool_calls": CALLS, "x": JUNK}),
    },
    optional={"finish_reason": st.sampled_from([None, "stop"]), "x": JUNK},
)


@given(choices=st.lists(st.lists(SAID, max_size=3), max_size=8), delay=st.sampled_from([0, 100]), full=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_stream_becomes_frames_with_all_its_text(choices: list[list[dict]], delay: int, *, full: bool) -> None:
    events = [json.dumps({"choices": each}, ensure_ascii=False, separators=(",", ":")).encode() for each in choices]
    frames = [
        pb.ChatCompletionChunk.FromString(message) for message in messages(encoded(events, Delivery(max_delay_ms=delay, full=full), 2))
    ]
    for index in range(3):
        for field, name in (("content", "content"), ("reasoning", "reasoning")):
            said = "".join(choice["delta"].get(name, "") for each in choices for choice in each if choice["index"] == index)
            assert "".join(getattr(frame, field) for frame in frames if frame.index == index) == said


@given(st.lists(st.binary(max_size=60), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_frames_are_events_or_a_proxy_error(data: list[bytes]) -> None:
    rebuilder = Rebuilder()
    for message in data:
        try:
            rebuilder.feed(message)
        except ProxyError:
            return


@given(
    st.lists(JUNK.map(lambda junk: pb.ChatCompletionChunk(content="x", extra_json=json.dumps(junk))), max_size=3),
    st.lists(
        odd(
            chunk=JUNK,
            choice=JUNK,
            delta=JUNK,
            choices=JUNK,
            shape=odd(drop=JUNK, delta=JUNK, inside=JUNK, reasoning=JUNK),
            event=JUNK,
            frames=JUNK,
        ),
        max_size=3,
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_extra_json_is_read_or_a_proxy_error(frames: list[pb.ChatCompletionChunk], extras: list[dict]) -> None:
    rebuilder = Rebuilder()
    for frame in frames + [pb.ChatCompletionChunk(content="y", extra_json=json.dumps(extra)) for extra in extras]:
        try:
            assert all(isinstance(event, bytes) for event in rebuilder.feed(frame.SerializeToString()))
        except ProxyError:
            return
