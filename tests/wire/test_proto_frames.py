"""Varints and delimited streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire.proto_frames import FrameReader, delimited, varint
from tests.wire.pb_samples import sample, status_of


def test_a_varint_is_what_protobuf_says() -> None:
    assert [varint(value) for value in (0, 1, 127, 128, 300, 2**64 - 1)] == [
        b"\0",
        b"\1",
        b"\x7f",
        b"\x80\1",
        b"\xac\2",
        b"\xff" * 9 + b"\1",
    ]


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 50))
def test_messages_come_out_whole_however_the_stream_is_cut(sent: list[bytes], size: int) -> None:
    stream = b"".join(map(delimited, sent))
    reader = FrameReader()
    got = [message for start in range(0, len(stream), size) for message in reader.feed(stream[start : start + size])]
    assert got == sent
    assert not reader.broken


def test_each_cut_of_a_sample_gives_the_frames_before_it() -> None:
    stream = sample("streams/answer-200.100ms.pbd")
    whole = FrameReader().feed(stream)
    for cut in range(0, len(stream), 7):
        reader = FrameReader()
        got = reader.feed(stream[:cut])
        assert got == whole[: len(got)]
        assert reader.broken == (b"".join(map(delimited, got)) != stream[:cut])


@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff\x0f", b"\xff" * 10, varint(1025), b"\x80\x80\x80\x80\x80"])
def test_a_giant_length_is_refused_before_anything_is_kept(head: bytes) -> None:
    reader = FrameReader(limit=1024)
    with pytest.raises(ProxyError):
        reader.feed(head)


def test_the_largest_frame_allowed_is_read() -> None:
    assert FrameReader(limit=1024).feed(delimited(b"x" * 1024)) == [b"x" * 1024]


@given(st.binary(max_size=100))
def test_any_bytes_are_frames_or_a_proxy_error(data: bytes) -> None:
    assert status_of(lambda: FrameReader(limit=64).feed(data)) in {200, 400}
