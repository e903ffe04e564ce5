"""The meter against hostile input: it never raises, and loses no byte that is not an unfinished event's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.model import Format
from proxyd.wire.meter import Limits, Meter
from tests.wire.corpus import CASES, facts, load, run

UPSTREAM = (Format.SSE, Format.NDJSON, Format.JSON)
"""What upstreams send; protobuf is for clients only, and meets no meter."""


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 200_000,
        b'{"choices":' * 100_000,
        b'{"choices":[{"index":' + b"9" * 10_000 + b"}]}",
        b'{"usage":{"prompt_tokens":1e999,"completion_tokens":NaN,"total_tokens":-1}}',
        b'{"choices":[{"index":-5,"delta":{"content":"x"},"finish_reason":7}],"model":["m"]}',
        b'{"choices":[{"index":99999999999999999999,"delta":{"content":"x"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}',
        b'{"choices":{"0":1},"usage":[1],"error":{"message":{"a":1}},"model":""}',
        b'{"type":["error"],"object":{},"done":"yes","token":{"text":5}}',
        b'{"type":"message_start","message":7,"usage":{"input_tokens":"x"}}',
        b'{"choices":[null,1,"x",[],{}],"timings":{"prompt_n":"x"},"x_groq":3}',
        b"\x00\x01\x02",
        b'"' + b"\\u0000" * 1000,
    ],
)
@pytest.mark.parametrize("format_", UPSTREAM)
def test_hostile_documents_pass_and_never_raise(payload, format_):
    frame = {Format.SSE: b"data: " + payload + b"\n\n", Format.NDJSON: payload + b"\n", Format.JSON: payload}[format_]
    meter = Meter(format_)
    left, held = run(meter, [frame[: len(frame) // 2], frame[len(frame) // 2 :], frame], clean=True)
    assert left + held == frame * 2
    json.dumps(facts(meter))
    meter.produced().encode()


@st.composite
def mutations(draw):
    """A body of the corpus with stretches of it doubled, dropped or overwritten."""
    case = load(draw(st.sampled_from(CASES)))
    body = bytearray(case.body)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(body) - 1, 0)))
        end = start + draw(st.integers(0, 40))
        junk = draw(st.binary(max_size=8) | st.sampled_from([b"\r", b"\n\n", b'"', b"null", b"[DONE]", b"{}", b"\xef\xbb\xbf", b"data: "]))
        body[start:end] = junk + (bytes(body[start:end]) if draw(st.booleans()) else b"")
    return case, bytes(body)


@given(mutations(), st.lists(st.integers(0, 5000), max_size=6), st.booleans())
@settings(max_examples=600, deadline=None)
def test_a_damaged_stream_reads_the_same_however_it_is_cut(mutated, cuts, clean):
    """And loses no byte but an unfinished event at a cut."""
    case, body = mutated
    whole, pieced = case.meter(), case.meter()
    left, held = run(whole, [body], clean=clean)
    offsets = sorted(min(cut, len(body)) for cut in cuts)
    pieces = [body[a:b] for a, b in zip([0, *offsets], [*offsets, len(body)], strict=True)]
    again, kept = run(pieced, pieces, clean=clean)
    assert body.startswith(left + held)
    assert again + kept == left + held
    assert facts(pieced) == facts(whole)
    assert (pieced.produced(), pieced.events, pieced.ended) == (whole.produced(), whole.events, whole.ended)
    if clean:
        assert left + held == body
    pieced.produced().encode()


@given(
    st.lists(st.binary(max_size=80), max_size=6),
    st.sampled_from(UPSTREAM),
    st.sampled_from(["identity", "gzip", "deflate", "br"]),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_at_all_pass(pieces, format_, coding, clean):
    meter = Meter(format_, content_encoding=coding, limits=Limits(carry=32, body=64, text=8))
    left, held = run(meter, pieces, clean=clean)
    assert b"".join(pieces).startswith(left + held)
    if clean:
        assert left + held == b"".join(pieces)
    meter.read()
