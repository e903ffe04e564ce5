"""The bench's own checks, shown to fail: `python -m pytest bench/test_verify.py`. A fast wrong answer must not win."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench import answers, report
from bench.scenes import Board
from bench.verify import StreamCheck, UnaryCheck

SCRIPT = answers.Script(events=5, rate=0)


def whole() -> list[bytes]:
    """The events of a right stream, one by one."""
    return [answers.FIRST, *(answers.content(number, 1_000 + number) for number in range(5)), answers.FINISH, answers.DONE]


def verdict(events: list[bytes], *, probed: bool = False, loose: bool = False) -> str | None:
    check = StreamCheck(SCRIPT, (lambda _: None) if probed else None, loose=loose)
    check.feed(b"".join(events))
    return check.wrong(200)


@given(cuts=st.lists(st.integers(0, SCRIPT.length), max_size=20), probed=st.booleans())
def test_a_right_stream_is_right_however_it_is_cut(*, cuts: list[int], probed: bool) -> None:
    """Neither the count of events nor their numbers may depend on where reads end."""
    body = b"".join(whole())
    check = StreamCheck(SCRIPT, (lambda _: None) if probed else None)
    places = [0, *sorted(cuts), len(body)]
    counted = sum(check.feed(body[begin:end]) for begin, end in itertools.pairwise(places) if begin < end)
    assert (counted, check.wrong(200)) == (SCRIPT.blanks, None)


def test_the_length_of_a_stream_is_known_beforehand() -> None:
    """Otherwise the strict check compares with nothing."""
    assert len(b"".join(whole())) == SCRIPT.length


def test_a_lost_event_is_seen() -> None:
    """An event less is fewer bytes, and a gap in the numbers."""
    events = whole()
    del events[3]
    assert verdict(events) is not None
    assert verdict(events, loose=True) == "event 3 where 2 was due"


def test_events_in_the_wrong_order_are_seen_where_numbers_are_read() -> None:
    """Length and count are the same then: that is what the probed streams are for."""
    events = whole()
    events[2], events[3] = events[3], events[2]
    assert verdict(events, probed=True) == "event 2 where 1 was due"


def test_a_missing_end_is_seen() -> None:
    """Without [DONE] an answer is not whole."""
    assert "ends with" in str(verdict(whole()[:-1]))
    assert "ends with" in str(verdict(whole()[:-1], loose=True))


def test_an_added_usage_event_is_seen() -> None:
    """The load never asks for it, so a proxy that does has to take it out again."""
    events = whole()
    assert verdict([*events[:-1], answers.REPORT, events[-1]]) is not None


def test_stamps_are_read_from_each_event() -> None:
    """They are what latency is made of."""
    stamps: list[int] = []
    check = StreamCheck(SCRIPT, stamps.append)
    for event in whole():
        check.feed(event)
    assert stamps == [1_000, 1_001, 1_002, 1_003, 1_004]


def test_a_unary_answer_must_be_the_mocks_own_bytes() -> None:
    """A byte more, a byte less or another status is wrong."""
    check = UnaryCheck(loose=False)
    check.feed(answers.UNARY)
    assert check.wrong(200) is None
    assert check.wrong(503) is not None
    check.feed(b" ")
    assert check.wrong(200) is not None


def test_a_model_name_says_which_stream_to_send() -> None:
    """The mock reads it back out of any spacing of the JSON."""
    assert answers.read_model(answers.request_body("mock-250x50", stream=True)) == answers.Script(250, 50)
    assert answers.read_model(b'{"model":"mock-1xhold"}') == answers.Script(1, answers.HOLD)
    assert answers.read_model(b'{"model": "mock-unary"}') is None


def test_ratios_are_made_inside_a_round() -> None:
    """Two slow rounds of one and two of the other must not meet."""
    board = Board()
    for name, figures in (("nginx", [10.0, 20.0, 10.0]), ("proxyd strict", [20.0, 40.0, 30.0])):
        board.rounds.setdefault("300×50/s", {})[name] = [{"cpu": value} for value in figures]
    measured = {target.what: value for target, value in report.targets(board)}
    assert measured == {"CPU per streamed event, 300 streams": 2.0}
