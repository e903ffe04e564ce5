"""The meter: an upstream's bytes pass through it, whole events at a time, while it reads what they say.

Its laws: what leaves is what came, byte for byte, but for the usage event that proxyd itself asked for; no event leaves
in pieces unless it is larger than the carry; nothing from the terminal event on leaves before the caller takes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyd.model import Endpoint, Format, Reading
from proxyd.wire.answer import Answer
from proxyd.wire.chunk import plain_text
from proxyd.wire.dialects import Mark, read_body, read_error_field, read_event
from proxyd.wire.inflate import CODINGS, Inflater
from proxyd.wire.sse import NDJSON, SSE, Frame, whole_events
from proxyd.wire.template import joined, template_of

if TYPE_CHECKING:
    from proxyd.wire.template import Template
    from proxyd.wire.usage import Fault

OPENING = 512
"""Bytes of a document that tell what it is."""
_SSE_TYPES = frozenset({"text/event-stream"})
_NDJSON_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines"}
)
_VAGUE_TYPES = frozenset({"", "text/plain", "application/octet-stream", "binary/octet-stream"})
_SSE_STARTS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")
_BLANKS = b" \t\r\n"
_KEPT = 32
"""Plain events that are read together."""
_LESSONS = 8
"""Of how many events it is found out what the others may look like; then of one in _LATER, for some never look alike."""
_LATER = 64
_BOM = b"\xef\xbb\xbf"

# The raw size of a stretch of stream, what its document means (None: it shares the fate of what came before), and how
# many data events it is.
_Piece = tuple[int, Mark | None, int]

_ORDINARY = Mark.ORDINARY
_FRAMINGS: dict[Format, type[SSE | NDJSON]] = {Format.SSE: SSE, Format.NDJSON: NDJSON}


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one meter's memory, in bytes (`text`: characters)."""

    carry: int = 256 << 10
    """Of an unfinished event: a larger one leaves as it comes."""
    body: int = 64 << 20
    """Of a body that is held, and of an event that is read."""
    text: int = 4 << 20
    """Of the text that is kept."""


