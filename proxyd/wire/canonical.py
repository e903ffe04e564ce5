"""The one form of a request: two bodies that mean the same to an upstream have the same, however they are spelled.

JSON and its protobuf twin share it, too: what the way through protobuf cannot keep apart (`proto_ask`, `proto`) is made equal
here, on parsed JSON and in one pass, for this runs on the event loop for every request with an Idempotency-Key.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from proxyd.errors import ProxyError
from proxyd.wire.wishes import OWN

if TYPE_CHECKING:
    from collections.abc import Iterator

EXACT = 1 << 20
"""Bytes of a body that is read whole. Of a larger one the order of inner members and the spelling of numbers count."""

STEP = 64 * 1024
"""Bytes of a larger body that are looked at in one go."""

_RUN = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")++', re.DOTALL)
"""Whole strings, and what stands between them."""
_LEAN = re.compile(rb'(?:[^" \t\r\n]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")++', re.DOTALL)
"""The same without space, but in strings."""
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)++', re.DOTALL)
_RAWS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPTIONS = frozenset({"include_usage", "include_obfuscation"})


def chat(body: bytes) -> bytes:
    """Write a chat request in its one form.

    Members for proxyd alone (`delivery`, `handle`, `stream_options` as every protobuf stream has them) are not in it.
    Raises ProxyError `invalid_json` if it is not a JSON object.
    """
    return _large(body, OWN) if len(body) > EXACT else _written(body, meaning=True)


def plain(body: bytes) -> bytes:
    """Write any other request with sorted members, no spaces, and whole numbers without a fraction: equal values, equal bytes.

    Raises ProxyError `invalid_json`.
    """
    return _large(body, frozenset()) if len(body) > EXACT else _written(body, meaning=False)


def _written(body: bytes, *, meaning: bool) -> bytes:
    try:
        document = orjson.loads(body)
        if meaning:
            _mean(document)
        return orjson.dumps(_whole(document), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError, RecursionError, OverflowError):
        pass  # half a surrogate pair, or a number that orjson rounds: json reads both
    try:
        document = json.loads(body)
        if meaning:
            _mean(document)
        return json.dumps(_whole(document, exact=False), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        raise ProxyError("invalid_json", "The body is not valid JSON.") from None


def _large(body: bytes, without: frozenset[str]) -> bytes:
    """A form that is made without reading the values, in small steps: where it runs, in a thread, each step holds up the loop."""
    try:
        members = sorted((name, raw) for name, raw in _RAWS.decode(body).items() if name not in without)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError("invalid_json", "The body is not a JSON object.") from None
    pieces: list[bytes | memoryview] = []
    for name, raw in members:
        pieces += (b"\n" if pieces else b"", orjson.dumps(name), *_lean(memoryview(raw)))
    return b"".join(pieces)


def _lean(value: memoryview) -> Iterator[bytes | memoryview]:
    """A value of JSON, piece by piece, without the space between its tokens."""
    at = 0
    while at < len(value):
        if (run := _RUN.match(value, at, at + STEP)) is not None:
            end = run.end()
            yield b"".join(_LEAN.findall(value[at:end]))
        else:  # a string that is longer than a step
            begun = at + 1
            while (inside := _INSIDE.match(value, begun, begun + STEP)) is not None:
                begun = inside.end()
            yield value[at : (end := begun + 1)]
        at = end


def _whole(item: Any, *, exact: bool = True) -> Any:
    """1.0 and 1 are one number in JSON. With `exact`, raises OverflowError where a whole number may have been rounded."""
    if isinstance(item, dict):
        return {name: inner if type(inner) is str else _whole(inner, exact=exact) for name, inner in item.items()}
    if isinstance(item, list):
        return [inner if type(inner) is str else _whole(inner, exact=exact) for inner in item]
    if isinstance(item, float) and item.is_integer():
        if abs(item) >= 2**53 and exact:
            raise OverflowError  # perhaps an integer beyond 64 bits: two requests must not look the same
        return int(item)
    return item


# What the mapping to protobuf makes equal. Each step changes the parsed request in place.


def _mean(request: Any) -> None:
    """Say what is meant in one way. Raises ProxyError `invalid_json` for what is no object."""
    if not isinstance(request, dict):
        raise ProxyError("invalid_json", "The body is not a JSON object.")
    _drop_nulls(request)
    for name in OWN:
        request.pop(name, None)
    if request.get("stream") is False:
        del request["stream"]
    if isinstance(request.get("stop"), str):
        request["stop"] = [request["stop"]]
    options = request.get("stream_options")
    if isinstance(options, dict) and options.keys() <= _OPTIONS:
        del request["stream_options"]
    for message in _objects(request.get("messages")):
        _mean_message(message)
    for tool in _objects(request.get("tools")):
        _drop_nulls(tool)
        _drop_nulls(tool.get("function"))
    for name, inner in (("tool_choice", "function"), ("response_format", "json_schema")):
        chosen = request.get(name)
        if isinstance(chosen, dict):
            _drop_nulls(chosen)
            _drop_nulls(chosen.get(inner))


def _mean_message(message: dict[str, Any]) -> None:
    _drop_nulls(message)
    message.setdefault("role", "user")
    said = message.get("reasoning")
    if isinstance(said, str) and said and message.get("reasoning_content", said) == said:
        message["reasoning_content"] = message.pop("reasoning")
    content = message.get("content")
    if type(content) is list:
        for part in _objects(content):
            _drop_nulls(part)
            for inner in ("image_url", "input_audio", "file"):
                _drop_nulls(part.get(inner))
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    for call in _objects(message.get("tool_calls")):
        _mean_call(call)


def _mean_call(call: dict[str, Any]) -> None:
    _drop_nulls(call)
    if call.get("id") == "":
        del call["id"]
    kind = call.setdefault("type", "function")
    for name, text in (("function", "arguments"), ("custom", "input")):
        if kind == name:
            inner = call.setdefault(name, {})
            if isinstance(inner, dict):
                _drop_nulls(inner)
                inner.setdefault("name", "")
                inner.setdefault(text, "")


def _drop_nulls(item: Any) -> None:
    if isinstance(item, dict):
        for name in [name for name, inner in item.items() if inner is None]:
            del item[name]


def _objects(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
