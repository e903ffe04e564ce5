"""Delimited streams: each message behind its length as a varint, as every protobuf library reads them.

Source: `writeDelimitedTo` / `parseDelimitedFrom` of protobuf's libraries; RFC-less, so the format is told in protos/README.md.
"""

from __future__ import annotations

from proxyd.errors import ProxyError

MAX_FRAME = 1024 * 1024
"""Bytes of one frame that a reader takes, if not told otherwise. Ordinary frames are under 200 bytes."""


def varint(value: int) -> bytes:
    """Write a number of at most 64 bits, seven bits a byte, least first."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(message: bytes) -> bytes:
    """Write one frame."""
    size = len(message)
    return (bytes((size,)) if size < 128 else varint(size)) + message


def frame_sizes(data: bytes) -> list[int]:
    """Say how long each whole frame is, its length included; what is left of the last one does not count."""
    sizes = []
    at = 0
    while at < len(data):
        size = shift = 0
        for here in range(at, min(len(data), at + 5)):
            size |= (data[here] & 127) << shift
            shift += 7
            if data[here] < 128:
                size += here + 1 - at
                break
        if not 0 < size <= len(data) - at:
            break
        sizes.append(size)
        at += size
    return sizes


class FrameReader:
    """Takes a delimited stream as it arrives, in pieces of any size, and gives its messages."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; returns the messages that are whole now.

        Raises ProxyError `invalid_request` for a length over the limit, before anything of that length is kept.
        """
        buffer = self._buffer
        buffer += data
        messages = []
        at = 0
        while (head := self._length(at)) is not None:
            start, size = head
            if len(buffer) - start < size:
                break
            messages.append(bytes(buffer[start : start + size]))
            at = start + size
        del buffer[:at]
        return messages

    @property
    def broken(self) -> bool:
        """Whether the stream, if it ended here, ended inside a frame."""
        return bool(self._buffer)

    def _length(self, at: int) -> tuple[int, int] | None:
        """Where the message at `at` begins, and how long it is; None while its length is not whole."""
        size = shift = 0
        for here in range(at, min(len(self._buffer), at + 5)):
            byte = self._buffer[here]
            size |= (byte & 127) << shift
            if byte < 128:
                if size > self._limit:
                    break
                return here + 1, size
            shift += 7
        else:
            if len(self._buffer) - at < 5:
                return None
        raise ProxyError("invalid_request", f"A frame is longer than {self._limit} bytes, or this is no delimited stream.")