def format_of(content_type: str | None, *, streamed: bool, head: bytes = b"") -> Format:
    """How an answer is framed, by its Content-Type and, where that leaves a doubt, by its first bytes.

    `streamed`: the ask was for a stream. SDKs parse SSE whatever its label (seen: `application/json` on SSE bytes), so a
    streamed answer whose bytes begin like SSE is SSE; one without a telling label and without bytes yet, too.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind in _SSE_TYPES:
        return Format.SSE
    if kind in _NDJSON_TYPES:
        return Format.NDJSON
    if not streamed:
        return Format.JSON
    start = head.removeprefix(_BOM).lstrip(_BLANKS)
    if start.startswith(_SSE_STARTS):
        return Format.SSE
    return Format.SSE if kind in _VAGUE_TYPES and not start else Format.JSON


@dataclass(slots=True, eq=False)
class Meter:
    """Reads one answer of an upstream while it passes. Feed it what comes, send what it returns.

    `feed` per piece, `end` once, `take_held` when the ledger's row is on disk, `read` at any time. Never raises on any
    input. `strip_usage`: take out the event that carries only usage; `usage_at`: let it pass, and note there where it stands among
    all that passes. `content_encoding`: gzip and deflate are read from a copy and pass unchanged; other codings pass unread.
    """

    format: Format
    status: int = field(default=200, kw_only=True)
    content_encoding: str = field(default="identity", kw_only=True)
    strip_usage: bool = field(default=False, kw_only=True)
    usage_at: list[tuple[int, int]] | None = field(default=None, kw_only=True)
    endpoint: Endpoint | str = field(default=Endpoint.CHAT, kw_only=True)
    limits: Limits = field(default=Limits(), kw_only=True)

    events: int = field(default=0, init=False)
    """Data events so far that the client gets, those that are held included."""
    begun: bool = field(default=False, init=False)
    """The answer has said something: an event, or of a body a byte that is not white space."""
    ended: bool = field(default=False, init=False)
    """The terminal event was seen: from it on bytes are held."""
    mid_event: bool = field(default=False, init=False)
    """The client has a part of an event (or coded bytes) and nothing of ours may be put behind it."""
    unread: bool = field(default=False, init=False)
    """Something passed that could not be read: an unknown coding, a bomb, or more than the limits allow."""

    _answer: Answer = field(init=False, repr=False)
    _frames: SSE | NDJSON | None = field(init=False, repr=False)
    _inflater: Inflater | None = field(default=None, init=False, repr=False)
    _quick: bool = field(default=False, init=False, repr=False)  # the next byte begins an event of plain SSE, nothing is held
    _plain: Template | None = field(default=None, init=False, repr=False)  # what an event looks like that differs by its text alone
    _lessons: int = field(default=_LESSONS, init=False, repr=False)
    _kept: list[bytes] = field(default_factory=list, init=False, repr=False)  # the texts of such events, not read yet
    _wait: bytearray = field(default_factory=bytearray, init=False, repr=False)  # of the unfinished event, what has not left
    _gone: int = field(default=0, init=False, repr=False)  # of the unfinished event, what has left
    _apart: bool = field(default=False, init=False, repr=False)  # the last event was cut out or noted: blank lines after it are too
    _taken: int = field(default=0, init=False, repr=False)  # bytes of all finished calls of `feed`; where nothing is cut out, what passed
    _held: bytearray = field(default_factory=bytearray, init=False, repr=False)
    _free: bool = field(default=False, init=False, repr=False)  # more than can be held: all passes
    _body: bytearray = field(default_factory=bytearray, init=False, repr=False)  # the decoded copy of a coded body
    _opaque: bool = field(default=False, init=False, repr=False)  # cannot be read any more
    _over: bool = field(default=False, init=False, repr=False)  # `end` was called: nothing more will be read
    _final: Reading | None = field(default=None, init=False, repr=False)
    _whole: bool = field(default=False, init=False, repr=False)  # a body that parsed, or a clean end

    def __post_init__(self) -> None:
        embeds = "/embed" in self.endpoint
        self._answer = Answer(embeds=embeds, text_limit=self.limits.text)
        coding = self.content_encoding.strip().lower()
        if coding in CODINGS:
            self._inflater = Inflater()
        elif coding not in ("", "identity"):
            self.unread = self._opaque = True
        framing = _FRAMINGS.get(self.format)
        self._frames = None if framing is None else framing(self.limits.body)

    # ------------------------------------------------------------------ bytes

    def feed(self, data: bytes) -> bytes:  # noqa: C901 - the hot path stands in one place
        """Take what the upstream sent; returns what may leave for the client now (the same object, if all of it may)."""
        if self._quick:
            plain = self._plain
            if plain is not None and data.startswith(plain.first) and data.endswith(plain.last):
                text = data[plain.begin : plain.end]
                if not (b'"' in text or b"\n" in text or b"\r" in text):  # else it is more than one string, event or line
                    self._kept.append(text)
                    self.events += 1
                    self._taken += len(data)
                    if len(self._kept) == _KEPT:
                        self._read_kept()
                    return data
            payloads = whole_events(data)
            if payloads is not None:
                self._read_kept()
                self.begun = True
                answer = self._answer
                for place, payload in enumerate(payloads):
                    mark = read_event(answer, payload)
                    if mark:
                        return self._sort_events(data, payloads, place, mark)
                if len(payloads) == 1 and (self._lessons or not self.events % _LATER):
                    self._learn(payloads[0])
                self.events += len(payloads)
                self._taken += len(data)
                return data
        self._read_kept()
        frames = self._frames
        if frames is None or self._opaque:
            return self._feed_body(data)
        if self._inflater is not None:
            return self._feed_coded(data, self._inflater, frames)
        return self._feed_framed(data, frames)

    def end(self, clean: bool) -> bytes:  # noqa: FBT001 - the one fact about an ending
        """The transport ended, properly or not; returns what may still leave ahead of the held bytes.

        Clean: an unfinished event counts, and is held. Cut: it is dropped, so that the client never gets half an event.
        """
        self._read_kept()
        self._quick = False
        self._over = True
        if self._frames is None:
            self._end_body(clean=clean)
            return b""
        self._whole = clean
        frame = self._frames.end() if clean and not self._opaque else None
        if not clean or frame is None:
            self._wait = bytearray()
            return b""
        _, mark, counts = self._read(frame)
        self.ended = self.ended or mark is Mark.TERMINAL
        tail, self._wait = bytes(self._wait), bytearray()
        if mark is Mark.USAGE_ONLY and not self._gone and self._inflater is None:
            if self.strip_usage:
                return b""
            self._note(self._taken - len(tail), self._taken)
        self.events += counts
        return self._hold(tail)

    def take_held(self) -> bytes:
        """The bytes from the terminal event on, or the whole body. Call it when the ledger's row is on disk."""
        held, self._held = bytes(self._held), bytearray()
        return held

    # ------------------------------------------------------------------ facts

    @property
    def decoded(self) -> bytes | None:
        """A body that came compressed, as far as it can be read; None where it did not."""
        return None if self._inflater is None and not self._opaque else bytes(self._body)

    @property
    def had_error(self) -> bool:
        """The answer is an error, or an error came inside it."""
        return self.status >= 400 or self._answer.fault is not None

    @property
    def opening(self) -> bytes:
        """How the document begins, as far as it is there and can be read; nothing of a stream."""
        body = self._held if self._inflater is None else self._body
        return b"" if self._frames is not None or self._opaque else bytes(body[:OPENING]).removeprefix(_BOM).lstrip(_BLANKS)

    @property
    def last_error(self) -> Fault | None:
        """The upstream's own error, from the stream or the body."""
        return self._answer.fault

    @property
    def text_lost(self) -> int:
        """Characters of the answer that were not kept, for want of room."""
        self._read_kept()
        return self._answer.text_lost

    def read(self) -> Reading:
        """The facts so far; final after `end`."""
        if self._final is not None:
            return self._final
        self._read_kept()
        reading = self._answer.reading()
        reading.had_error = self.had_error
        reading.complete = not self.had_error and self._complete()
        if self._over:
            self._final = reading
        return reading

    def texts(self) -> dict[int, str]:
        """The visible text so far, by choice."""
        return self._answer.texts()

    def produced(self) -> str:
        """All that was generated and is billed: text, reasoning, refusals, tool calls, of all choices."""
        self._read_kept()
        return self._answer.produced()

    def _complete(self) -> bool:
        if self._frames is None:
            return self._whole
        return self._answer.terminal or (self._whole and self.format is Format.SSE and self._answer.finished)

    # ------------------------------------------------------------------ events

    def _learn(self, payload: bytes) -> None:
        """Find out what the events look like, if this one says its text and nothing else."""
        if self._answer.model is None:
            return
        self._lessons = max(0, self._lessons - 1)
        if (said := plain_text(payload)) is not None:
            self._plain = template_of(payload, *said) or self._plain

    def _read_kept(self) -> None:
        """Read the plain events together: a fifth of what they cost one by one."""
        if not self._kept or self._plain is None:
            return
        kept, self._kept = self._kept, []
        plain, text = self._plain, joined(kept)
        if text:
            self._answer.write(self._answer.choice(plain.index), text)
            return
        for inside in kept:
            read_event(self._answer, plain.head + inside + plain.tail)

    def _sort_events(self, data: bytes, payloads: list[bytes], place: int, mark: Mark) -> bytes:
        """Leave the hot path: the event at `place` is not ordinary; those before it were read, those after it were not."""
        marks = [_ORDINARY] * place + [mark] + [read_event(self._answer, payload) for payload in payloads[place + 1 :]]
        out = self._sort(data, [(len(payload) + 8, mark, 1) for payload, mark in zip(payloads, marks, strict=True)])
        self._quick = not (self.ended or self._apart)
        return out

    def _feed_framed(self, data: bytes, frames: SSE | NDJSON) -> bytes:
        pieces = [self._read(frame) for frame in frames.feed(data)]
        if pieces:
            out = self._sort(data, pieces)
        else:
            out = self._delay(data)
            self._taken += len(data)
        self._quick = isinstance(frames, SSE) and frames.idle and not (self.ended or self._apart)
        return out

    def _feed_coded(self, data: bytes, inflater: Inflater, frames: SSE | NDJSON) -> bytes:
        """Raw bytes pass whole, so nothing can be cut out, and holding begins with the piece that ends the answer."""
        for piece in inflater.feed(data):
            for _, mark, counts in [self._read(frame) for frame in frames.feed(piece)]:
                self.events += counts
                self.ended = self.ended or mark is Mark.TERMINAL
        self._opaque = inflater.failed
        self.unread = self.unread or inflater.failed
        if self.ended:
            return self._hold(data)
        self.mid_event = True
        return data

    def _read(self, frame: Frame) -> _Piece:
        """What the frame says goes into the answer; what comes back is how to treat its bytes."""
        if frame.lost:
            self.unread = self.begun = True
            return frame.size, _ORDINARY, 1
        if frame.error is not None:
            self.begun = True
            read_error_field(self._answer, frame.error)
        if frame.data is None:
            return frame.size, None if frame.tail else _ORDINARY, 0
        self.begun = True
        return frame.size, read_event(self._answer, frame.data, frame.name), 1

    def _sort(self, data: bytes, pieces: list[_Piece]) -> bytes:
        """Finished events, whose bytes are what waited and then `data`: pass them, cut them out, or hold them."""
        raw, base = data, self._taken
        self._taken += len(data)
        if self._wait:
            raw, self._wait = bytes(self._wait) + data, bytearray()
            base -= len(raw) - len(data)
        runs: list[bytes] = []
        start = pos = 0  # of the run of bytes that pass
        for size, mark, counts in pieces:
            end = pos + size - self._gone
            if mark is not None:
                self._apart = mark is Mark.USAGE_ONLY and not self._gone and (self.strip_usage or self.usage_at is not None)
                self.ended = self.ended or mark is Mark.TERMINAL
                self.events += counts and not (self._apart and self.strip_usage)
            self._gone = 0
            cut = self._apart and self.strip_usage
            if self._apart and not cut:
                self._note(base + pos, base + end)
            if cut or self.ended:
                runs.append(raw[start:pos])
                runs.append(b"" if cut else self._hold(raw[pos:end]))
                start = end
            pos = end
        self.mid_event = False
        if start == 0 and pos == len(raw):
            return raw
        runs.append(raw[start:pos])
        runs.append(self._delay(raw[pos:]))
        return b"".join(runs)

    def _note(self, start: int, end: int) -> None:
        """An event that carries only usage stands there."""
        if self.usage_at is None:
            return
        if self.usage_at and self.usage_at[-1][1] == start:
            start = self.usage_at.pop()[0]
        self.usage_at.append((start, end))

    def _delay(self, data: bytes) -> bytes:
        """A part of an unfinished event waits, if it is not too large to."""
        self._wait += data
        if len(self._wait) <= self.limits.carry:
            return b""
        out, self._wait = bytes(self._wait), bytearray()
        self._gone += len(out)
        if self.ended:
            return self._hold(out)
        self.mid_event = True
        return out

    # ------------------------------------------------------------------ bodies

    def _feed_body(self, data: bytes) -> bytes:
        """A body is held whole; a stream that cannot be read passes."""
        if self._frames is not None and not self.ended:
            self.begun = self.mid_event = self.begun or bool(data)
            return data
        if self._inflater is not None and not self._opaque:
            for piece in self._inflater.feed(data):
                self.begun = self.begun or not piece.isspace()
                self._body += piece
            if self._inflater.failed or len(self._body) > self.limits.body:
                self._opaque = self.unread = True
                self._body = bytearray()
        else:
            self.begun = self.begun or not (data.isspace() or not data)
        return self._hold(data)

    def _end_body(self, *, clean: bool) -> None:
        """A body is whole if it parses; one that was cut and is not whole is dropped: the client has nothing of it yet."""
        if not (self._free or self._opaque):
            self._whole = read_body(self._answer, self._held if self._inflater is None else self._body)
        if not (clean or self._whole):
            self._held = bytearray()

    def _hold(self, data: bytes) -> bytes:
        """Keep `data` for `take_held`; returns what must pass because the bound is reached: all that is held, then everything."""
        if self._free:
            return data
        self._held += data
        if len(self._held) <= self.limits.body:
            return b""
        self._free = self.mid_event = True
        self.unread = self.unread or self._frames is None
        return self.take_held()
