"""Frames back into the upstream's JSON events. At DETAIL_FULL and max_delay_ms 0 exactly; else what the frames still have.

How, as protos/README.md tells clients: every event is expected to look like the one before it. OpenAI's shape is where it
starts; what a frame's fields do not say, its `extra_json` does:

    {"chunk": {…}, "choice": {…}}  members that hold from this frame on, over what is expected
    {"delta": {…}}                 members of this frame's delta only
    {"choices": 0 | 1 | null}      the event has no choice, one although nothing is said of it, or not even the member
    {"shape": {"delta": {…}, "drop": {"chunk": […], "choice": […], "delta": […]}, "inside": bool, "reasoning": name}}
                                   members that deltas have from here on where the frame says nothing; members that are
                                   not there any more; usage comes inside the last event, not after it; what reasoning is called
    {"event": "{…}", "frames": n}  the event's text itself, for this frame and the n - 1 that follow

The encoder carries one of these along and compares, so what it rebuilds is right by construction.
"""

from __future__ import annotations

from typing import Any

import orjson

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_error import error_json
from proxyd.wire.proto_reply import finish_text, logprobs_json, usage_json
from proxyd.wire.proto_scan import parse

OPENING: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
"""What the delta of a choice's first event has, as OpenAI sends it."""


class Rebuilder:
    """Takes the frames of one stream in order and gives the JSON events, without `data:` and without `[DONE]`."""

    __slots__ = ("choice", "chunk", "delta", "inside", "opened", "reasoning", "skip")

    def __init__(self) -> None:
        self.chunk: dict[str, Any] = {"object": "chat.completion.chunk", "usage": None}
        self.choice: dict[str, Any] = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        self.delta: dict[str, Any] | None = None
        self.inside = False
        self.reasoning = "reasoning_content"
        self.opened: set[int] = set()
        self.skip = 0

    def copy(self) -> Rebuilder:
        """Branch off, to try a frame."""
        other = Rebuilder()
        other.chunk, other.choice = dict(self.chunk), dict(self.choice)
        other.delta = self.delta
        other.inside, other.reasoning, other.skip = self.inside, self.reasoning, self.skip
        other.opened = set(self.opened)
        return other

    def feed(self, data: bytes) -> list[bytes]:
        """Take one frame (without its length); returns the events that it stands for, none for a keep-alive.

        Raises ProxyError `invalid_request` if it is no `ChatCompletionChunk`, or needs a vocabulary to read.
        """
        frame = parse(chat_pb2.ChatCompletionChunk, data)
        extra = _extra(frame.extra_json)
        try:
            if "event" in extra:
                self._about(frame)
                self.opened.add(frame.index)
                self.skip = extra.get("frames", 1) - 1
                return [extra["event"].encode()]
            return [orjson.dumps(event) for event in self.events(frame, extra)]
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError):  # extra_json that is no encoder's work
            raise ProxyError("invalid_request", "A frame's extra_json cannot be read.") from None

    def events(self, frame: chat_pb2.ChatCompletionChunk, extra: dict[str, Any]) -> list[dict[str, Any]]:
        """Give the events of one frame as objects; `extra` is its `extra_json`, read."""
        if self.skip:
            self.skip -= 1
            self.opened.add(frame.index)
            return []
        if frame.HasField("error"):
            event: dict[str, Any] = orjson.loads(error_json(frame.error))
            return [event]
        if frame.tokens:
            raise ProxyError("invalid_request", "The frame has token ids in place of text.")
        fields = {field.name for field, _ in frame.ListFields()} - {"padding", "extra_json"}
        if not fields and not extra:
            return []
        self._about(frame)
        self._shape(extra)
        count = extra.get("choices", 0 if fields == {"usage"} else 1)
        event = dict(self.chunk)
        if count is not None:
            event["choices"] = [self._choice(frame, extra)] if count else []
        after = []
        if frame.HasField("usage"):
            usage = {"usage": usage_json(frame.usage)}
            if self.inside or not count:
                event |= usage
            else:
                after = [{**self.chunk, "choices": [], **usage}]
        event |= extra.get("chunk", {})
        return [event, *after]

    def _about(self, frame: chat_pb2.ChatCompletionChunk) -> None:
        for field, value in frame.start.ListFields():
            if field.name != "handle":
                self.chunk[field.name] = value

    def _shape(self, extra: dict[str, Any]) -> None:
        shape = extra.get("shape", {})
        self.chunk |= extra.get("chunk", {})
        self.choice |= extra.get("choice", {})
        self.inside = shape.get("inside", self.inside)
        self.reasoning = shape.get("reasoning", self.reasoning)
        drop = shape.get("drop", {})
        for name in drop.get("chunk", ()):
            self.chunk.pop(name, None)
        for name in drop.get("choice", ()):
            self.choice.pop(name, None)

    def _delta(self, frame: chat_pb2.ChatCompletionChunk, extra: dict[str, Any]) -> dict[str, Any]:
        shape = extra.get("shape", {})
        opening = frame.index not in self.opened
        self.opened.add(frame.index)
        expected = self.delta if self.delta is not None else OPENING if opening else {}
        dropped = shape.get("drop", {}).get("delta", ())
        if "delta" in shape or dropped:
            expected = {name: value for name, value in (expected | shape.get("delta", {})).items() if name not in dropped}
            self.delta = expected
        delta = dict(expected)
        if frame.content:
            delta["content"] = frame.content
        if frame.reasoning:
            delta[self.reasoning] = frame.reasoning
        if frame.refusal:
            delta["refusal"] = frame.refusal
        if frame.tool_calls:
            delta["tool_calls"] = [_call(call) for call in frame.tool_calls]
        delta |= extra.get("delta", {})
        return delta

    def _choice(self, frame: chat_pb2.ChatCompletionChunk, extra: dict[str, Any]) -> dict[str, Any]:
        delta = self._delta(frame, extra)
        choice = dict(self.choice)
        if "index" in choice:
            choice["index"] = frame.index
        if delta or "delta" in choice:
            choice["delta"] = delta
        if frame.finish_reason:
            choice["finish_reason"] = finish_text(frame.finish_reason, frame.finish_reason_text)
        if frame.logprobs or frame.refusal_logprobs:
            choice["logprobs"] = logprobs_json(frame.logprobs, frame.refusal_logprobs)
        choice |= extra.get("choice", {})
        return choice


