"""Hostile protobuf: whatever comes, it is a message or a ProxyError, and memory stays bounded."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire import proto
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto_embed import embeddings_request
from proxyd.wire.proto_frames import varint
from proxyd.wire.proto_scan import MAX_FIELDS, MAX_IDS, parse
from tests.wire.pb_samples import REQUESTS, sample, status_of


def nested(number: int, inside: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(inside)) + inside


def logprobs(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = nested(4, data)
    return nested(11, data)


HOSTILE = {
    "empty messages by the million": b"\x12\x00" * 2_000_000,
    "messages of empty parts": b"\x12\x02\x1a\x00" * 1_000_000,
    "one message of empty parts": nested(2, b"\x1a\x00" * 2_000_000),
    "labels by the million": b"\x82\x02\x00" * 1_000_000,
    "unknown fields by the million": b"\xf8\x3f\x01" * 1_000_000,
    "a varint without end": b"\xff" * 100,
    "a length beyond the end": b"\x0a\x05ab",
    "a giant length": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a child longer than its parent": b"\x12\x02\x0a\x05abcde",
    "a number cut off": b"\x3d\x00\x00",
    "a tag and nothing": b"\x0a",
    "a group": b"\x0b\x0c",
    "an unknown group": b"\xfb\x3f\xfc\x3f",
    "the end of a group": b"\x0c",
    "field number zero": b"\x02\x00",
    "wire type 7": b"\x0f",
    "a model that is a number": b"\x08\x01",
    "a temperature that is text": b"\x3a\x01a",
    "a message that is a float": b"\x15\x00\x00\x00\x00",
    "text that is not UTF-8": b"\x0a\x02\xff\xfe",
    "half a surrogate": b"\x0a\x03\xed\xa0\x80",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_in_bounded_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProxyError) as refused:
            proto.chat(HOSTILE[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (refused.value.code, refused.value.status) == ("invalid_request", 400)
    assert peak < 1_000_000 + len(HOSTILE[name])


def test_depth_is_bounded() -> None:
    assert parse(pb.ChatCompletionChunk, logprobs(50)).logprobs
    with pytest.raises(ProxyError, match="within messages"):
        parse(pb.ChatCompletionChunk, logprobs(20_000))


def test_packed_numbers_are_counted_before_they_are_unpacked() -> None:
    assert embeddings_request(nested(3, nested(1, b"\x01" * 1000))).body == b'{"input":[[%b]]}' % b",".join([b"1"] * 1000)
    for data in (nested(3, nested(1, b"\x01" * (MAX_IDS + 1))), nested(3, nested(1, b"\x01" * (MAX_IDS // 2 + 1))) * 2):
        with pytest.raises(ProxyError, match="packed"):
            embeddings_request(data)


def test_a_newer_clients_fields_are_skipped() -> None:
    newer = b"\x0a\x01m" + b"\xf8\x3f\x01" + nested(15, b"x") + b"\xfd\x3f1234" + b"\xf9\x3f12345678"
    assert proto.chat(newer).body == b'{"model":"m"}'


def test_numbers_come_packed_or_not() -> None:
    packed, single = nested(1, b"\x01\x02"), b"\x08\x01\x08\x02"
    assert parse(pb.TokenList, packed) == parse(pb.TokenList, single) == pb.TokenList(ids=[1, 2])


def test_as_many_fields_as_are_allowed_are_read() -> None:
    assert parse(pb.ChatCompletionRequest, b"\x20\x01" * MAX_FIELDS).stream
    with pytest.raises(ProxyError, match="fields"):
        parse(pb.ChatCompletionRequest, b"\x20\x01" * (MAX_FIELDS + 1))


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_request_or_a_proxy_error(data: bytes) -> None:
    assert status_of(lambda: proto.chat(data)) in {200, 400}


@given(st.sampled_from(REQUESTS), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_request_is_a_request_or_a_proxy_error(name: str, data: st.DataObject) -> None:
    whole = bytearray(sample(f"requests/{name}.pb"))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                whole[place] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[place : place + data.draw(st.integers(1, 9))]
            case "insert":
                whole[place:place] = data.draw(st.binary(max_size=9))
        whole = whole or bytearray(b"\x00")
    assert status_of(lambda: proto.chat(bytes(whole))) in {200, 400}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_truncation_is_a_shorter_request_or_refused(name: str) -> None:
    whole = sample(f"requests/{name}.pb")
    for end in range(0, len(whole), max(1, len(whole) // 400)):
        assert status_of(proto.chat, whole[:end]) in {200, 400}
