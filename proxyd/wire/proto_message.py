"""One JSON message as protobuf: text, parts and tool calls. Used for requests (`proto_ask`) and answers (`proto_reply`).

A value that has no place in its field raises `Misfit`, and whoever holds the larger thing then keeps it as JSON.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from proxyd.errors import ProxyError
from proxyd.wire import proto
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_text import write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_RAWS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_LIST = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_ROLES = {name: number for number, name in proto.ROLES.items()}
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,([A-Za-z0-9+/=]*)", re.ASCII)
JSON_ERRORS = (msgspec.DecodeError, orjson.JSONDecodeError, UnicodeDecodeError, RecursionError)

Members = dict[str, bytes]


class Misfit(Exception):  # noqa: N818 - no error: it decides where a value goes
    """The value has no place in its field."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to map: `binary` turns base64 into bytes, which pays on the wire and not where only the meaning counts."""

    binary: bool


def open_object(raw: bytes) -> Members:
    """Read the members of an object, without those that are null."""
    try:
        decoded = _RAWS.decode(raw)
    except JSON_ERRORS:
        raise Misfit from None
    return {name: text for name, item in decoded.items() if (text := bytes(item)) != b"null"}


def open_list(raw: bytes) -> list[Members]:
    """Read an array of objects, each as `open_object` does."""
    try:
        return [{name: text for name, item in entry.items() if (text := bytes(item)) != b"null"} for entry in _RAW_LIST.decode(raw)]
    except JSON_ERRORS:
        raise Misfit from None


def plain(raw: bytes) -> Any:
    """Read any JSON value."""
    try:
        return orjson.loads(raw)
    except JSON_ERRORS:
        raise Misfit from None


def as_text(raw: bytes) -> str:
    """Give JSON bytes as the text of a string field. Raises ProxyError `invalid_json` if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ProxyError("invalid_json", "The body is not UTF-8.") from None


def fill_message(message: chat_pb2.Message, entry: Mapping[str, bytes], way: Way, default_role: str = "user") -> None:
    """Put one JSON message (raw members, nulls left out) into protobuf; what has no field goes into its `extra_json`."""
    extra: Members = {}
    for name, raw in entry.items():
        try:
            _MESSAGE[name](message, raw, way)
        except (KeyError, Misfit):
            if name == "tool_calls":
                message.ClearField("tool_calls")
            elif name == "content":
                message.ClearField("parts")
            extra[name] = raw
    if message.role == _ROLES[default_role]:
        message.role = chat_pb2.ROLE_UNSPECIFIED
    if "reasoning_content" in extra and message.reasoning:  # `reasoning` came first, and was not the same
        message.reasoning = ""
        extra["reasoning"] = entry["reasoning"]
    if extra:
        message.extra_json = as_text(write(extra))


def _message_role(message: Any, raw: bytes, _way: Way) -> None:
    role = plain(raw)
    if not isinstance(role, str) or role not in _ROLES:
        raise Misfit
    message.role = _ROLES[role]


def _message_content(message: Any, raw: bytes, way: Way) -> None:
    if raw[:1] == b'"':
        message.content = string(raw)
        return
    parts = open_list(raw)
    if not parts:
        raise Misfit
    for entry in parts:
        _part(message.parts.add(), entry, way)


def string(raw: bytes | None) -> str:
    """Read a JSON string; anything else is a misfit."""
    text = plain(raw) if raw is not None else None
    if not isinstance(text, str):
        raise Misfit
    return text


def _message_text(name: str, *, empty: bool = False) -> Callable[[Any, bytes, Way], None]:
    def put(message: Any, raw: bytes, _way: Way) -> None:
        text = string(raw)
        if not text and not empty:
            raise Misfit
        setattr(message, name, text)

    return put


def _message_reasoning(message: Any, raw: bytes, _way: Way) -> None:
    text = string(raw)
    if not text or (message.reasoning and message.reasoning != text):
        raise Misfit
    message.reasoning = text


def _message_calls(message: Any, raw: bytes, _way: Way) -> None:
    for entry in open_list(raw):
        fill_call(message.tool_calls.add(), entry)


def fill_call(call: chat_pb2.ToolCall, entry: Mapping[str, bytes]) -> None:
    """Put one JSON tool call (raw members) into protobuf."""
    rest = dict(entry)
    kind = string(rest.pop("type", b'"function"'))
    inner_name, text_name = ("custom", "input") if kind == "custom" else ("function", "arguments")
    inner = open_object(rest.pop(inner_name, b"{}"))
    if kind not in {"function", "custom"} or not inner.keys() <= {"name", text_name}:
        raise Misfit
    call.id = string(rest.pop("id", b'""'))
    call.name = string(inner.get("name", b'""'))
    call.arguments = string(inner.get(text_name, b'""'))
    call.custom = kind == "custom"
    if rest:
        call.extra_json = as_text(write(rest))


_MESSAGE: dict[str, Callable[[Any, bytes, Way], None]] = {
    "role": _message_role,
    "content": _message_content,
    "tool_calls": _message_calls,
    "tool_call_id": _message_text("tool_call_id"),
    "name": _message_text("name"),
    "refusal": _message_text("refusal", empty=True),
    "reasoning_content": _message_reasoning,
    "reasoning": _message_reasoning,
}


def _part(part: chat_pb2.ContentPart, entry: Members, way: Way) -> None:
    """Put one content part into protobuf; of other types, or where a member does not fit, the whole part as JSON."""
    rest = dict(entry)
    try:
        kind = string(rest.pop("type", None))
        _PARTS[kind](part, rest, way)
    except (KeyError, Misfit):
        part.Clear()
        part.other_json = as_text(write(entry))
        return
    if rest:
        part.extra_json = as_text(write(rest))


def _inner(rest: Members, name: str, allowed: set[str]) -> dict[str, str]:
    """Take the object that holds a part's strings; more members than are allowed do not fit."""
    inner = open_object(rest.pop(name, b""))
    if not inner.keys() <= allowed:
        raise Misfit
    return {key: string(raw) for key, raw in inner.items()}


