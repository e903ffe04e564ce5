"""Framing: every way of cutting a stream gives the same events, and the sizes add up to the stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxyd.wire.sse import NDJSON, SSE, whole_events

LIMIT = 1 << 20


def events(stream: bytes, cuts: list[int] | None = None, limit: int = LIMIT, framing: type = SSE) -> list[tuple]:
    """What a stream says, cut at the given offsets: (data, name, error, lost) of each dispatched event."""
    framer = framing(limit)
    offsets = [0, *sorted(cuts or []), len(stream)]
    frames = [frame for a, b in itertools.pairwise(offsets) for frame in framer.feed(stream[a:b])]
    last = framer.end()
    frames += [last] if last else []
    assert sum(frame.size for frame in frames) == len(stream)
    return [
        (frame.data if frame.data is None else bytes(frame.data), frame.name, frame.error and bytes(frame.error), frame.lost)
        for frame in frames
        if frame.data is not None or frame.error is not None or frame.lost
    ]


def data(*payloads: bytes) -> list[tuple]:
    return [(payload, b"", None, False) for payload in payloads]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", data(b"a", b"b")),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", data(b"a", b"b")),
        (b"data: a\r\rdata: b\r\r", data(b"a", b"b")),
        (b"data: a\n\r\ndata: b\r\ndata: c\r\n\n", data(b"a", b"b\nc")),
        (b"\xef\xbb\xbfdata: a\n\n", data(b"a")),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", data(b"a")),
        (b"data:a\n\ndata:  b\n\n", data(b"a", b" b")),
        (b"data\ndata\n\n", data(b"\n")),
        (b"data:\n\n", data(b"")),
        (b": comment\n\n:\n\ndata: a\n: inside\n\n", data(b"a")),
        (b"id: 1\nretry: 5\n\nevent: x\n\ndata: a\n\n", data(b"a")),
        (b"event: x\ndata: a\n\n", [(b"a", b"x", None, False)]),
        (b"error: {}\n\n", [(None, b"", b"{}", False)]),
        (b"data: a\ndata: b", data(b"a\nb")),
        (b"data: \xe2\x80\xa8\xc2\x85\x0b\x0c\n\n", data(b"\xe2\x80\xa8\xc2\x85\x0b\x0c")),
        (b"DATA: a\n data: b\n\n", []),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_fields_and_line_ends_are_those_of_the_standard(stream, expected):
    """WHATWG 9.2.6, with the two leniencies: a pending event counts at a clean end, and the field `error`."""
    for offset in range(len(stream) + 1):
        assert events(stream, [offset]) == expected
    assert events(stream, list(range(1, len(stream)))) == expected


pieces = st.sampled_from(
    [b"data: x", b"data:", b"data", b": c", b"event: e", b"error: f", b"\n", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"y"]
)


@given(st.lists(pieces, max_size=24).map(b"".join) | st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=8))
@example(b"data: x\r\n\r\n\r\ndata: y", [8, 9, 10, 11])
def test_any_stream_cut_anyhow_says_the_same(stream, cuts):
    whole = events(stream)
    assert events(stream, [min(cut, len(stream)) for cut in cuts]) == whole
    assert events(stream, list(range(1, len(stream)))) == whole


@given(
    st.lists(
        st.sampled_from([b"data: x\n\n", b"data: \n\n", b"data: {}\n\n", b"data: x\n", b"\n", b"data: x\r\n\r\n", b": c\n\n", b"x"]),
        max_size=6,
    )
)
def test_the_quick_split_tells_the_same_as_framing(chunks):
    chunk = b"".join(chunks)
    payloads = whole_events(chunk)
    if payloads is not None:
        assert events(chunk) == data(*payloads)
        assert sum(len(payload) + 8 for payload in payloads) == len(chunk)
    elif chunk and all(part in (b"data: x\n\n", b"data: {}\n\n") for part in chunks):
        pytest.fail("whole events were not recognised")


def test_an_event_past_the_limit_is_lost_and_the_next_is_read():
    """The sizes stay true, whether one line is too long, many are, or the line is no data at all."""
    for huge in (b"data: " + b"x" * 100 + b"\n\n", b"data: 12345678\n" * 20 + b"\n", b": " + b"x" * 100 + b"\ndata: y\n\n"):
        stream = huge + b"data: a\n\n"
        expected = [(None, b"", None, True), (b"a", b"", None, False)]
        assert events(stream, limit=64) == expected
        assert events(stream, list(range(1, len(stream))), limit=64) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}\n', b'{"b":2}\n']),
        (b'{"a":1}\r\n\r\n \n{"b":2}', [b'{"a":1}\r\n', b'{"b":2}']),
        (b"", []),
        (b"\n\n", []),
    ],
)
def test_lines_of_json_skip_empty_ones_and_count_the_last(stream, expected):
    for offset in range(len(stream) + 1):
        assert [event[0] for event in events(stream, [offset], framing=NDJSON)] == expected


def test_a_line_past_the_limit_is_lost_and_the_next_is_read():
    stream = b"x" * 100 + b"\n{}\n"
    expected = [(None, b"", None, True), (b"{}\n", b"", None, False)]
    assert events(stream, limit=64, framing=NDJSON) == expected
    assert events(stream, list(range(1, len(stream))), limit=64, framing=NDJSON) == expected
