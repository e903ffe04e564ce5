"""The meter, told what came: what leaves and when, what is read, and how answers are framed and coded."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.model import Format, Usage
from proxyd.wire.meter import Limits, Meter, format_of
from proxyd.wire.sse import SSE
from tests.wire.corpus import run


def chunk(content: str = "Hi", **more) -> bytes:
    doc = {"model": "m", "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(doc).encode() + b"\n\n"


USAGE = b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"


def cuts_of(stream: bytes):
    yield [stream]
    yield [stream[i : i + 1] for i in range(len(stream))]
    for offset in range(1, len(stream)):
        yield [stream[:offset], stream[offset:]]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("extra", [b"", b"\n"])
def test_the_usage_event_that_we_asked_for_is_cut_out_and_nothing_else(end, extra):
    """With its blank lines, for any line end, however the stream is cut; and its numbers are read all the same."""
    before, usage, after = chunk(), USAGE + extra, DONE
    stream = [part.replace(b"\n", end) for part in (before, usage, after)]
    for pieces in cuts_of(b"".join(stream)):
        meter = Meter(Format.SSE, strip_usage=True)
        left, held = run(meter, pieces, clean=True)
        assert (left, held) == (stream[0], stream[2])
        assert meter.read().usage == Usage(5, 2, 7)
        assert meter.events == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("limits", [Limits(), Limits(body=150)])
def test_a_usage_event_that_is_not_for_everybody_passes_and_its_place_is_noted(end, limits):
    before, usage, after = (part.replace(b"\n", end) for part in (chunk(), USAGE + b"\n", DONE))
    for pieces in cuts_of(before + usage + after + usage):
        meter = Meter(Format.SSE, usage_at=[], limits=limits)
        out = b"".join(run(meter, pieces, clean=True))
        assert out == before + usage + after + usage
        assert [out[start:stop] for start, stop in meter.usage_at] == [usage, usage]


def test_the_place_of_a_usage_event_is_noted_where_it_leaves_whole_and_nowhere_else():
    for pieces in cuts_of(chunk() + USAGE + DONE):
        meter = Meter(Format.SSE, usage_at=[], limits=Limits(carry=20))
        out = b"".join(run(meter, pieces, clean=True))
        assert out == chunk() + USAGE + DONE
        assert [out[start:stop] for start, stop in meter.usage_at] in ([USAGE], [])
    cut = Meter(Format.SSE, usage_at=[])
    assert run(cut, [chunk(), chunk() + USAGE[:-2]], clean=True)[1] == USAGE[:-2]
    assert cut.usage_at == [(2 * len(chunk()), 2 * len(chunk()) + len(USAGE) - 2)]


def test_event_by_event_the_usage_event_is_cut_out_and_the_rest_held():
    """On the hot path too: blank lines that come later share the fate of the event, and so does all after the end."""
    meter = Meter(Format.SSE, strip_usage=True)
    sent = [chunk(), chunk(), USAGE, b"\n", chunk("x"), DONE, chunk("y"), b"\n"]
    assert [meter.feed(piece) for piece in sent] == [chunk(), chunk(), b"", b"", chunk("x"), b"", b"", b""]
    assert meter.end(clean=True) == b""
    assert meter.take_held() == DONE + chunk("y") + b"\n"
    assert meter.events == 5


def test_several_events_in_a_chunk_are_parted_where_they_must_be():
    meter = Meter(Format.SSE, strip_usage=True)
    meter.feed(b": hello\n\n")
    assert meter.feed(chunk() + USAGE + chunk() + DONE + chunk()) == chunk() + chunk()
    assert meter.take_held() == DONE + chunk()
    assert meter.events == 4


def test_a_usage_event_of_which_a_part_has_left_is_not_cut_in_two():
    for pieces in cuts_of(chunk() + USAGE + DONE):
        meter = Meter(Format.SSE, strip_usage=True, limits=Limits(carry=20))
        left, held = run(meter, pieces, clean=True)
        assert (left, held) in ((chunk() + USAGE, DONE), (chunk(), DONE))


@pytest.mark.parametrize(
    "event",
    [
        USAGE.replace(b'"choices":[]', b'"choices":[{"index":0,"delta":{}}]'),
        USAGE.replace(b'"choices":[]', b'"choices":[],"moderation":{"input":{}}'),
        USAGE.replace(b'"choices":[]', b'"choices":[],"prompt_filter_results":[{}]'),
        USAGE.replace(b'"choices":[]', b'"choices":[],"error":{"message":"x"}'),
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[]}\n\n',
        b'data: {"usage":{"prompt_tokens":5}}\n\n',
    ],
)
def test_an_event_that_holds_more_than_usage_or_none_stays(event):
    for pieces in cuts_of(chunk() + event):
        assert run(Meter(Format.SSE, strip_usage=True), pieces, clean=True) == (chunk() + event, b"")


def test_a_usage_event_that_lacks_its_blank_line_at_a_clean_end_is_cut_out_too():
    meter = Meter(Format.SSE, strip_usage=True)
    assert run(meter, [chunk(), USAGE[:-2]], clean=True) == (chunk(), b"")
    assert meter.read().usage == Usage(5, 2, 7)


PLAIN = b'data: {"id":"a","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
INSIDE = [
    *(b"a", b" word", b"\\n", b"\\u00e4", "ä".encode(), b"\\\\", b'\\"'),
    *(b"\\ud83d", b"\\ude00", b"", b"\xff", b'"', b"\\", b'","x":"y', b"\r\rdata: [DONE]\r\r", b"\\u00", b"e4"),
]
OTHERS = [USAGE, DONE, b": comment\n\n", b"\n", chunk("other"), b'data: {"error":{"message":"no"}}\n\n', b"event: x\n"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(INSIDE).map(lambda text: PLAIN % text) | st.sampled_from(OTHERS), max_size=40))
def test_events_that_look_alike_are_read_together_as_they_are_one_by_one(events: list[bytes]) -> None:
    events = [PLAIN % b"one", PLAIN % b"two", *events]
    quick, slow = Meter(Format.SSE, strip_usage=True), Meter(Format.SSE, strip_usage=True)
    out = b"".join(map(quick.feed, events))
    assert out == b"".join(slow.feed(bytes([byte])) for byte in b"".join(events))
    assert quick.end(clean=True) == slow.end(clean=True)
    assert (quick.take_held(), quick.events, quick.ended) == (slow.take_held(), slow.events, slow.ended)
    assert (quick.read(), quick.produced(), quick.last_error) == (slow.read(), slow.produced(), slow.last_error)


def test_what_was_kept_is_told_whenever_it_is_asked():
    meter = Meter(Format.SSE)
    for number in range(100):
        meter.feed(PLAIN % b"%d," % number)
        if number % 7 == 0:
            assert meter.produced() == "".join(f"{each}," for each in range(number + 1))


def test_a_chunk_of_whole_events_passes_as_the_same_object():
    """No copy is made on the hot path, nor for a chunk in any other framing that ends with its event."""
    for end in (b"\n", b"\r\n"):
        meter = Meter(Format.SSE)
        for event in (b": hello\n\n".replace(b"\n", end), chunk().replace(b"\n", end), (chunk() + chunk()).replace(b"\n", end)):
            assert meter.feed(event) is event
        assert (meter.events, meter.begun, meter.mid_event) == (3, True, False)


def test_half_an_event_waits_for_its_other_half():
    meter = Meter(Format.SSE)
    event = chunk()
    assert meter.feed(event + event[:10]) == event
    assert not meter.mid_event
    assert meter.feed(event[10:]) == event


TERMINALS = {
    "data: [DONE]": DONE,
    "Responses": b'event: response.completed\ndata: {"type":"response.completed","response":{"status":"completed"}}\n\n',
    "Anthropic": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "transcription": b'data: {"type":"transcript.text.done","text":"x"}\n\n',
    "TGI": b'data:{"token":{"text":"x"},"generated_text":"x","details":{"finish_reason":"length"}}\n\n',
}


@pytest.mark.parametrize("terminal", TERMINALS.values(), ids=TERMINALS)
def test_from_the_terminal_event_on_all_is_held(terminal):
    stream = chunk() + terminal + b": later\n\n"
    for pieces in cuts_of(stream):
        meter = Meter(Format.SSE)
        left = b"".join(meter.feed(piece) for piece in pieces)
        assert (left, meter.ended) == (chunk(), True)
        assert meter.end(clean=True) == b""
        assert meter.take_held() == terminal + b": later\n\n"
        assert meter.take_held() == b""


def test_done_proves_nothing_in_a_protocol_that_has_its_own_ending():
    """Some gateways put [DONE] behind anything."""
    for event in (b'data: {"type":"response.created","response":{}}\n\n', b'data: {"type":"message_start","message":{}}\n\n'):
        meter = Meter(Format.SSE)
        assert run(meter, [event, DONE], clean=True) == (event, DONE)
        assert not meter.read().complete
    meter = Meter(Format.SSE)
    run(meter, [chunk(), DONE], clean=False)
    assert meter.read().complete


def test_the_done_line_of_ndjson_is_held():
    lines = [b'{"response":"a","done":false}\n', b'{"response":"","done":true}\n']
    meter = Meter(Format.NDJSON, endpoint="/api/generate")
    assert meter.feed(b"".join(lines)) == lines[0]
    assert meter.ended
    assert meter.take_held() == lines[1]


def test_a_cut_drops_the_unfinished_event_and_keeps_the_terminal_one():
    meter = Meter(Format.SSE)
    assert run(meter, [chunk(), chunk()[:-1]], clean=False) == (chunk(), b"")
    assert not meter.read().complete
    meter = Meter(Format.SSE)
    assert run(meter, [chunk(), DONE, chunk()[:-1]], clean=False) == (chunk(), DONE)
    assert meter.read().complete


def test_an_event_larger_than_the_carry_passes_as_it_comes_and_is_read():
    event = chunk("x" * 1000)
    meter = Meter(Format.SSE, limits=Limits(carry=100))
    assert meter.feed(event[:100]) == b""
    assert meter.feed(event[100:101]) == event[:101]
    assert meter.mid_event
    assert meter.feed(event[101:]) == event[101:]
    assert not meter.mid_event
    assert meter.texts() == {0: "x" * 1000}


def test_the_end_of_a_terminal_event_larger_than_the_carry_is_held():
    """Its head has left, but the client cannot take it for whole."""
    terminal = b'data: {"type":"response.completed","response":{"status":"completed","x":"' + b"x" * 500 + b'"}}\n\n'
    for pieces in cuts_of(terminal):
        meter = Meter(Format.SSE, limits=Limits(carry=100))
        left, held = run(meter, pieces, clean=True)
        assert left + held == terminal
        assert held
        assert meter.read().complete


def test_a_body_is_held_whole_and_dropped_when_cut():
    body = b'\n{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
    for pieces in cuts_of(body):
        meter = Meter(Format.JSON)
        assert run(meter, pieces, clean=True) == (b"", body)
        assert meter.read().complete
        meter = Meter(Format.JSON)
        assert run(meter, pieces[:-1] or [b"{"], clean=False) == (b"", b"")
        assert not meter.read().complete


def test_a_body_has_begun_with_its_first_byte_that_is_not_blank():
    meter = Meter(Format.JSON)
    begun = []
    for piece in (b"", b"\n\n", b" ", b"{", b"}"):
        meter.feed(piece)
        begun.append(meter.begun)
    assert begun == [False, False, False, True, True]


def test_a_body_past_the_limit_passes_unread():
    meter = Meter(Format.JSON, limits=Limits(body=100))
    assert meter.feed(b"[" + b" " * 99) == b""
    assert meter.feed(b" ") == b"[" + b" " * 100
    assert meter.feed(b"]") == b"]"
    assert run(meter, [], clean=True) == (b"", b"")
    assert (meter.unread, meter.mid_event, meter.read().complete) == (True, True, False)


def test_a_large_body_is_read_without_decoding_its_vectors():
    """A member that is not needed may even hold what no parser would take."""
    vectors = b"[" + b"0.125," * 30_000 + b'"\\ud800"]'
    body = b'{"object":"list","data":' + vectors + b',"model":"e","usage":{"prompt_tokens":4,"total_tokens":4}}'
    meter = Meter(Format.JSON, endpoint="/v1/embeddings")
    run(meter, [body], clean=True)
    assert (meter.read().usage, meter.read().model, meter.read().complete) == (Usage(4, 0, 4), "e", True)


def test_work_is_linear_in_a_large_event_fed_byte_by_byte(monkeypatch):
    """Told by what is looked at, not by a clock: the framer sees each byte once, and the carry is never copied anew."""
    seen = 0
    feed = SSE.feed

    def counting(self, data):
        nonlocal seen
        seen += len(data)
        return feed(self, data)

    monkeypatch.setattr(SSE, "feed", counting)
    event = chunk("x" * 200_000)
    meter = Meter(Format.SSE)
    left = b"".join([meter.feed(event[i : i + 1]) for i in range(len(event))])
    assert left == event
    assert seen == len(event)
    assert meter.texts() == {0: "x" * 200_000}


# ---------------------------------------------------------------------- coded answers


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate", "two members"])
def test_coded_streams_pass_unchanged_and_are_read(coding):
    plain = chunk() + USAGE + DONE
    coded = {
        "gzip": gzip.compress(plain),
        "deflate": zlib.compress(plain),
        "raw deflate": zlib.compress(plain)[2:-4],
        "two members": gzip.compress(plain[:50]) + gzip.compress(plain[50:]),
    }[coding]
    encoding = "deflate" if "deflate" in coding else "gzip"
    for pieces in cuts_of(coded):
        meter = Meter(Format.SSE, content_encoding=encoding, strip_usage=True)
        left, held = run(meter, pieces, clean=True)
        assert left + held == coded
        assert (meter.read().usage, meter.events, meter.ended) == (Usage(5, 2, 7), 3, True)
        assert held


def test_a_coded_body_is_read_from_a_copy():
    body = gzip.compress(b'{"model":"m","choices":[],"usage":{"prompt_tokens":5}}')
    for pieces in cuts_of(body):
        meter = Meter(Format.JSON, content_encoding="GZIP")
        assert run(meter, pieces, clean=True) == (b"", body)
        assert (meter.read().model, meter.read().complete) == ("m", True)


def test_an_unknown_coding_passes_unread():
    meter = Meter(Format.SSE, content_encoding="br")
    assert meter.feed(b"\x0b\x02") == b"\x0b\x02"
    assert (meter.unread, meter.begun, meter.mid_event) == (True, True, True)
    meter = Meter(Format.JSON, content_encoding="br")
    assert run(meter, [b"\x0b\x02"], clean=True) == (b"", b"\x0b\x02")


def test_a_bomb_passes_unread():
    """64 MiB of nothing in 64 KiB: decoding stops early, the bytes go on."""
    bomb = gzip.compress(b"\x00" * (64 << 20))
    for format_ in (Format.SSE, Format.NDJSON, Format.JSON):
        meter = Meter(format_, content_encoding="gzip")
        left, held = run(meter, [bomb, b"more"], clean=True)
        assert left + held == bomb + b"more"
        assert meter.unread


# ---------------------------------------------------------------------- what was generated


def test_reasoning_under_two_names_counts_once():
    event = b'data: {"choices":[{"index":0,"delta":{"content":"","reasoning":"Hm.","reasoning_content":"Hm."}}]}\n\n'
    meter = Meter(Format.SSE)
    run(meter, [event, event], clean=True)
    assert meter.produced() == "Hm.Hm."


def test_text_is_kept_up_to_its_bound_and_the_rest_is_counted():
    meter = Meter(Format.SSE, limits=Limits(text=10))
    run(meter, [chunk("x" * 6)] * 4, clean=True)
    assert (meter.produced(), meter.text_lost) == ("x" * 10, 14)


def test_surrogate_halves_in_two_events_become_one_character():
    """As gateways in JavaScript cut text; alone they become a replacement character. Both are text that UTF-8 can hold."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n'
    meter = Meter(Format.SSE)
    run(meter, [event, event.replace(b"ud83d", b"ude80"), event, chunk("x")], clean=True)
    assert meter.produced() == "\U0001f680\ufffdx"


