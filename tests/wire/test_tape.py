"""The tape: what has passed, from any event on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.model import Format
from proxyd.wire.tape import Tape, without
from tests.wire.corpus import CASES, load

EVENT = st.sampled_from(
    [
        b"data: a\n\n",
        b"data: [DONE]\n\n",
        b"data:no space\n\n",
        b"data: two\ndata: lines\n\n",
        b"event: x\ndata: y\n\n",
        b"data: crlf\r\n\r\n",
        b": comment\n\n",
        b"event: without data\n\n",
        b"\n",
    ]
)


def told(data: bytes) -> bool:
    """Whether a client is given an event for this stretch."""
    return b"data" in data.replace(b"without data", b"")


def taped(*parts: bytes, limit: int = 1 << 20, form: Format = Format.SSE) -> Tape:
    tape = Tape(limit, form)
    for part in parts:
        tape.append(part)
    return tape


@given(st.lists(EVENT, max_size=12))
def test_what_follows_n_events_and_the_n_events_are_the_whole(parts):
    tape = taped(*parts)
    whole, count = b"".join(parts), sum(map(told, parts))
    assert tape.events() == count
    assert tape.whole() == whole
    for received in range(count + 1):
        position = tape.after(received)
        rest = taped(tape.since(position, 1 << 20))
        assert whole[position:] == rest.whole()
        assert rest.events() == count - received
    for received in (count + 1, count + 1000):
        with pytest.raises(ProxyError, match="only") as refused:
            tape.after(received)
        assert (refused.value.status, refused.value.param) == (400, "received")


@settings(deadline=None)
@given(st.lists(st.tuples(EVENT, st.booleans()), max_size=12))
def test_what_stands_apart_is_neither_counted_nor_given(parts):
    whole, apart = b"", []
    for part, away in parts:
        if away:
            apart.append((len(whole), len(whole) + len(part)))
        whole += part
    rest = b"".join(part for part, away in parts if not away)
    tape, plain = taped(whole), taped(rest)
    for cut in range(len(whole) + 1):
        assert without(whole[:cut], 0, apart) + without(whole[cut:], cut, apart) == rest
    assert tape.events(apart) == plain.events()
    for received in range(plain.events() + 1):
        position = tape.after(received, apart)
        assert without(whole[position:], position, apart) == rest[plain.after(received) :]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("openai-chat")])
def test_positions_are_ends_of_events_in_real_streams(name):
    data = load(name).body
    tape = taped(data)
    positions = [tape.after(received) for received in range(tape.events() + 1)]
    assert positions == sorted(set(positions))
    assert all(position == 0 or data[position - 2 : position] in (b"\n\n", b"\r\n") for position in positions)


@given(st.lists(st.sampled_from([b'{"a":1}\n', b"\n", b'{"b":"x"}\r\n']), max_size=8))
def test_lines_of_json_are_counted_as_lines(parts):
    tape = taped(*parts, form=Format.NDJSON)
    count = sum(len(part) > 1 for part in parts)
    assert tape.events() == count
    assert tape.after(count) <= len(b"".join(parts))


def test_a_last_event_without_its_blank_line_counts_once_all_is_said():
    tape = taped(b"data: a\n\ndata: b")
    assert tape.events() == 1
    tape.closed = True
    assert tape.events() == 2
    assert tape.after(2) == tape.end


def test_a_full_tape_says_so_and_never_gives_half_an_answer():
    tape = taped(b"data: a\n\n", limit=9)
    assert not tape.overflowed
    tape.append(b"d")
    assert tape.overflowed
    for act in (tape.whole, lambda: tape.after(0), lambda: tape.after(1)):
        with pytest.raises(ProxyError) as refused:
            act()
        assert (refused.value.code, refused.value.status) == ("stream_gone", 410)


@given(st.binary(max_size=64), st.integers(0, 80), st.integers(0, 80), st.integers(1, 80))
def test_positions_count_from_the_first_byte_whatever_was_let_go(data, gone, position, most):
    tape = taped(data)
    tape.let_go(min(gone, len(data)))
    assert tape.end == len(data)
    assert tape.size == len(data) - tape.start
    if position >= tape.start:
        assert tape.since(position, most) == data[position : position + most]


@settings(deadline=None)
@given(st.integers(0, 3))
def test_finding_a_place_on_a_full_tape_takes_no_time_that_others_would_notice(odd):
    """Linear, and fast where events look as nearly all do. The bound is generous: it fails for what is quadratic."""
    tape = taped(b": x\n" * odd + (b"data: " + b"x" * 240 + b"\n\n") * 16000, limit=8 << 20)
    begun = time.process_time()
    tape.after(tape.events())
    assert time.process_time() - begun < 2
