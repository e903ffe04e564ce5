"""DETAIL_FULL at 0 ms: one frame an event, from which the event can be rebuilt exactly.

The encoder runs the client's `Rebuilder` on its own frames. Where it gives something else than the event, the difference is
said in `extra_json`; where even that does not do, the event itself goes there, verbatim. So nothing can be lost unseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_chunk import Facets, Held, about, field, read_choice, usage_field
from proxyd.wire.proto_rebuild import Rebuilder, difference, same

if TYPE_CHECKING:
    from proxyd.wire.delivery import Delivery


class Exact:
    """The exact encoder of one stream. A frame with a finish waits for the usage that may follow: `feed` says so."""

    __slots__ = ("_before", "_waiting", "_waiting_event", "plain", "state")

    def __init__(self) -> None:
        self.state = Rebuilder()
        self.plain = False
        """The last event needed nothing but its fields."""
        self._before = self.state
        self._waiting = b""
        self._waiting_event: Any = None

    def flush(self) -> list[bytes]:
        """Give the frame that waits."""
        waiting, self._waiting = self._waiting, b""
        return [waiting] if waiting else []

    def feed(
        self, event: bytes, document: dict[str, Any], delivery: Delivery, handle: bytes, *, verbatim: bool
    ) -> tuple[list[bytes], bool]:
        """Take one event; returns the messages that are due, and whether one waits.

        `verbatim`: the document is not quite what the event said, so only the event itself can tell.
        """
        self.plain = False
        document.pop("obfuscation", None)
        if self._waiting and (merged := self._merge(document)):
            return [merged], False
        bodies = self.flush()
        start = chat_pb2.StreamStart(handle=handle)
        known, _ = about(document)
        for name, value in known.items():
            if self.state.chunk.get(name) != value:
                setattr(start, name, value)
        raw = document.get("choices")
        choices = [choice for choice in raw if isinstance(choice, dict)] if isinstance(raw, list) else []
        facets = [read_choice(choice, delivery) for choice in choices] or [Facets()]
        usage = usage_field(document, full=True)
        frames = [_frame(one, usage if one is facets[-1] else b"", start if one is facets[0] else None) for one in facets]
        if verbatim or len(frames) > 1:
            return [*bodies, *self._verbatim(event, frames)], False
        before = self.state
        frame = self._said(frames[0], document)
        if frame is None:
            return [*bodies, *self._verbatim(event, frames)], False
        if facets[0].finish and not usage:
            self._before, self._waiting, self._waiting_event = before, frame, document
            return bodies, True
        return [*bodies, frame], False

    def _said(self, frame: bytes, document: dict[str, Any]) -> bytes | None:
        """The frame with what it needs for the document to come out; None if that cannot be said."""
        try:
            events = self._try(frame, document)
            if events is None:
                self.plain = True
                return frame
            extra = difference(events[0] if events else None, document)
            if len(events) > 1:  # the usage is in the event, not behind it
                inside = field(14, b'{"shape":{"inside":true}}')
                events = self._try(frame + inside, document)
                if events is None:
                    return frame + inside
                extra = difference(events[0], document)
                extra.setdefault("shape", {})["inside"] = True
            whole = frame + field(14, orjson.dumps(extra))
            return whole if self._try(whole, document) is None else None
        except (ProxyError, TypeError, AttributeError, KeyError, ValueError):
            return None

    def _try(self, frame: bytes, document: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Rebuild; None if it gives the document, and then this is the new state. Else what it gives."""
        state = self.state.copy()
        events = [orjson.loads(event) for event in state.feed(frame)]
        if len(events) == 1 and same(events[0], document):
            self.state = state
            return None
        return events

    def _merge(self, document: dict[str, Any]) -> bytes:
        """The frame that waits together with the usage after it, if both can be rebuilt from one."""
        usage = usage_field(document, full=True)
        if document.get("choices") != [] or not usage:
            return b""
        state = self._before.copy()
        merged = self._waiting + usage
        try:
            events = [orjson.loads(event) for event in state.feed(merged)]
        except ProxyError:
            return b""
        if len(events) != 2 or not same(events[0], self._waiting_event) or not same(events[1], document):
            return b""
        self.state, self._waiting = state, b""
        return merged

    def _verbatim(self, event: bytes, frames: list[bytes]) -> list[bytes]:
        out = [frames[0] + field(14, verbatim(event, len(frames))), *(frame or b"\x72\x02{}" for frame in frames[1:])]
        for frame in out:
            self.state.feed(frame)
        return out


def _frame(facets: Facets, usage: bytes, start: chat_pb2.StreamStart | None) -> bytes:
    held = Held()
    held.add(facets)
    held.extra = {}
    return held.encode(facets.index, start=start.SerializeToString() if start is not None else b"", usage=usage)


def verbatim(event: bytes, frames: int = 1) -> bytes:
    """Write the `extra_json` that holds an event as it is (but U+FFFD for bad UTF-8), for a frame and those after it."""
    held: dict[str, object] = {"event": event.decode("utf-8", "replace")}
    return orjson.dumps({**held, "frames": frames} if frames > 1 else held)
