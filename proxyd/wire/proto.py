"""A protobuf chat request, read as the JSON request that it stands for.

`chat(data)` gives OpenAI's JSON body, and beside it what is for proxyd alone: how to deliver, the conversation, the handle.
From there on there is one road: the body is parsed and checked as a JSON client's is. Related files: `proto_scan` (bounds),
`proto_text` (splicing), `delivery`, `proto_ask` (the way back), `proto_reply` and `proto_stream` (answers),
`proto_rebuild` (frames back into JSON), `proto_embed` (embeddings and models), `proto_error`, `connect`.

The body never has `stream_options`: a protobuf stream always ends with usage, so the caller of this file asks the upstream
for it, as if the client had.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.wire import delivery, proto_text
from proxyd.wire._pb import chat_pb2
from proxyd.wire.delivery import Delivery
from proxyd.wire.proto_scan import parse
from proxyd.wire.proto_text import merge, number, refusal, value, write, write_list

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MESSAGES = 4096
MAX_TOOLS = 512
NAME_BYTES = range(8, 17)
"""Lengths of `handle` and `conversation`."""

_DUMP = orjson.dumps
_NULL = b"null"
ROLES = {1: "user", 2: "assistant", 3: "system", 4: "developer", 5: "tool", 6: "function"}
CHOICE_MODES = {1: "auto", 2: "none", 3: "required"}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request as protobuf said it."""

    body: bytes
    """OpenAI's JSON, ready to be parsed and routed. `model` is absent if the client left it out."""
    delivery: Delivery
    conversation: bytes | None
    history: int | None
    """How many stored messages come first; None: all of them."""
    handle: bytes | None
    """The Idempotency-Key, and the name to resume by; as text it is base64url without padding, see `name_text`."""


def name_text(name: bytes) -> str:
    """Write a handle or conversation where it has to be text: base64url without padding."""
    return base64.urlsafe_b64encode(name).rstrip(b"=").decode()


def name_bytes(text: str) -> bytes:
    """Read what `name_text` wrote. Raises ProxyError `invalid_request`."""
    try:
        name = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        raise refusal("handle", "is not base64url") from None
    if len(name) not in NAME_BYTES:
        raise refusal("handle", "is not 8 to 16 bytes")
    return name


def chat(data: bytes) -> ChatRequest:
    """Read a `ChatCompletionRequest`. Raises ProxyError `invalid_request` for anything that is wrong with it."""
    return from_message(parse(chat_pb2.ChatCompletionRequest, data))


def from_message(message: chat_pb2.ChatCompletionRequest) -> ChatRequest:
    """Read a request that is decoded already (a Connect client's JSON)."""
    members: dict[str, bytes] = {}
    for field, content in message.ListFields():
        writer = _WRITERS.get(field.name)
        if writer is not None:
            members[field.name] = writer(content)
    merge(members, message.extra_json, "")
    return ChatRequest(
        body=write(members),
        delivery=delivery.from_message(message.delivery) if message.HasField("delivery") else Delivery(),
        conversation=_name(message.conversation, "conversation"),
        history=message.history if message.HasField("history") else None,
        handle=_name(message.handle, "handle"),
    )


def _name(name: bytes, param: str) -> bytes | None:
    if name and len(name) not in NAME_BYTES:
        raise refusal(param, "is not 8 to 16 bytes")
    return name or None


def _messages(messages: Any) -> bytes:
    if len(messages) > MAX_MESSAGES:
        raise refusal("messages", f"are more than {MAX_MESSAGES}")
    return write_list(message_json(message) for message in messages)


def message_json(message: chat_pb2.Message, role: str = "user") -> bytes:
    """Write one message; `role` is the one that is meant where none is said."""
    members: dict[str, bytes] = {}
    if message.role:
        members["role"] = _DUMP(_enum(ROLES, message.role, "messages.role"))
    if message.HasField("content"):
        if message.parts:
            raise refusal("messages.content", "and parts are both given")
        members["content"] = _DUMP(message.content)
    elif message.parts:
        members["content"] = write_list(_part(part) for part in message.parts)
    if message.tool_calls:
        members["tool_calls"] = write_list(_call(call) for call in message.tool_calls)
    texts = {"tool_call_id": message.tool_call_id, "name": message.name, "reasoning_content": message.reasoning}
    members |= {name: _DUMP(text) for name, text in texts.items() if text}
    if message.HasField("refusal"):
        members["refusal"] = _DUMP(message.refusal)
    merge(members, message.extra_json, "messages.")
    members = {"role": _DUMP(role), **members}
    if members["role"] == b'"assistant"':
        members.setdefault("content", _NULL)  # several servers want the member, if only as null
    return write(members)


def _enum(names: dict[int, str], number_value: int, param: str) -> str:
    if number_value not in names:
        raise refusal(param, f"has the unknown value {number_value}")
    return names[number_value]


def _url(data: bytes, media_type: str) -> bytes:
    return _DUMP(f"data:{media_type};base64,{base64.b64encode(data).decode()}")


def _part(part: chat_pb2.ContentPart) -> bytes:
    kind = part.WhichOneof("part")
    if kind is None:
        raise refusal("messages.parts", "has an empty part")
    if kind == "other_json":
        if part.extra_json:
            raise refusal("messages.parts.extra_json", "has no place beside other_json")
        return value(part.other_json, "messages.parts.other_json")
    members = _PARTS[kind](getattr(part, kind))
    merge(members, part.extra_json, "messages.parts.")
    return write(members)


