"""One frame in the making: what an event says (`Facets`), and what is held of one choice until its frame leaves (`Held`).

Bytes are written by hand, in the order of the field numbers, because the text is there as bytes already; the schema is
`ChatCompletionChunk` in protos/proxyd/v1/chat.proto, and the tests read every frame with the generated code.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_frames import varint
from proxyd.wire.proto_reply import REASONING, fill_logprobs, fill_usage, finish

if TYPE_CHECKING:
    from proxyd.wire.delivery import Delivery

_ABOUT = ("id", "model", "system_fingerprint", "service_tier")
_TOLD = frozenset({*_ABOUT, "created", "object", "choices", "usage", "obfuscation"})
_DELTA = frozenset({"role", "content", "refusal", "tool_calls", *REASONING})
_CHOICE = frozenset({"index", "delta", "finish_reason", "logprobs", "usage"})


def field(number: int, payload: bytes | bytearray) -> bytes:
    """Write a length-delimited field; numbers up to 15."""
    size = len(payload)
    return (bytes((number << 3 | 2, size)) if size < 128 else bytes((number << 3 | 2,)) + varint(size)) + payload


@dataclass(slots=True)
class Facets:
    """What one choice of one event says."""

    index: int = 0
    reasoning: str = ""
    content: str = ""
    refusal: str = ""
    calls: list[dict[str, Any]] = dataclass_field(default_factory=list)
    logprobs: dict[str, Any] = dataclass_field(default_factory=dict)
    finish: str = ""
    delta: dict[str, Any] = dataclass_field(default_factory=dict)
    """Members of the delta that have no field and say something."""
    around: dict[str, Any] = dataclass_field(default_factory=dict)
    """Members of the choice that have no field."""

    @property
    def text(self) -> bool:
        """Whether the user would see, or hear, anything of it."""
        return bool(self.reasoning or self.content or self.refusal or self.calls or self.delta)

    @property
    def lowest(self) -> int:
        """The place in a frame of the first thing it says: reasoning, content, tool calls."""
        return 1 if self.reasoning else 2 if self.content or self.refusal else 3


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def read_choice(choice: dict[str, Any], delivery: Delivery) -> Facets:
    """Read one choice of an event, leniently: what has the wrong type says nothing."""
    index = choice.get("index")
    facets = Facets(index=index if type(index) is int and 0 <= index < 2**32 else 0)
    facets.finish = _text(choice.get("finish_reason"))
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        facets.logprobs = logprobs
    facets.around = {name: value for name, value in choice.items() if name not in _CHOICE}
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return facets
    facets.content = _text(delta.get("content"))
    facets.refusal = _text(delta.get("refusal"))
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        facets.calls = [call for call in calls if isinstance(call, dict)]
    if not delivery.omit_reasoning:
        facets.reasoning = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
        if delivery.full and delta.get("reasoning_details"):  # at COMPACT it would say the reasoning twice
            facets.delta["reasoning_details"] = delta["reasoning_details"]
    if delta.get("content") and not facets.content:
        facets.delta["content"] = delta["content"]  # parts, as Mistral's reasoning models send them
    facets.delta |= {name: value for name, value in delta.items() if name not in _DELTA and value not in (None, "", [], {})}
    return facets


def about(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what describes the stream: members that `StreamStart` has, and the others."""
    known: dict[str, Any] = {name: value for name in _ABOUT if isinstance(value := document.get(name), str) and value}
    created = document.get("created")
    if type(created) is int and 0 < created < 2**63:
        known["created"] = created
    return known, {name: value for name, value in document.items() if name not in _TOLD}


def usage_field(document: dict[str, Any], *, full: bool) -> bytes:
    """Write the usage that an event reports, wherever its dialect puts it; empty if it reports none."""
    report = document.get("usage")
    if report is None:
        choices = document.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        groq = document.get("x_groq")
        report = (first.get("usage") if isinstance(first, dict) else None) or (groq.get("usage") if isinstance(groq, dict) else None)
    if report is None:
        return b""
    usage = chat_pb2.Usage()
    fill_usage(usage, report, full=full)
    return field(5, usage.SerializeToString()) if usage.ByteSize() else b""


@dataclass(slots=True)
class Call:
    """More of one tool call, as held."""

    index: int
    arguments: bytearray
    rest: bytes
    """Its other fields, written."""

    def encode(self) -> bytes:
        """Write a `ToolCallDelta`."""
        index = b"\x08" + varint(self.index) if self.index else b""
        return index + (field(2, bytes(self.arguments)) if self.arguments else b"") + self.rest