# ---------------------------------------------------------------------- errors


def test_an_error_is_known_as_soon_as_its_event_is_whole():
    meter = Meter(Format.SSE)
    assert not meter.had_error
    meter.feed(b'data: {"error":{"message":"no"}}\n\n')
    assert (meter.had_error, meter.begun) == (True, True)
    assert Meter(Format.JSON, status=500).had_error


# ---------------------------------------------------------------------- framing


@pytest.mark.parametrize(
    ("content_type", "streamed", "head", "expected"),
    [
        ("text/event-stream; charset=utf-8", True, b"", Format.SSE),
        ("Text/Event-Stream", False, b"{", Format.SSE),
        ("application/x-ndjson", True, b"", Format.NDJSON),
        ("application/json", False, b"data: x", Format.JSON),
        ("application/json", True, b"data: {", Format.SSE),
        ("application/json", True, b"\xef\xbb\xbfdata: {", Format.SSE),
        ("application/json", True, b"\n: ping\n", Format.SSE),
        ("application/json", True, b'{"error":', Format.JSON),
        ("application/json", True, b"", Format.JSON),
        (None, True, b"", Format.SSE),
        ("text/plain", True, b"event: x", Format.SSE),
        ("text/plain", True, b"Bad gateway", Format.JSON),
        (None, False, b"", Format.JSON),
        ("text/html", True, b"", Format.JSON),
    ],
)
def test_the_framing_is_told_by_the_type_and_in_doubt_by_the_bytes(content_type, streamed, head, expected):
    assert format_of(content_type, streamed=streamed, head=head) is expected


