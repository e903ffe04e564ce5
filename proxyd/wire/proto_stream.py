"""The upstream's chat events, one by one, as frames of `ChatCompletionChunk`: coalesced, at the detail that was asked for.

Law: the first text of a choice, a finish and an error are never held; text never changes its order; nothing is held longer
than `max_delay_ms` or beyond `max_bytes`. The encoder has no clock: `now` is an argument, and `deadline` says when it wants
to be asked again.

    encoder = ChunkEncoder(delivery)
    for event in events:                        # the data of SSE events, `[DONE]` included
        send(encoder.feed(event, now))          # each item of the list is one frame: count them for resuming
    at encoder.deadline: send(encoder.tick(now))
    if the upstream broke: send(encoder.fail(error))

A finish waits for the end of the batch of events it came in (`deadline` is then `now`), because the usage that follows it in
the same packet shares its frame; a timer set to `deadline` does that by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxyd.wire import faults, proto_error
from proxyd.wire._pb import chat_pb2
from proxyd.wire.dialects import is_end
from proxyd.wire.proto_chunk import Facets, Held, about, field, read_choice, usage_field
from proxyd.wire.proto_exact import Exact, verbatim
from proxyd.wire.proto_frames import delimited, varint
from proxyd.wire.proto_halves import Halves
from proxyd.wire.template import template_of
from proxyd.wire.usage import fault_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.errors import ProxyError
    from proxyd.wire.delivery import Delivery
    from proxyd.wire.template import Template

DEFAULT_DELAY_MS = 100
"""What protobuf streams are held for where neither client nor route says otherwise."""
MAX_CHOICES = 128
"""Choices of which text is held at once, as many as OpenAI makes; each up to `max_bytes`."""


class ChunkEncoder:
    """One stream. `frame` puts a message into its framing (`delimited`, or `connect.envelope`).

    `handle` is a name that the server chose, told in the first frame.
    """

    __slots__ = (
        "_about",
        "_chunk_said",
        "_delivery",
        "_exact",
        "_finished",
        "_frame",
        "_halves",
        "_held",
        "_opened",
        "_start",
        "_template",
        "_usage",
        "deadline",
        "delay",
        "ended",
    )

    def __init__(
        self,
        delivery: Delivery,
        *,
        handle: bytes = b"",
        frame: Callable[[bytes], bytes] = delimited,
    ) -> None:
        self.deadline: float | None = None
        """When to call `tick`, on the clock that `now` is read from; None: not at all."""
        self.ended = False
        """`[DONE]` or an error came; what is fed after it is ignored."""
        delay = DEFAULT_DELAY_MS if delivery.max_delay_ms is None else delivery.max_delay_ms
        self.delay = delay / 1000
        """Seconds that text may be held."""
        self._delivery = delivery
        self._frame = frame
        exact = delivery.full and delay == 0 and not delivery.omit_reasoning
        self._exact = Exact() if exact else None
        self._held: dict[int, Held] = {}
        self._opened: set[int] = set()
        self._finished = False
        self._halves = Halves()
        self._usage = b""
        self._start = chat_pb2.StreamStart(handle=handle)
        self._about: dict[str, Any] = {}
        self._chunk_said: dict[tuple[str, str], Any] = {}
        self._template: Template | None = None

    @property
    def finished(self) -> bool:
        """A choice has had its finish; usage may follow."""
        return self._finished

    def feed(self, event: bytes, now: float) -> list[bytes]:
        """Take the data of one event; returns the frames that are due. What is not JSON is skipped, as SSE clients would."""
        template = self._template
        if template is not None and event.startswith(template.head) and event.endswith(template.tail):
            text = template.text(event)
            if text:
                return self._plain_text(text, template.index, now)
        if self.ended:
            return []
        if is_end(event):
            return self.end()
        document, mended = self._halves.read(event)
        fault = fault_of(document)
        if fault is not None:
            return self._fail(proto_error.error_message(faults.in_band(fault, None), with_status=True), event)
        if not isinstance(document, dict):
            return []
        if self._delivery.full:
            self._template = None  # what the event says beside its text may be news now
        return self._exactly(event, document, now, mended=mended) if self._exact else self._take(event, document, now)

    @property
    def template(self) -> Template | None:
        """What the events look like that may be kept, for as long as text may be held, and be taken in together by `absorb`."""
        return None if self._finished or self.delay == 0 or self._exact is not None else self._template

    @property
    def room(self) -> int:
        """Bytes of text that may still be held of any choice."""
        return self._delivery.max_bytes - (max(held.size for held in self._held.values()) if self._held else 0)

    def at_once(self, events: list[bytes]) -> bytes:
        """Give the frame of such events where nothing is held; empty where something is, or where they are not that simple."""
        template = self._template
        if template is None or self._held or self._usage or self._delivery.full:
            return b""
        text = template.texts(events).encode()
        return self._pack(field(1, text) + (b"\x30" + varint(template.index) if template.index else b"")) if text else b""

    def absorb(self, events: list[bytes], until: float) -> list[bytes] | None:
        """Hold the text of such events until then; returns the frames of what is too much to hold.

        None where the events are not that simple: nothing was taken in then.
        """
        template = self._template
        text = b"" if template is None else template.texts(events).encode()
        if template is None or not text:
            return None
        held = self._held.get(template.index)
        if held is None:
            held = self._held[template.index] = Held()
        elif held.rank > 2 or held.finish:
            return None
        held.rank = 2
        held.content += text
        held.size += len(text)
        if held.size >= self._delivery.max_bytes:
            return self.flush()
        self.deadline = until if self.deadline is None else self.deadline
        return []

    def tick(self, now: float) -> list[bytes]:
        """Give what is due by now."""
        if self.deadline is None or now < self.deadline:
            return []
        return self.flush()

    def end(self) -> list[bytes]:
        """Give all that is held: the upstream's body is over, and no `[DONE]` came. No finish is made up for it."""
        self.ended = True
        self._template = None
        return self.flush()

    def flush(self) -> list[bytes]:
        """Give what is held, whatever the time."""
        self.deadline = None
        if self._exact is not None:
            return [self._pack(body) for body in self._exact.flush()]
        held, self._held = self._held, {}
        usage = b""
        if self._finished or self.ended:
            usage, self._usage = self._usage, b""
        bodies = [(choice, index) for index, choice in held.items() if choice.any()]
        if not bodies and (usage or self._start.ByteSize()):
            bodies = [(Held(), 0)]
        frames = []
        for place, (choice, index) in enumerate(bodies, 1):
            start = self._take_start()
            last = usage if place == len(bodies) else b""
            frames.append(self._pack(choice.encode(index, start=start, usage=last)))
        return frames

    def fail(self, error: ProxyError) -> list[bytes]:
        """End the stream with an error: what was held, then the error's frame."""
        return self._fail(proto_error.error_message(error, with_status=True), b"")

    def keepalive(self) -> bytes:
        """Give an empty frame: one byte, that tells both sides that the line is open. It counts like any other."""
        return self._pack(b"")

    # -- one event

    def _take(self, event: bytes, document: dict[str, Any], now: float) -> list[bytes]:
        frames: list[bytes] = []
        raw = document.get("choices")
        choices = [choice for choice in raw if isinstance(choice, dict)] if isinstance(raw, list) else []
        if self.deadline is not None and now >= self.deadline and (choices or not self._finished):
            frames += self.flush()
        if self._delivery.full:
            self._describe(document)
        for choice in choices:
            frames += self._add(read_choice(choice, self._delivery), now)
        usage = usage_field(document, full=bool(self._delivery.full))
        if usage:
            self._usage = usage
        if len(choices) == 1 and not usage and not frames[1:]:
            self._learn(event, choices[0])
        if self._held and self.deadline is None:
            self.deadline = now + self.delay
        if (
            (usage and self._finished)
            or (self.delay == 0 and self._held and not any(held.finish for held in self._held.values()))
            or self._start.handle
        ):
            frames += self.flush()
        return frames

    def _describe(self, document: dict[str, Any]) -> None:
        """At DETAIL_FULL: what is said once a stream, and other members when they change."""
        known, rest = about(document)
        for name, value in known.items():
            if self._about.get(name) != value:
                self._about[name] = value
                setattr(self._start, name, value)
        for name, value in rest.items():
            self._tell("chunk", name, value)

    def _tell(self, level: str, name: str, value: Any, index: int = 0) -> None:
        if value in (None, "", [], {}) or self._chunk_said.get((level, name)) == value:
            return
        held = self._held.get(index)
        if held is None:
            held = self._held[index] = Held()
        self._chunk_said[level, name] = value
        held.extra.setdefault(level, {})[name] = value

    def _add(self, facets: Facets, now: float) -> list[bytes]:
        frames: list[bytes] = []
        index = facets.index
        held = self._held.get(index)
        if (held is None and len(self._held) >= MAX_CHOICES) or (held is not None and not held.admits(facets)):
            frames += self.flush()
            held = None
        if held is None:
            held = self._held[index] = Held()
        held.add(facets)
        if self._delivery.full:
            for name, value in facets.around.items():
                self._tell("choice", name, value, index)
        if not held.any():
            del self._held[index]
            return frames
        if facets.finish:
            self._finished = True
            self.deadline = now
        if self._due(index, held, facets.text, now):
            frames += self.flush()
        return frames

    def _due(self, index: int, held: Held, text: bool, now: float) -> bool:  # noqa: FBT001 - part of one decision
        """Decide whether to send at once, and set the deadline if not."""
        first = text and index not in self._opened
        if first:
            self._opened.add(index)
        if first or held.size >= self._delivery.max_bytes:
            return True
        if self.deadline is None:
            self.deadline = now + self.delay
        return self.delay == 0 and not held.finish

    # -- the quick way: an event that differs from the last plain one by its text alone

    def _learn(self, event: bytes, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        text = delta.get("content")
        index = choice.get("index", 0)
        plain = isinstance(text, str) and text and index in self._opened and not choice.get("finish_reason") and not choice.get("logprobs")
        if not plain or any(value for name, value in delta.items() if name not in {"content", "role"}):
            return
        self._template = template_of(event, str(text), index) or self._template

    def _plain_text(self, text: bytes, index: int, now: float) -> list[bytes]:
        if self._exact is not None:
            self.deadline = None
            return [self._pack(body) for body in (*self._exact.flush(), field(1, text) + (b"\x30" + varint(index) if index else b""))]
        frames = self.flush() if self.deadline is not None and now >= self.deadline else []
        if self.delay == 0 and not self._held:
            return [*frames, self._pack(field(1, text) + (b"\x30" + varint(index) if index else b""))]
        held = self._held.get(index)
        if held is None:
            held = self._held[index] = Held()
        elif held.rank > 2 or held.finish:
            frames += self.flush()
            held = self._held[index] = Held()
        held.rank = 2
        held.content += text
        held.size += len(text)
        if self.deadline is None:
            self.deadline = now + self.delay
        if self.delay == 0 or held.size >= self._delivery.max_bytes:
            frames += self.flush()
        return frames

    # -- exactly

    def _exactly(self, event: bytes, document: dict[str, Any], now: float, *, mended: bool) -> list[bytes]:
        exact = self._exact
        if exact is None:
            return []
        bodies, waits = exact.feed(event, document, self._delivery, self._take_handle(), verbatim=mended)
        self.deadline = now if waits else None
        choices = document.get("choices")
        if exact.plain and isinstance(choices, list) and len(choices) == 1 and not document.get("usage"):
            self._opened.add(choices[0].get("index", 0))
            self._learn(event, choices[0])
        return [self._pack(body) for body in bodies]

    # -- bytes

    def _take_handle(self) -> bytes:
        handle = self._start.handle
        self._start.Clear()
        return handle

    def _take_start(self) -> bytes:
        start = self._start.SerializeToString()
        self._start.Clear()
        return start

    def _fail(self, error: chat_pb2.Error, event: bytes) -> list[bytes]:
        if self.ended:
            return []
        frames = self.end()
        body = field(8, error.SerializeToString())
        if self._exact is not None and event:
            body += field(14, verbatim(event))
        return [*frames, self._pack(body)]

    def _pack(self, body: bytes) -> bytes:
        size = self._delivery.pad_to
        return padded(body, size, self._frame) if size > 1 else self._frame(body)


def padded(body: bytes, multiple: int, frame: Callable[[bytes], bytes]) -> bytes:
    """Frame a message so that all of it, its length or envelope included, is a multiple of so many bytes."""
    whole = frame(body)
    target = -(-len(whole) // multiple) * multiple
    while len(whole) != target:
        # two bytes for the field itself, more once its own length or the frame's needs another byte
        missing = target - len(whole)
        for zeros in range(missing - 2, max(missing - 6, -1), -1):
            whole_padded = frame(body + field(15, bytes(zeros)))
            if len(whole_padded) == target:
                return whole_padded
        target += multiple
    return whole
