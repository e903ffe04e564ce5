"""A turn of a conversation: what is stored of its request and its answer, and the request that it becomes with what was stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from msgspec import Raw

from proxyd.errors import ProxyError
from proxyd.wire.dialects import decode
from proxyd.wire.proto_text import write, write_list
from proxyd.wire.sse import SSE, whole_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxyd.model import Ask

MAX_MESSAGES = 4096
"""Of a conversation: what is asked with more is refused."""
MAX_TEXT = 16 << 20
"""Bytes of an answer that is put together to be stored."""
HELD = frozenset(
    {
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "verbosity", "service_tier"),
        *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "logit_bias"),
    }
)
"""Members of a conversation's first request that hold for later ones, unless they say otherwise."""
_LEFT_OUT = frozenset({"reasoning", "reasoning_content", "annotations", "index"})
"""Members of an answer that no upstream wants to see again; some refuse them."""


def asked_messages(ask: Ask) -> list[bytes]:
    """The messages of a request, each one as JSON. Raises ProxyError invalid_request."""
    try:
        return [bytes(one) for one in msgspec.json.decode(ask.fields.get("messages", b"[]"), type=list[Raw])]
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise ProxyError("invalid_request", "`messages` must be a list of messages.", param="messages") from None


def with_history(ask: Ask, stored: Sequence[str], settings: str) -> Ask:
    """The request with the stored messages before its own, and what held for the first turn where it says nothing.

    Raises ProxyError invalid_request.
    """
    new = asked_messages(ask)
    if not new:
        raise ProxyError("invalid_request", "There is no message to answer.", param="messages")
    if len(stored) + len(new) > MAX_MESSAGES:
        raise ProxyError(
            "invalid_request", f"The conversation has more than {MAX_MESSAGES} messages; begin a new one.", param="conversation_id"
        )
    held = {name: Raw(orjson.dumps(value)) for name, value in orjson.loads(settings).items() if name not in ask.fields}
    messages = Raw(write_list([*(text.encode() for text in stored), *new]))
    return replace(ask, fields={**held, **ask.fields, "messages": messages})


def held_settings(ask: Ask) -> str:
    """What of a first request holds for later ones, as JSON."""
    return write({name: bytes(value) for name, value in ask.fields.items() if name in HELD}).decode()


def answer_message(document: bytes) -> bytes | None:
    """The first choice's message of a whole answer, as it is sent back in later turns; None where there is none."""
    read = decode(document)
    choices = read.get("choices") if isinstance(read, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return _message(message) if isinstance(message, dict) else None


def _message(said: dict[str, Any]) -> bytes | None:
    kept = {name: value for name, value in said.items() if name not in _LEFT_OUT and value is not None and value != []}
    kept.pop("role", None)
    if not kept:
        return None
    return orjson.dumps({"role": "assistant", "content": None, **kept})


_GROWING = frozenset({"content", "refusal", "arguments", "input"})
"""Members of a delta that come piece by piece; others come once, or are the same each time."""


class Transcript:
    """Puts the first choice's message together while its stream passes. `feed` it, then `message`."""

    __slots__ = ("_calls", "_events", "_said", "_size")

    def __init__(self) -> None:
        self._events = SSE(MAX_TEXT)
        self._said: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream."""
        self._size += len(data)
        if self._size > MAX_TEXT:
            return
        if self._events.idle and (payloads := whole_events(data)) is not None:
            for payload in payloads:
                self._event(payload)
            return
        for frame in self._events.feed(data):
            if frame.data is not None:
                self._event(bytes(frame.data))

    def message(self) -> bytes | None:
        """The message; None where nothing was said, or too much."""
        if self._size > MAX_TEXT:
            return None
        said = dict(self._said)
        if self._calls:
            said["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return _message(said)

    def _event(self, event: bytes) -> None:
        read = decode(event)
        choices = read.get("choices") if isinstance(read, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index") and isinstance(choice.get("delta"), dict):
                self._delta(choice["delta"])

    def _delta(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if name == "tool_calls" and isinstance(value, list):
                for place, call in enumerate(value):
                    if isinstance(call, dict):
                        index = call.get("index", place)
                        _merge(self._calls.setdefault(index if isinstance(index, int) else place, {}), call)
            else:
                _merge(self._said, {name: value})


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Add what a delta says: texts of answers and arguments grow, lists too, names and ids stay as they were first said."""
    for name, value in more.items():
        before = into.get(name)
        if name == "index" or value is None:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif isinstance(value, dict):
            into[name] = {}
            _merge(into[name], value)
        elif isinstance(value, list) and isinstance(before, list):
            into[name] = [*before, *value]
        elif isinstance(value, str) and isinstance(before, str) and name in _GROWING:
            into[name] = before + value
        elif before is None or before == "":
            into[name] = value