@pytest.mark.parametrize(
    ("form", "parts", "tier"),
    [
        (Format.SSE, [chunk(), b'data: {"choices":[],"usage":{"prompt_tokens":1},"service_tier":"flex"}\n\n'], "flex"),
        (
            Format.SSE,
            [b'data: {"model":"m","service_tier":"auto","choices":[]}\n\n', USAGE.replace(b"{", b'{"service_tier":"default",', 1)],
            "default",
        ),
        (Format.SSE, [b'data: {"model":"m","service_tier":"priority","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'], "priority"),
        (Format.SSE, [b'data: {"type":"response.completed","response":{"status":"completed","service_tier":"flex"}}\n\n'], "flex"),
        (Format.SSE, [b'data: {"type":"message_start","message":{"usage":{"input_tokens":1,"service_tier":"standard"}}}\n\n'], "standard"),
        (Format.JSON, [b'{"choices":[],"service_tier":"flex"}'], "flex"),
        (Format.JSON, [b'{"choices":[],"service_tier":null}'], None),
        (Format.JSON, [b'{"choices":[],"service_tier":"' + b"x" * 33 + b'"}'], None),
        (Format.JSON, [b'{"choices":[],"service_tier":7}'], None),
    ],
)
def test_what_the_answer_was_served_as_is_read_and_the_last_word_counts(form, parts, tier):
    meter = Meter(form)
    run(meter, parts, clean=True)
    assert meter.read().service_tier == tier