def _binary(url: str, way: Way) -> tuple[str, bytes] | None:
    """Read a data URL whose bytes give the very same URL again."""
    found = _DATA_URL.fullmatch(url) if way.binary else None
    data = _decoded(found[2]) if found else None
    return (found[1], data) if found and data else None


def _decoded(text: str) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if base64.b64encode(data).decode() == text else None


def _image(part: chat_pb2.ContentPart, rest: Members, way: Way) -> None:
    inner = _inner(rest, "image_url", {"url", "detail"})
    if "url" not in inner or inner.get("detail") == "":
        raise Misfit
    if read := _binary(inner["url"], way):
        part.image.data = read[1]
        part.image.media_type = "" if read[0] == "image/jpeg" else read[0]
    else:
        part.image.url = inner["url"]
    part.image.detail = inner.get("detail", "")


def _audio(part: chat_pb2.ContentPart, rest: Members, way: Way) -> None:
    inner = _inner(rest, "input_audio", {"data", "format"})
    data = _decoded(inner.get("data", "")) if way.binary else None
    if not data or not inner.get("format"):
        raise Misfit
    part.audio.data = data
    part.audio.format = "" if inner["format"] == "wav" else inner["format"]


def _file(part: chat_pb2.ContentPart, rest: Members, way: Way) -> None:
    inner = _inner(rest, "file", {"file_id", "file_data", "filename"})
    if ("file_id" in inner) == ("file_data" in inner) or inner.get("filename") == "":
        raise Misfit
    if "file_id" in inner:
        part.file.file_id = inner["file_id"]
    elif read := _binary(inner["file_data"], way):
        part.file.data = read[1]
        part.file.media_type = "" if read[0] == "application/pdf" else read[0]
    else:
        part.file.data_url = inner["file_data"]
    part.file.filename = inner.get("filename", "")


def _plain_part(name: str) -> Callable[[chat_pb2.ContentPart, Members, Way], None]:
    def put(part: chat_pb2.ContentPart, rest: Members, _way: Way) -> None:
        setattr(part, name, string(rest.pop(name, None)))

    return put


_PARTS: dict[str, Callable[[chat_pb2.ContentPart, Members, Way], None]] = {
    "text": _plain_part("text"),
    "refusal": _plain_part("refusal"),
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
}