def _call(call: chat_pb2.ToolCallDelta) -> dict[str, Any]:
    first = bool(call.id or call.name)
    kind, text = ("custom", "input") if call.custom else ("function", "arguments")
    inner: dict[str, Any] = {"name": call.name, text: call.arguments} if first else {text: call.arguments}
    members: dict[str, Any] = {"index": call.index}
    if first:
        members |= {"id": call.id, "type": kind}
    members[kind] = inner
    return members | _extra(call.extra_json)


def _extra(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        read = orjson.loads(text)
    except orjson.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise ProxyError("invalid_request", "extra_json is not a JSON object.")
    return read


def difference(expected: dict[str, Any] | None, event: dict[str, Any]) -> dict[str, Any]:
    """Say in `extra_json` what makes `expected` the event. The caller tries it, for not everything can be said so."""
    shape: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    wanted = event.get("choices")
    had = expected["choices"] if expected and "choices" in expected else []
    if expected is None or len(wanted or ()) != len(had) or wanted is None:
        extra["choices"] = None if wanted is None else len(wanted)
    old_choice = had[0] if had else {}
    new_choice = wanted[0] if wanted else {}
    for level, old, new in (("chunk", expected or {}, event), ("choice", old_choice, new_choice)):
        _members(level, old, new, (extra, shape))
    _members("delta", old_choice.get("delta") or {}, new_choice.get("delta") or {}, (extra, shape))
    if new_choice and "delta" not in new_choice:
        shape.setdefault("drop", {}).setdefault("choice", []).append("delta")
    if shape:
        extra["shape"] = shape
    return extra


def _members(level: str, old: dict[str, Any], new: dict[str, Any], into: tuple[dict[str, Any], dict[str, Any]]) -> None:
    extra, shape = into
    for name, value in new.items():
        if name in {"choices", "delta"} or (name in old and same(old[name], value)):
            continue
        if level == "delta" and (not value or name == "role"):
            shape.setdefault("delta", {})[name] = value
        else:
            extra.setdefault(level, {})[name] = value
    for name in old:
        if name not in new and name not in {"choices", "delta"}:
            shape.setdefault("drop", {}).setdefault(level, []).append(name)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, 1 and 1.0 told apart, the order of members not."""
    if one is other:
        return True
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)
