"""Upstream events as coalesced frames: what is held, what never is, and what each option does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire import tokens
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.connect import EnvelopeReader, end_of_stream, envelope, web_trailers
from proxyd.wire.delivery import Delivery
from proxyd.wire.proto_frames import delimited
from proxyd.wire.proto_rebuild import Rebuilder
from proxyd.wire.proto_stream import ChunkEncoder, padded
from tests.wire.pb_samples import STREAMS, messages, run, sample, sse_data, timed


def event(text: str | None = None, **choice) -> bytes:
    delta = {} if text is None else {"content": text}
    return json.dumps({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]}).encode()


def calls(*entries: dict) -> bytes:
    return event(delta={"tool_calls": list(entries)})


def frame(data: bytes) -> pb.ChatCompletionChunk:
    (message,) = messages(data)
    return pb.ChatCompletionChunk.FromString(message)


def frames_of(data: list[bytes]) -> list[pb.ChatCompletionChunk]:
    return [frame(one) for one in data]


FINISH = event(finish_reason="stop")
USAGE = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'


# -- another program's bytes


@pytest.mark.parametrize("name", STREAMS)
def test_without_delay_each_sample_is_the_other_programs_bytes(name: str) -> None:
    assert b"".join(run(ChunkEncoder(Delivery(max_delay_ms=0)), timed(name))) == sample(f"streams/{name}.0ms.pbd")


@pytest.mark.parametrize("name", STREAMS)
def test_at_full_detail_each_sample_is_the_other_programs_bytes(name: str) -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0, full=True), handle=b"12345678")
    assert b"".join(run(encoder, timed(name))) == sample(f"streams/{name}.full.0ms.pbd")


def in_windows(encoder: ChunkEncoder, events: list[tuple[bytes, float]], window: float) -> list[bytes]:
    """The samples count their windows from the frame before, this encoder from the first text held: so flush for it."""
    frames: list[bytes] = []
    since = 0.0
    for data, now in events:
        if now - since >= window - 1e-9 and (held := encoder.flush()):
            frames += held
            since = now
        sent = encoder.feed(data, now)
        frames += sent
        since = now if sent else since
    return frames + encoder.end()


@pytest.mark.parametrize("window", [100, 500])
@pytest.mark.parametrize("name", STREAMS)
def test_in_the_same_windows_each_sample_is_the_other_programs_bytes(name: str, window: int) -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=10_000))
    assert b"".join(in_windows(encoder, timed(name), window / 1000)) == sample(f"streams/{name}.{window}ms.pbd")


@pytest.mark.parametrize("name", STREAMS)
def test_the_envelopes_of_connect_and_grpc_web_are_the_other_programs_bytes(name: str) -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=10_000), frame=envelope)
    body = b"".join(in_windows(encoder, timed(name), 0.1))
    assert body + end_of_stream() == sample(f"streams/{name}.100ms.connect")
    assert body + web_trailers() == sample(f"streams/{name}.100ms.grpcweb")


def test_a_sample_of_token_ids_is_its_text_in_the_vocabulary_that_the_schema_names() -> None:
    pytest.importorskip("tiktoken")
    vocabulary = tokens._load("o200k_base")
    assert vocabulary is not None
    frames = [pb.ChatCompletionChunk.FromString(message) for message in messages(sample("streams/answer-200.100ms.tokens.pbd"))]
    assert vocabulary.decode([each for frame in frames for each in frame.tokens]) == sample("streams/answer-200.txt").decode()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("form", ["0ms", "100ms", "500ms", "full.0ms"])
def test_every_sample_decodes_to_its_text(name: str, form: str) -> None:
    rebuilder = Rebuilder()
    events = [json.loads(one) for message in messages(sample(f"streams/{name}.{form}.pbd")) for one in rebuilder.feed(message)]
    deltas = [choice["delta"] for one in events for choice in one["choices"]]
    text = "".join(
        (delta.get("reasoning_content") or "")
        + (delta.get("content") or "")
        + "".join(call["function"]["arguments"] for call in delta.get("tool_calls", ()))
        for delta in deltas
    )
    assert text == sample(f"streams/{name}.txt").decode()


def test_the_enveloped_samples_decode_to_the_delimited_ones() -> None:
    for suffix, last in (("connect", (2, b"{}")), ("grpcweb", (0x80, b"grpc-status:0\r\n"))):
        got = EnvelopeReader().feed(sample(f"streams/answer-200.100ms.{suffix}"))
        assert got[-1] == last
        assert [message for _, message in got[:-1]] == messages(sample("streams/answer-200.100ms.pbd"))


def test_at_100_ms_answer_200_is_at_most_1100_bytes() -> None:
    assert sum(map(len, run(ChunkEncoder(Delivery()), timed("answer-200")))) <= 1100


# -- what is held


def test_the_first_text_leaves_at_once_and_the_next_is_held_for_the_delay() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    assert frame(encoder.feed(event("a"), 1.0)[0]).content == "a"
    assert encoder.deadline is None
    assert encoder.feed(event("b"), 1.02) == []
    assert encoder.feed(event("c"), 1.04) == []
    assert encoder.deadline == pytest.approx(1.12)
    assert encoder.tick(1.1) == []
    assert frame(encoder.tick(1.12)[0]).content == "bc"
    assert encoder.deadline is None


def test_a_late_timer_does_not_merge_what_comes_after_the_deadline() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    encoder.feed(event("a"), 0)
    encoder.feed(event("b"), 0.01)
    assert frame(encoder.feed(event("c"), 0.2)[0]).content == "b"


def test_the_first_text_of_each_choice_leaves_at_once() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    assert [one.index for one in frames_of(encoder.feed(event("a"), 0))] == [0]
    assert [one.index for one in frames_of(encoder.feed(event("b", index=1), 0))] == [1]
    encoder.feed(event("c"), 0)
    encoder.feed(event("d", index=1), 0)
    assert [(one.index, one.content) for one in frames_of(encoder.tick(0.1))] == [(0, "c"), (1, "d")]


def test_a_finish_waits_for_no_clock_and_shares_its_frame_with_the_usage_behind_it() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    encoder.feed(event("a"), 0)
    encoder.feed(event("b"), 1)
    assert encoder.feed(FINISH, 1.01) == []
    assert encoder.deadline == 1.01
    last = frame(encoder.feed(USAGE, 1.01)[0])
    assert (last.content, last.finish_reason, last.usage.completion_tokens) == ("b", pb.FINISH_REASON_STOP, 2)


def test_a_finish_without_usage_leaves_at_the_end_of_its_batch() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0))
    encoder.feed(FINISH, 5)
    assert frame(encoder.tick(5)[0]).finish_reason == pb.FINISH_REASON_STOP
    assert frame(encoder.feed(USAGE, 6)[0]).usage.prompt_tokens == 1


def test_a_finish_and_usage_in_one_event_leave_at_once() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    data = json.dumps(
        {"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    ).encode()
    assert frame(encoder.feed(data, 0)[0]).finish_reason == pb.FINISH_REASON_LENGTH


def test_usage_on_every_event_is_sent_once() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0))
    out = []
    for count in range(1, 4):
        body = {
            "choices": [{"delta": {"content": "a"}, "finish_reason": "stop" if count == 3 else None}],
            "usage": {"prompt_tokens": 9, "completion_tokens": count},
        }
        out += encoder.feed(json.dumps(body).encode(), count)
    assert [one.usage.completion_tokens for one in frames_of(out)] == [0, 0, 3]


def test_more_than_max_bytes_is_never_held() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=10_000, max_bytes=10))
    encoder.feed(event("first"), 0)
    assert encoder.feed(event("12345"), 0) == []
    assert frame(encoder.feed(event("67890"), 0)[0]).content == "1234567890"


def test_the_order_within_a_frame_is_the_order_in_which_it_came() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    out = encoder.feed(event("a"), 0)
    out += encoder.feed(event(delta={"reasoning_content": "r"}), 0)
    out += encoder.feed(event("c"), 0)
    out += encoder.feed(calls({"index": 0, "id": "i", "function": {"name": "f", "arguments": ""}}), 0)
    out += encoder.feed(event("late"), 0)
    out += encoder.end()
    assert [(one.reasoning, one.content, len(one.tool_calls)) for one in frames_of(out)] == [("", "a", 0), ("r", "c", 1), ("", "late", 0)]


def test_pieces_of_one_call_are_joined_and_calls_are_kept_apart() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    encoder.feed(event("a"), 0)
    for one in (
        {"index": 0, "id": "i", "function": {"name": "f", "arguments": '{"'}},
        {"index": 0, "function": {"arguments": "a"}},
        {"index": 1, "id": "j", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
        {"index": 0, "function": {"arguments": '":1}'}},
    ):
        encoder.feed(calls(one), 0)
    sent = frame(encoder.end()[0])
    assert [(call.index, call.id, call.arguments) for call in sent.tool_calls] == [(0, "i", '{"a'), (1, "j", "{}"), (0, "", '":1}')]


def test_choices_without_end_are_not_held_without_end() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=10_000))
    sent = 0
    for _ in range(2):
        for index in range(1000):
            sent += len(encoder.feed(event("a", index=index), 0))
    assert len(encoder._held) <= 128
    assert sent + len(encoder.end()) == 2000


def test_a_stream_that_just_stops_has_no_finish() -> None:
    encoder = ChunkEncoder(Delivery())
    out = encoder.feed(event("a"), 0) + encoder.feed(event("b"), 0) + encoder.end()
    assert all(not one.finish_reason for one in frames_of(out))
    assert encoder.end() == []


# -- errors


def test_an_error_comes_behind_what_was_held_and_nothing_follows_it() -> None:
    encoder = ChunkEncoder(Delivery())
    encoder.feed(event("a"), 0)
    encoder.feed(event("b"), 0)
    text, error = frames_of(encoder.fail(ProxyError("upstream_cut", "The upstream broke off.")))
    assert text.content == "b"
    assert (error.error.code, error.error.status, error.error.message) == ("upstream_cut", 502, "The upstream broke off.")
    assert encoder.feed(event("c"), 1) == []
    assert encoder.fail(ProxyError("internal", "x")) == []


@pytest.mark.parametrize("delivery", [Delivery(), Delivery(full=True, max_delay_ms=0)])
def test_an_error_of_broken_text_is_an_error(delivery) -> None:
    (error,) = frames_of(ChunkEncoder(delivery).feed(b'{"error":{"message":"over\xffloaded","code":"busy"}}', 0))
    assert (error.error.message, error.error.code) == ("over\ufffdloaded", "busy")


def test_an_error_in_the_upstreams_stream_is_the_last_frame() -> None:
    encoder = ChunkEncoder(Delivery())
    encoder.feed(event("a"), 0)
    (error,) = frames_of(encoder.feed(b'{"error":{"message":"overloaded","type":"server_error","code":"busy"}}', 0))
    assert (error.error.message, error.error.code, error.error.type) == ("overloaded", "busy", "server_error")
    assert encoder.ended


@pytest.mark.parametrize(
    "junk",
    [b"", b"not json", b"[]", b"1", b'{"choices":5}', b'{"choices":[5,{"delta":7}]}', b"[" * 5000, b"\xff", b'{"choices":[{"index":-1}]}'],
)
def test_what_makes_no_sense_is_skipped(junk: bytes) -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0))
    assert encoder.feed(junk, 0) == []
    assert frame(encoder.feed(event("a"), 0)[0]).content == "a"


# -- options


def test_reasoning_is_left_out_on_request() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0, omit_reasoning=True, full=True))
    deltas = [{"reasoning_content": "hm"}, {"reasoning": "hm", "reasoning_details": [{"text": "hm"}]}, {"content": "a"}]
    out = b"".join(b"".join(encoder.feed(event(delta=delta), 0)) for delta in deltas)
    assert b"hm" not in out
    assert b"a" in out


@pytest.mark.parametrize("size", [2, 3, 16, 32, 64, 128, 129, 130, 256, 1024])
@pytest.mark.parametrize("framing", ["delimited", "envelope"])
def test_padded_frames_are_a_multiple_and_say_the_same(size: int, framing: str) -> None:
    delivery = Delivery(max_delay_ms=0, pad_to=size)
    encoder = ChunkEncoder(delivery, frame=envelope) if framing == "envelope" else ChunkEncoder(delivery)
    out = [*run(encoder, timed("hindi-113")), encoder.keepalive()]
    assert {len(one) % size for one in out} == {0}
    if framing == "delimited":
        assert "".join(one.content for one in frames_of(out)) == sample("streams/hindi-113.txt").decode()


@given(st.integers(0, 400), st.integers(2, 300))
def test_padding_always_ends(length: int, size: int) -> None:
    for framing in (delimited, envelope):
        whole = padded(b"\x0a\x00" * (length // 2), size, framing)
        assert len(whole) % size == 0
        assert len(whole) < length + 4 * size + 20


def test_a_keepalive_is_one_byte_and_stands_for_no_event() -> None:
    encoder = ChunkEncoder(Delivery())
    assert encoder.keepalive() == b"\x00"
    assert Rebuilder().feed(b"") == []
    assert [len(message) for message in messages(sample("other/keepalive.pbd"))] == [0, 6]


def test_a_handle_that_the_server_chose_leaves_with_the_first_event() -> None:
    encoder = ChunkEncoder(Delivery(), handle=b"12345678")
    assert frame(encoder.feed(event(delta={"role": "assistant", "content": ""}), 0)[0]).start.handle == b"12345678"
    assert frame(encoder.feed(event("a"), 0)[0]).HasField("start") is False


def test_compact_says_no_ids_and_full_says_them_once() -> None:
    body = {"id": "i", "created": 7, "model": "m", "provider": "p", "choices": [{"index": 0, "delta": {"content": "a"}, "x": 1}]}
    data = json.dumps(body).encode()
    assert frame(ChunkEncoder(Delivery()).feed(data, 0)[0]) == pb.ChatCompletionChunk(content="a")
    encoder = ChunkEncoder(Delivery(full=True))
    first = frame(encoder.feed(data, 0)[0])
    assert (first.start.id, first.start.created, first.start.model) == ("i", 7, "m")
    assert json.loads(first.extra_json) == {"chunk": {"provider": "p"}, "choice": {"x": 1}}
    encoder.feed(data, 0)
    assert frame(encoder.end()[0]) == pb.ChatCompletionChunk(content="a")


def test_members_of_a_delta_are_part_of_the_answer_at_any_detail() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    encoder.feed(event("a"), 0)
    out = encoder.feed(event(delta={"audio": {"data": "QQ=="}}), 0)
    out += encoder.feed(event(delta={"audio": {"data": "QQ=="}}), 0)
    out += encoder.end()
    assert [json.loads(one.extra_json) for one in frames_of(out)] == [{"delta": {"audio": {"data": "QQ=="}}}] * 2


def test_lists_of_a_delta_are_joined() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    encoder.feed(event("a"), 0)
    encoder.feed(event(delta={"annotations": [1]}), 0)
    encoder.feed(event(delta={"annotations": [2]}), 0)
    assert json.loads(frame(encoder.end()[0]).extra_json) == {"delta": {"annotations": [1, 2]}}


def test_log_probabilities_go_with_their_text() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=100))
    encoder.feed(event("x"), 0)
    for text in ("a", "b"):
        encoder.feed(
            event(
                text, logprobs={"content": [{"token": text, "logprob": -0.5, "bytes": [ord(text)], "top_logprobs": []}], "refusal": None}
            ),
            0,
        )
    sent = frame(encoder.end()[0])
    assert (sent.content, [one.token for one in sent.logprobs]) == ("ab", ["a", "b"])


def test_a_character_cut_in_two_escapes_becomes_whole() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0))
    out = encoder.feed(b'{"choices":[{"delta":{"content":"a\\ud83d"}}]}', 0)
    out += encoder.feed(b'{"choices":[{"delta":{"content":"\\ude00b"}}]}', 0)
    assert "".join(one.content for one in frames_of(out)) == "a😀b"
    exact = ChunkEncoder(Delivery(max_delay_ms=0, full=True))
    halves = b'{"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}'
    (sent,) = exact.feed(halves, 0)
    assert Rebuilder().feed(messages(sent)[0]) == [halves]


# -- the quick way


WORDS = st.text(st.characters(codec="utf-8"), min_size=0, max_size=8)


@given(words=st.lists(WORDS, min_size=1, max_size=30), delay=st.sampled_from([0, 100]), full=st.booleans(), escaped=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_quick_way_gives_the_frames_of_the_slow_one(words: list[str], delay: int, *, full: bool, escaped: bool) -> None:
    def data(text: str, *, spaced: bool) -> bytes:
        document = {"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        separators = (", ", ": ") if spaced else (",", ":")
        return json.dumps(document, ensure_ascii=escaped, separators=separators).encode()

    delivery = Delivery(max_delay_ms=delay, full=full)
    quick = run(ChunkEncoder(delivery), [(data(word, spaced=False), place / 50) for place, word in enumerate(words)])
    slow = run(ChunkEncoder(delivery), [(data(word, spaced=True), place / 50) for place, word in enumerate(words)])
    assert quick == slow


def test_the_quick_way_is_not_fooled_by_a_second_content() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0))
    tricky = '{"x":{"content":"%s"},"choices":[{"index":0,"delta":{"content":"%s"}}]}'
    texts = [("a", "a"), ("b", "b"), ("c", "d"), ("e", "f")]
    got = [frame(encoder.feed((tricky % pair).encode(), 0)[0]).content for pair in texts]
    assert got == ["a", "b", "d", "f"]


def test_the_quick_way_ends_with_the_stream() -> None:
    encoder = ChunkEncoder(Delivery(max_delay_ms=0))
    compact = b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}'
    for text in (b"a", b"b", b"c"):
        assert len(encoder.feed(compact % text, 0)) == 1
    encoder.feed(b"[DONE]", 0)
    assert encoder.feed(compact % b"d", 0) == []


def test_every_sample_event_after_the_second_is_taken_the_quick_way() -> None:
    encoder = ChunkEncoder(Delivery())
    slow = 0
    for data in sse_data(sample("streams/answer-200.sse"))[:-3]:
        template = encoder._template
        slow += template is None or not (data.startswith(template.head) and template.text(data))
        encoder.feed(data, 0)
    assert slow <= 2
