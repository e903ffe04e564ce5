"""How an answer is to be delivered, said in three ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import Delivery as Written
from proxyd.errors import ProxyError
from proxyd.model import DeliveryDefaults
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.delivery import MAX_HELD, Delivery, combined, from_header, from_members, from_message, with_defaults
from tests.wire.pb_samples import status_of


def test_nothing_said_is_the_defaults() -> None:
    assert from_message(pb.Delivery()) == from_header("") == from_members({}) == Delivery() == Delivery(None, MAX_HELD)


def test_the_three_ways_say_the_same() -> None:
    expected = Delivery(max_delay_ms=100, max_bytes=200, full=True, pad_to=16, omit_reasoning=True, resumable=True, compress=True)
    message = pb.Delivery(
        max_delay_ms=100, max_bytes=200, detail=2, token_vocabulary=1, pad_to=16, omit_reasoning=True, resumable=True, compress=True
    )
    members = {"max_delay_ms": 100, "max_bytes": 200, "detail": "full", "token_vocabulary": "o200k_base", "pad_to": 16}
    members |= {"omit_reasoning": True, "resumable": True, "compress": True}
    header = "max-delay-ms=100, max-bytes=200,detail=full, token-vocabulary=o200k_base, pad-to=16, omit-reasoning, resumable=?1, compress"
    assert from_message(message) == from_members(members) == from_header(header) == expected


def test_a_delay_of_zero_is_not_the_default() -> None:
    assert from_message(pb.Delivery(max_delay_ms=0)).max_delay_ms == 0
    assert from_header("max-delay-ms=0, resumable=?0").max_delay_ms == 0


@pytest.mark.parametrize(
    "header",
    [
        "max-delay-ms",
        "max-delay-ms=-1",
        "max-delay-ms=10001",
        "pad-to=1025",
        "max-bytes=65537",
        "detail=some",
        "x=1",
        "=1",
        "resumable=1",
        "max-delay-ms=99999999999",
    ],
)
def test_a_header_that_makes_no_sense_is_refused(header: str) -> None:
    with pytest.raises(ProxyError) as refused:
        from_header(header) if header != "=1" else from_header("delivery=1")
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "members", [[], None, "x", {"max_delay_ms": True}, {"max_delay_ms": 1.5}, {"detail": 2}, {"resumable": "yes"}, {1: 2}]
)
def test_members_that_make_no_sense_are_refused(members: object) -> None:
    with pytest.raises(ProxyError):
        from_members(members)


@pytest.mark.parametrize("count", range(4))
def test_the_requests_word_comes_first_then_the_keys_then_the_routes_then_everybodys(count) -> None:
    """Whoever of them says nothing is passed over: here, `count` of them."""
    said = [(1, 1, True), (20, 2000, True), (30, 3000, True), (40, 4000, True)]
    heard = [None] * count + said[count:]
    own = Delivery() if count else Delivery(1, 1, compress=True)
    key, route, rest = ((each or (None, None, None)) for each in heard[1:])
    written = [Written(max_delay_ms=delay, max_bytes=most, compress=compress) for delay, most, compress in (route, rest)]
    told = with_defaults(own, combined(DeliveryDefaults(*key), *written))
    assert (told.max_delay_ms, told.max_bytes, told.compress) == said[count]


@pytest.mark.parametrize(
    ("key", "route", "rest", "expected"),
    [
        (None, None, None, True),  # as the request asked
        (True, False, True, False),  # its lengths must tell nothing
        (False, True, True, False),
        (None, True, False, True),
        (None, None, False, False),
        (True, None, False, True),
    ],
)
def test_who_never_compresses_is_heard_a_route_above_all(key, route, rest, expected) -> None:
    default = combined(DeliveryDefaults(compress=key), Written(compress=route), Written(compress=rest))
    assert with_defaults(Delivery(compress=True), default).compress is expected


@given(st.text(max_size=60))
def test_any_header_is_read_or_a_proxy_error(header: str) -> None:
    assert status_of(lambda: from_header(header)) in {200, 400}
