"""The tape: what has been sent of an answer, kept so that it can be sent again from any event on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.model import Format
from proxyd.wire.proto_frames import frame_sizes
from proxyd.wire.sse import NDJSON, SSE, Frame, whole_events

if TYPE_CHECKING:
    from collections.abc import Iterator

Stretches = Sequence[tuple[int, int]]
"""From where to where on a tape, in order: events that only some of its readers are given."""


class Tape:
    """Bytes of an answer, at most `limit` of them. Positions count from the answer's first byte, whatever was let go."""

    __slots__ = ("_bytes", "closed", "format", "limit", "overflowed", "start")

    def __init__(self, limit: int, form: Format = Format.SSE) -> None:
        self._bytes = bytearray()
        self.limit = limit
        self.format = form
        self.start = 0
        """Position of the first byte that is still here."""
        self.closed = False
        """Nothing more will come; a last event without its blank line counts then."""
        self.overflowed = False
        """More came than may be kept: nothing can be sent again from the beginning."""

    @property
    def end(self) -> int:
        """Position behind the last byte."""
        return self.start + len(self._bytes)

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return len(self._bytes)

    def append(self, data: bytes) -> None:
        """Take what is being sent."""
        self._bytes += data
        if len(self._bytes) > self.limit:
            self.overflowed = True

    def let_go(self, position: int) -> None:
        """Forget what lies before a position; only an overflowed tape does."""
        if position > self.start:
            del self._bytes[: position - self.start]
            self.start = position

    def since(self, position: int, most: int) -> bytes:
        """At most so many bytes from a position on."""
        begin = position - self.start
        with memoryview(self._bytes) as view:
            return bytes(view[begin : begin + most])

    def whole(self) -> bytes:
        """Everything, from the answer's first byte on. Raises ProxyError stream_gone if the tape has overflowed."""
        if self.overflowed:
            raise gone()
        return bytes(self._bytes)

    def after(self, events: int, apart: Stretches = ()) -> int:
        """The position behind the first so many events. Raises ProxyError stream_gone, or invalid_request beyond the end.

        Events are what a client counts: those with data, `[DONE]` included, comments not; for NDJSON, lines; for protobuf,
        frames, keep-alives included. What stands `apart` is not given to it, and not counted.
        """
        if self.overflowed:
            raise gone()
        if events == 0:
            return 0
        position = self._behind(events, without(bytes(self._bytes), 0, apart))
        for begin, end in apart:
            if begin <= position:
                position += end - begin
        return position

    def events(self, apart: Stretches = ()) -> int:
        """How many events are on it but for those that stand `apart`; of an overflowed tape, those that are still here."""
        data = without(bytes(self._bytes), self.start, apart)
        payloads = self._plain(data)
        return len(payloads) if payloads is not None else sum(frame.data is not None for frame in self._frames(data))

    def _behind(self, events: int, data: bytes) -> int:
        seen = position = 0
        if (payloads := self._plain(data)) is not None and events <= len(payloads):
            return sum(map(len, payloads[:events])) + 8 * events
        for frame in self._frames(data):
            position += frame.size
            seen += frame.data is not None
            if seen == events:
                return position
        raise beyond(events, seen)

    def _plain(self, data: bytes) -> list[bytes] | None:
        """The events, where they are nothing but whole `data: …` ones: a hundred times faster than frame by frame."""
        return whole_events(data) if self.format is Format.SSE and self.start == 0 and data else None

    def _frames(self, data: bytes) -> Iterator[Frame]:
        if self.format is Format.PROTOBUF:
            yield from (Frame(size, b"") for size in frame_sizes(data))
            return
        framing = NDJSON(self.limit) if self.format is Format.NDJSON else SSE(self.limit)
        yield from framing.feed(data)
        if self.closed and (last := framing.end()) is not None:
            yield last


def without(data: bytes, position: int, apart: Stretches) -> bytes:
    """Bytes that stand at a position, but for what stands apart."""
    for begin, end in reversed(apart):
        if begin < position + len(data) and end > position:
            data = data[: max(0, begin - position)] + data[end - position :]
    return data


def beyond(received: int, events: int) -> ProxyError:
    """More is said to have arrived than there is."""
    return ProxyError("invalid_request", f"`received` is {received}, but this stream has only {events} events so far.", param="received")


def gone() -> ProxyError:
    """The answer is longer than its tape."""
    return ProxyError("stream_gone", "This answer is longer than what is kept (resume.tape); it cannot be sent again.")
