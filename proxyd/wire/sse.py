"""Framing of streamed answers, on bytes: Server-Sent Events (WHATWG HTML, 9.2) and lines of JSON.

The law of this file: the sizes of the frames that come out add up, byte by byte, to what went in, so that whoever
relays the stream knows exactly which raw bytes are which event, however the transport cut them.
"""

from __future__ import annotations

from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"
_LF = 0x0A
_CR = 0x0D


@dataclass(slots=True)
class Frame:
    """A stretch of the stream: one event with its fields, comments and blank line, or the bytes between two events."""

    size: int
    """Raw bytes, ends of lines included."""
    data: bytes | bytearray | None = None
    """The payload: `data` lines joined with LF, or the line of NDJSON. None: nothing that a client would be given."""
    name: bytes = b""
    """The event's type (`event:`), empty for the default one."""
    error: bytes | bytearray | None = None
    """The value of the field `error:`, which no standard knows and llama.cpp servers of 2025 send (its PR #16109)."""
    tail: bool = False
    """Blank lines after an event, or the LF of a CRLF that was split: they share the fate of what came before."""
    lost: bool = False
    """The payload was larger than the limit and is not in `data`."""


def whole_events(chunk: bytes) -> list[bytes] | None:
    """Split a chunk that is nothing but whole `data: …` LF LF events, each of one line, into payloads; None for any other.

    So look nearly all chunks of nearly all upstreams, and it is told here without building frames: each payload stands
    for `len(payload) + 8` raw bytes. Only valid at the very start of an event.
    """
    end = len(chunk) - 2
    if chunk[:6] != b"data: " or chunk[end:] != b"\n\n" or _CR in chunk:
        return None
    if chunk.find(b"\n") == end:
        return [chunk[6:end]]
    payloads = chunk[6:end].split(b"\n\ndata: ")
    return payloads if chunk.count(b"\n") == 2 * len(payloads) else None


class SSE:
    """Cuts a byte stream into events as it arrives. Time and memory are linear in the input for any way of chunking it.

    `limit` bounds what is kept of one unfinished event: beyond it the payload is let go (`Frame.lost`) and only the
    sizes stay true.
    """

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_error",
        "_kept",
        "_limit",
        "_line",
        "_line_size",
        "_lines",
        "_lost",
        "_name",
        "_size",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._at_start = True
        self._after_cr = False  # a line ended with the CR that came last: an LF now would be its other half
        self._line = bytearray()  # the unfinished line, as far as it is kept
        self._line_size = 0  # its true size
        self._reset()

    def _reset(self) -> None:
        self._size = 0  # raw bytes of the unfinished event, its unfinished line included
        self._lines = False  # it has a line that is not blank
        self._kept = 0
        self._data: bytes | bytearray | None = None
        self._error: bytes | bytearray | None = None
        self._name = b""
        self._lost = False

    @property
    def idle(self) -> bool:
        """Nothing is pending and the byte-order mark's place is past: the next byte begins an event."""
        return self._size == 0 and not self._after_cr and not self._at_start

    def feed(self, chunk: bytes) -> list[Frame]:  # noqa: C901, PLR0912 - one loop over three kinds of line end
        """The frames that `chunk` finishes, in order."""
        if not chunk:
            return []
        frames: list[Frame] = []
        pos, total = 0, len(chunk)
        if self._after_cr:
            self._after_cr = False
            if chunk[0] == _LF:
                pos = 1
                if self._size:
                    self._size += 1
                else:
                    frames.append(Frame(1, tail=True))
        # The next LF and the next CR are searched once each, not once a line: a stream that has one kind only stays linear.
        lf = cr = -1
        while True:
            if lf < pos:
                lf = chunk.find(b"\n", pos)
                lf = total if lf < 0 else lf
            if cr < pos:
                cr = chunk.find(b"\r", pos)
                cr = total if cr < 0 else cr
            end = min(lf, cr)
            if end == total:
                break
            after = end + 1
            if end == cr:
                if after == total:
                    self._after_cr = True
                elif chunk[after] == _LF:
                    after += 1
            self._size += after - pos
            self._end_line(chunk[pos:end], frames)
            pos = after
        if pos < total:
            self._size += total - pos
            self._keep(chunk[pos:] if pos else chunk)
        return frames

    def end(self) -> Frame | None:
        """The transport ended properly: the pending event as if its blank line had come, or None.

        WHATWG drops such an event; the Node SDK delivers it, and its usage would be lost else.
        """
        frames: list[Frame] = []
        if self._line_size:
            self._end_line(b"", frames)
        if self._size:
            frames.append(self._event())
        return frames[0] if frames else None

    def _keep(self, piece: bytes) -> None:
        self._line_size += len(piece)
        if self._kept + len(self._line) + len(piece) > self._limit:
            self._lost = True
            self._line = bytearray()
            self._data = self._error = None
        if not self._lost:
            self._line += piece

    def _end_line(self, last: bytes, frames: list[Frame]) -> None:
        line: bytes | bytearray = last
        blank = not last and not self._line_size
        if self._line_size or self._kept + len(last) > self._limit:
            self._keep(last)
            line, self._line, self._line_size = self._line, bytearray(), 0
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(BOM)
            blank = not line and not self._lost
        if blank:
            frames.append(self._event())
            return
        self._lines = True
        if not self._lost:
            self._field(line)

    def _field(self, line: bytes | bytearray) -> None:
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._kept += len(value) + 1
            if self._data is None:
                self._data = value
                return
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += b"\n"
            self._data += value
        elif name == b"event":
            self._name = bytes(value)
        elif name == b"error":
            self._error = value

    def _event(self) -> Frame:
        frame = Frame(self._size, self._data, self._name, self._error, tail=not self._lines, lost=self._lost)
        self._reset()
        return frame


class NDJSON:
    """Cuts a byte stream into lines of JSON as it arrives, as SSE does into events."""

    __slots__ = ("_limit", "_line", "_lost", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._line = bytearray()
        self._size = 0
        self._lost = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` finishes, in order."""
        frames: list[Frame] = []
        pos = 0
        while (end := chunk.find(b"\n", pos) + 1) > 0:
            self._keep(chunk[pos:end])
            frames.append(self._event())
            pos = end
        if pos < len(chunk):
            self._keep(chunk[pos:] if pos else chunk)
        return frames

    def end(self) -> Frame | None:
        """The transport ended properly: the last line, if it lacks its LF."""
        return self._event() if self._size else None

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._lost or len(self._line) + len(piece) > self._limit:
            self._lost = True
            self._line = bytearray()
        else:
            self._line += piece

    def _event(self) -> Frame:
        blank = not self._lost and (not self._line or self._line.isspace())
        frame = Frame(self._size, None if blank or self._lost else self._line, tail=blank, lost=self._lost)
        self._reset()
        return frame