def read_call(call: dict[str, Any]) -> Call:
    """Read one entry of `delta.tool_calls`; members that have no field (thought signatures) go along as JSON."""
    index = call.get("index")
    custom = isinstance(call.get("custom"), dict)
    inner = call.get("custom" if custom else "function")
    inner = inner if isinstance(inner, dict) else {}
    text = inner.get("input" if custom else "arguments")
    if isinstance(text, dict):  # Ollama's own way: an object, not its text
        text = orjson.dumps(text).decode()
    message = chat_pb2.ToolCallDelta(id=_text(call.get("id")), name=_text(inner.get("name")), custom=custom)
    extra = {name: value for name, value in call.items() if name not in {"index", "id", "type", "function", "custom"} and value is not None}
    if extra:
        message.extra_json = orjson.dumps(extra).decode()
    return Call(index if type(index) is int and 0 <= index < 2**32 else 0, bytearray(_text(text).encode()), message.SerializeToString())


class Held:
    """What is held of one choice."""

    __slots__ = (
        "calls",
        "content",
        "extra",
        "finish",
        "finish_text",
        "logprobs",
        "rank",
        "reasoning",
        "refusal",
        "refusal_logprobs",
        "size",
    )

    def __init__(self) -> None:
        self.content = bytearray()
        self.reasoning = bytearray()
        self.refusal = bytearray()
        self.calls: list[Call] = []
        self.logprobs = b""
        self.refusal_logprobs = b""
        self.finish = 0
        self.finish_text = ""
        self.extra: dict[str, dict[str, Any]] = {}
        self.rank = 0
        """The place in the frame of the last thing held; see `Facets.lowest`."""
        self.size = 0
        """Bytes of text held."""

    def any(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.size or self.calls or self.finish or self.extra or self.logprobs or self.refusal_logprobs)

    def admits(self, facets: Facets) -> bool:
        """Whether one frame can hold what is held and this, in the order in which they came."""
        if self.finish:
            return False
        if facets.text and facets.lowest < self.rank:
            return False
        said = self.extra.get("delta", {})
        return not any(
            name in said and not (isinstance(said[name], list) and isinstance(value, list)) for name, value in facets.delta.items()
        )

    def add(self, facets: Facets) -> None:
        """Hold it, behind what is held."""
        before = len(self.reasoning) + len(self.content) + len(self.refusal)
        if facets.reasoning:
            self.reasoning += facets.reasoning.encode()
            self.rank = 1
        if facets.content or facets.refusal:
            self.content += facets.content.encode()
            self.refusal += facets.refusal.encode()
            self.rank = 2
        self.size += len(self.reasoning) + len(self.content) + len(self.refusal) - before
        for entry in facets.calls:
            self.rank = 3
            self._add_call(read_call(entry))
        for name, value in facets.delta.items():
            said = self.extra.setdefault("delta", {})
            said[name] = said[name] + value if name in said else value
        if facets.finish:
            self.finish, self.finish_text = finish(facets.finish)
        if facets.logprobs:
            chunk = chat_pb2.ChatCompletionChunk()
            fill_logprobs(chunk.logprobs, facets.logprobs.get("content"))
            self.logprobs += chunk.SerializeToString()
            chunk.Clear()
            fill_logprobs(chunk.refusal_logprobs, facets.logprobs.get("refusal"))
            self.refusal_logprobs += chunk.SerializeToString()

    def _add_call(self, call: Call) -> None:
        self.size += len(call.arguments) + len(call.rest)
        last = self.calls[-1] if self.calls else None
        if last is not None and last.index == call.index and not call.rest:
            last.arguments += call.arguments
        else:
            self.calls.append(call)

    def encode(self, index: int, *, start: bytes = b"", usage: bytes = b"") -> bytes:
        """Write the message; `usage` is a field, written already."""
        if (
            self.rank == 2
            and len(self.content) == self.size
            and not (self.finish or self.logprobs or self.refusal_logprobs or self.extra or start or usage)
        ):
            return field(1, self.content) + (b"\x30" + varint(index) if index else b"")  # text and nothing else: nearly all frames
        parts = (
            field(1, bytes(self.content)) if self.content else b"",
            field(2, bytes(self.reasoning)) if self.reasoning else b"",
            *(field(3, call.encode()) for call in self.calls),
            b"\x20" + varint(self.finish) if self.finish else b"",
            usage,
            b"\x30" + varint(index) if index else b"",
            field(7, start) if start else b"",
            field(10, bytes(self.refusal)) if self.refusal else b"",
            self.logprobs,
            field(12, self.finish_text.encode()) if self.finish_text else b"",
            self.refusal_logprobs,
            field(14, orjson.dumps(self.extra)) if self.extra else b"",
        )
        return b"".join(parts)