def _image(image: chat_pb2.Image) -> dict[str, bytes]:
    source = image.WhichOneof("source")
    if source is None:
        raise refusal("messages.parts.image", "has neither data nor url")
    inner = {"url": _url(image.data, image.media_type or "image/jpeg") if source == "data" else _DUMP(image.url)}
    if image.detail:
        inner["detail"] = _DUMP(image.detail)
    return {"type": b'"image_url"', "image_url": write(inner)}


def _audio(audio: chat_pb2.Audio) -> dict[str, bytes]:
    inner = {"data": b'"%b"' % base64.b64encode(audio.data), "format": _DUMP(audio.format or "wav")}
    return {"type": b'"input_audio"', "input_audio": write(inner)}


def _file(file: chat_pb2.File) -> dict[str, bytes]:
    source = file.WhichOneof("source")
    if source is None:
        raise refusal("messages.parts.file", "has neither data nor file_id nor data_url")
    inner = {}
    if source == "file_id":
        inner["file_id"] = _DUMP(file.file_id)
    else:
        inner["file_data"] = _url(file.data, file.media_type or "application/pdf") if source == "data" else _DUMP(file.data_url)
    if file.filename:
        inner["filename"] = _DUMP(file.filename)
    return {"type": b'"file"', "file": write(inner)}


_PARTS: dict[str, Callable[[Any], dict[str, bytes]]] = {
    "text": lambda text: {"type": b'"text"', "text": _DUMP(text)},
    "refusal": lambda text: {"type": b'"refusal"', "refusal": _DUMP(text)},
    "image": _image,
    "audio": _audio,
    "file": _file,
}


def _call(call: chat_pb2.ToolCall) -> bytes:
    members = {"id": _DUMP(call.id)} if call.id else {}
    if call.custom:
        members |= {"type": b'"custom"', "custom": write({"name": _DUMP(call.name), "input": _DUMP(call.arguments)})}
    else:
        members |= {"type": b'"function"', "function": write({"name": _DUMP(call.name), "arguments": _DUMP(call.arguments)})}
    merge(members, call.extra_json, "messages.tool_calls.")
    return write(members)


def _tools(tools: Any) -> bytes:
    if len(tools) > MAX_TOOLS:
        raise refusal("tools", f"are more than {MAX_TOOLS}")
    return write_list(_tool(tool) for tool in tools)


def _tool(tool: chat_pb2.Tool) -> bytes:
    kind = tool.WhichOneof("tool")
    if kind == "other_json":
        return value(tool.other_json, "tools.other_json")
    if kind is None:
        raise refusal("tools", "has an empty tool")
    return write({"type": b'"function"', "function": _described(tool.function, "parameters", "tools.function.")})


def _described(what: chat_pb2.FunctionTool | chat_pb2.JsonSchema, member: str, param: str) -> bytes:
    """Write what a function and a format have alike: a name, a description, a JSON schema as `member`, and how strictly it holds."""
    inner = {"name": _DUMP(what.name)}
    if what.description:
        inner["description"] = _DUMP(what.description)
    if schema := getattr(what, f"{member}_json"):
        inner[member] = value(schema, f"{param}{member}_json")
    if what.HasField("strict"):
        inner["strict"] = _bool(what.strict)
    return write(inner)


def _choice(choice: chat_pb2.ToolChoice) -> bytes:
    kind = choice.WhichOneof("choice")
    if kind == "mode":
        return _DUMP(_enum(CHOICE_MODES, choice.mode, "tool_choice.mode"))
    if kind == "function":
        return write({"type": b'"function"', "function": write({"name": _DUMP(choice.function)})})
    if kind == "other_json":
        return value(choice.other_json, "tool_choice.other_json")
    raise refusal("tool_choice", "is empty")


def _format(form: chat_pb2.ResponseFormat) -> bytes:
    kind = form.WhichOneof("format")
    if kind == "other_json":
        return value(form.other_json, "response_format.other_json")
    if kind in {"text", "json_object"}:
        return write({"type": _DUMP(kind)})
    if kind is None:
        raise refusal("response_format", "is empty")
    return write({"type": b'"json_schema"', "json_schema": _described(form.json_schema, "schema", "response_format.json_schema.")})


def _bool(flag: bool) -> bytes:  # noqa: FBT001 - a value to write, not a switch
    return b"true" if flag else b"false"


def _int(count: int) -> bytes:
    return b"%d" % count


def _bias(bias: Any) -> bytes:
    return write({str(token): number(weight) for token, weight in sorted(bias.items())})


def _labels(labels: Any) -> bytes:
    return write({name: _DUMP(text) for name, text in sorted(labels.items())})


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "model": _DUMP,
    "messages": _messages,
    "stream": _bool,
    "tools": _tools,
    "tool_choice": _choice,
    "response_format": _format,
    "stop": lambda stop: _DUMP(list(stop)),
    "modalities": lambda kinds: _DUMP(list(kinds)),
    "logit_bias": _bias,
    "metadata": _labels,
    **dict.fromkeys(("max_completion_tokens", "max_tokens", "n", "seed", "top_logprobs"), _int),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), proto_text.number),
    **dict.fromkeys(("logprobs", "parallel_tool_calls", "store"), _bool),
    **dict.fromkeys(("reasoning_effort", "service_tier", "verbosity", "user", "safety_identifier", "prompt_cache_key"), _DUMP),
}
"""Fields of a request and how they are written; those that are for proxyd alone are not here."""
