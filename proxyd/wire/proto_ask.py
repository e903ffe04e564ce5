"""The other way: a JSON chat request as protobuf.

What does not fit its field (a number that no float32 is, an unknown role, a member of a later API) goes into the
`extra_json` nearest to it, so the mapping is total. Not kept, because they mean nothing: null members, `stop` as a bare
string, `include_usage`, the order of members.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from proxyd.errors import ProxyError
from proxyd.wire import proto
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_message import Members, Misfit, Way, as_text, fill_message, open_list, open_object, plain, string
from proxyd.wire.proto_text import fits_single, write

_MODES = {name: number for number, name in proto.CHOICE_MODES.items()}


def chat_message(body: bytes) -> chat_pb2.ChatCompletionRequest:
    """Read OpenAI's JSON request as a protobuf request. Raises ProxyError `invalid_json` if it is not a JSON object.

    For clients and tests. Serialise the result with `SerializeToString(deterministic=True)`.
    """
    return _chat(_members(body), Way(binary=True))


def _members(body: bytes) -> Members:
    try:
        return open_object(body)
    except Misfit:
        raise ProxyError("invalid_json", "The body is not a JSON object.") from None


def _chat(members: Members, way: Way) -> chat_pb2.ChatCompletionRequest:
    message = chat_pb2.ChatCompletionRequest()
    extra: Members = {}
    for name, raw in members.items():
        setter = _SETTERS.get(name)
        if setter is None:
            extra[name] = raw
            continue
        try:
            setter(message, name, raw, way)
        except Misfit:
            if setter is not _set_options:
                message.ClearField(name)
            extra[name] = raw
    if extra:
        message.extra_json = as_text(write(extra))
    return message


# setters of one top-level member: (request, name, raw value, way)
_Setter = Callable[[chat_pb2.ChatCompletionRequest, str, bytes, Way], None]


def _set_string(message: Any, name: str, raw: bytes, _way: Way) -> None:
    text = plain(raw)
    if not isinstance(text, str) or not text:  # "" is not "absent": only extra_json can say it
        raise Misfit
    setattr(message, name, text)


def _set_bool(message: Any, name: str, raw: bytes, _way: Way) -> None:
    if raw not in {b"true", b"false"}:
        raise Misfit
    setattr(message, name, raw == b"true")


def _set_uint(message: Any, name: str, raw: bytes, _way: Way) -> None:
    count = plain(raw)
    if type(count) is not int or not 0 <= count < 2**32:
        raise Misfit
    setattr(message, name, count)


def _set_seed(message: Any, name: str, raw: bytes, _way: Way) -> None:
    seed = plain(raw)
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        raise Misfit
    setattr(message, name, seed)


def _set_float(message: Any, name: str, raw: bytes, _way: Way) -> None:
    number = plain(raw)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not fits_single(number):
        raise Misfit
    setattr(message, name, number)


def _set_strings(message: Any, name: str, raw: bytes, _way: Way) -> None:
    items = plain(raw)
    if name == "stop" and isinstance(items, str):
        items = [items]
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise Misfit
    getattr(message, name).extend(items)


def _set_bias(message: Any, name: str, raw: bytes, _way: Way) -> None:
    bias = plain(raw)
    if not isinstance(bias, dict) or not bias:
        raise Misfit
    for token, weight in bias.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", token) or isinstance(weight, bool):
            raise Misfit
        if not isinstance(weight, (int, float)) or not fits_single(weight):
            raise Misfit
        getattr(message, name)[int(token)] = weight


def _set_labels(message: Any, name: str, raw: bytes, _way: Way) -> None:
    labels = plain(raw)
    if not isinstance(labels, dict) or not labels or not all(isinstance(text, str) for text in labels.values()):
        raise Misfit
    getattr(message, name).update(labels)


def _set_options(message: Any, _name: str, raw: bytes, _way: Way) -> None:
    """`include_usage` is what every protobuf stream has; obfuscation becomes padding."""
    options = plain(raw)
    if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        raise Misfit
    if options.get("include_obfuscation") is True:
        message.delivery.pad_to = 16


def _set_messages(request: Any, _name: str, raw: bytes, way: Way) -> None:
    entries = open_list(raw)
    if not entries:
        raise Misfit
    for entry in entries:
        fill_message(request.messages.add(), entry, way)


def _set_tools(request: Any, _name: str, raw: bytes, _way: Way) -> None:
    entries = open_list(raw)
    if not entries:
        raise Misfit
    for entry in entries:
        tool = request.tools.add()
        try:
            _function_tool(tool.function, entry)
        except Misfit:
            tool.other_json = as_text(write(entry))


def _function_tool(function: chat_pb2.FunctionTool, entry: Members) -> None:
    if entry.keys() != {"type", "function"} or string(entry["type"]) != "function":
        raise Misfit
    _describe(function, open_object(entry["function"]), "parameters")


def _describe(what: chat_pb2.FunctionTool | chat_pb2.JsonSchema, inner: Members, member: str) -> None:
    """Read what a function and a format have alike: a name, a description, a JSON schema as `member`, and how strictly it holds."""
    what.name = string(inner.pop("name", None))
    if "description" in inner:
        what.description = _filled(inner.pop("description"))
    if member in inner:
        setattr(what, f"{member}_json", as_text(inner.pop(member)))
    if "strict" in inner:
        _set_bool(what, "strict", inner.pop("strict"), Way(binary=False))
    if inner:
        raise Misfit


def _filled(raw: bytes) -> str:
    text = string(raw)
    if not text:
        raise Misfit
    return text


def _set_choice(request: Any, _name: str, raw: bytes, _way: Way) -> None:
    choice = request.tool_choice
    if raw[:1] == b'"' and (mode := string(raw)) in _MODES:
        choice.mode = _MODES[mode]
        return
    if raw[:1] == b"{":
        entry = open_object(raw)
        inner = open_object(entry["function"]) if entry.keys() == {"type", "function"} else {}
        if inner.keys() == {"name"} and string(entry["type"]) == "function":
            choice.function = string(inner["name"])
            return
    choice.other_json = as_text(raw)


def _set_format(request: Any, _name: str, raw: bytes, _way: Way) -> None:
    form = request.response_format
    entry = open_object(raw)
    kind = string(entry.get("type"))
    if kind in {"text", "json_object"} and len(entry) == 1:
        setattr(form, kind, True)
        return
    try:
        _schema_format(form.json_schema, kind, entry)
    except Misfit:
        form.other_json = as_text(raw)


def _schema_format(schema: chat_pb2.JsonSchema, kind: str, entry: Members) -> None:
    if kind != "json_schema" or entry.keys() != {"type", "json_schema"}:
        raise Misfit
    _describe(schema, open_object(entry["json_schema"]), "schema")


_SETTERS: dict[str, _Setter] = {
    "messages": _set_messages,
    "tools": _set_tools,
    "tool_choice": _set_choice,
    "response_format": _set_format,
    "stream_options": _set_options,
    "logit_bias": _set_bias,
    "metadata": _set_labels,
    "seed": _set_seed,
    **dict.fromkeys(("model", "reasoning_effort", "service_tier", "verbosity"), _set_string),
    **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key"), _set_string),
    **dict.fromkeys(("stream", "logprobs", "parallel_tool_calls", "store"), _set_bool),
    **dict.fromkeys(("max_completion_tokens", "max_tokens", "n", "top_logprobs"), _set_uint),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), _set_float),
    **dict.fromkeys(("stop", "modalities"), _set_strings),
}
