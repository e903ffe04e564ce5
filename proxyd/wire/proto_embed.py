"""Embeddings and models in protobuf: requests into OpenAI's JSON, answers out of it, vectors as numbers of 4, 2 or 1 byte."""

from __future__ import annotations

import array
import base64
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_message import Misfit, as_text, open_object, plain
from proxyd.wire.proto_reply import fill_usage, usage_json
from proxyd.wire.proto_scan import parse
from proxyd.wire.proto_text import merge, refusal, single, write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_INPUTS = 2048
"""Inputs of one request, as OpenAI has it."""
MAX_PAGE = 1000
FLOAT32, FLOAT16, INT8 = 1, 2, 3


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """An embeddings request as protobuf said it."""

    body: bytes
    """OpenAI's JSON, ready to be parsed and routed."""
    encoding: int
    """How the answer's vectors are to be sent: FLOAT32, FLOAT16 or INT8; give it to `embeddings`."""


def embeddings_request(data: bytes | chat_pb2.CreateEmbeddingsRequest) -> EmbeddingsRequest:
    """Read a `CreateEmbeddingsRequest`. Raises ProxyError `invalid_request`."""
    message = parse(chat_pb2.CreateEmbeddingsRequest, data) if isinstance(data, bytes) else data
    members: dict[str, bytes] = {}
    if message.model:
        members["model"] = orjson.dumps(message.model)
    if message.input and message.token_input:
        raise refusal("input", "and token_input are both given")
    if len(message.input) > MAX_INPUTS or len(message.token_input) > MAX_INPUTS:
        raise refusal("input", f"has more than {MAX_INPUTS} items")
    if message.input:
        members["input"] = orjson.dumps(list(message.input))
    elif message.token_input:
        members["input"] = orjson.dumps([list(tokens.ids) for tokens in message.token_input])
    if message.dimensions:
        members["dimensions"] = b"%d" % message.dimensions
    if message.user:
        members["user"] = orjson.dumps(message.user)
    merge(members, message.extra_json, "")
    if message.encoding not in {0, FLOAT32, FLOAT16, INT8}:
        raise refusal("encoding", f"has the unknown value {message.encoding}")
    return EmbeddingsRequest(write(members), message.encoding or FLOAT32)


def embeddings_message(body: bytes) -> chat_pb2.CreateEmbeddingsRequest:
    """Write OpenAI's JSON request as protobuf, for clients. Raises ProxyError `invalid_json` if it is not an object."""
    message = chat_pb2.CreateEmbeddingsRequest()
    try:
        members = open_object(body)
    except Misfit:
        raise ProxyError("invalid_json", "The body is not a JSON object.") from None
    given = plain(members.get("input", b"null"))
    items = given if isinstance(given, list) else [given]
    if items and all(isinstance(item, str) for item in items):
        message.input.extend(items)
        del members["input"]
    elif items and all(_ids(item) for item in items):
        for item in items:
            message.token_input.add(ids=item)
        del members["input"]
    elif _ids(items):
        message.token_input.add(ids=items)
        del members["input"]
    for name, kind in (("model", str), ("user", str), ("dimensions", int)):
        value = plain(members.get(name, b"null"))
        if type(value) is kind and value and not (isinstance(value, int) and not 0 < value < 2**32):
            setattr(message, name, value)
            del members[name]
    members.pop("encoding_format", None)
    if members:
        message.extra_json = as_text(write(members))
    return message


def _ids(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(type(token) is int and 0 <= token < 2**32 for token in item)


def embeddings(body: bytes, encoding: int = FLOAT32) -> bytes:
    """Write an upstream's JSON answer as a `CreateEmbeddingsResponse`; its vectors may be lists or base64.

    Raises ProxyError `upstream_bad_response` if it is not an embeddings answer.
    """
    message = chat_pb2.CreateEmbeddingsResponse()
    try:
        body.decode()  # see proto_reply.completion
        members = open_object(body)
        data = plain(members.pop("data", b"null"))
        for place, entry in enumerate(data):
            values = _vector(entry["embedding"])
            one = message.data.add()
            index = entry.get("index", place)
            if index != place:
                one.index = index
            _pack(one, values, encoding)
        report = plain(members.pop("usage", b"null"))
        model = plain(members.pop("model", b'""'))
    except (Misfit, KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError):
        raise ProxyError("upstream_bad_response", "The upstream's answer is not a list of embeddings.") from None
    members.pop("object", None)
    message.model = model if isinstance(model, str) else ""
    fill_usage(message.usage, report, full=False)
    if members:
        message.extra_json = as_text(write(members))
    return message.SerializeToString()


def _vector(item: Any) -> Sequence[float]:
    if isinstance(item, str):  # encoding_format=base64: float32, little-endian
        numbers = array.array("f")
        numbers.frombytes(base64.b64decode(item, validate=True))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers
    if not isinstance(item, list):
        raise Misfit
    return item


def _pack(one: chat_pb2.Embedding, values: Sequence[float], encoding: int) -> None:
    if encoding == FLOAT16:
        one.packed = struct.pack(f"<{len(values)}e", *values)
    elif encoding == INT8:
        # symmetric: the largest magnitude becomes 127, so that 0 stays 0
        scale = max((abs(value) for value in values), default=0.0) / 127
        one.scale = scale
        step = one.scale or 1.0  # as the float32 that the client will multiply with
        one.packed = struct.pack(f"<{len(values)}b", *(max(-127, min(127, round(value / step))) for value in values))
    else:
        one.values.extend(values)


def vector(one: chat_pb2.Embedding, encoding: int = FLOAT32) -> list[float]:
    """Read a vector in the encoding that was asked for. Raises ProxyError `invalid_request` if its bytes do not fit it."""
    try:
        if encoding == FLOAT16:
            return list(struct.unpack(f"<{len(one.packed) // 2}e", one.packed))
        if encoding == INT8:
            return [number * one.scale for number in struct.unpack(f"<{len(one.packed)}b", one.packed)]
    except struct.error:
        raise ProxyError("invalid_request", "A packed vector has half a number.") from None
    return list(one.values)


def embeddings_json(data: bytes, encoding: int = FLOAT32) -> bytes:
    """Write a `CreateEmbeddingsResponse` as OpenAI's JSON. Raises ProxyError `invalid_request`."""
    message = parse(chat_pb2.CreateEmbeddingsResponse, data)
    entries = [
        {
            "object": "embedding",
            "index": one.index if one.HasField("index") else place,
            "embedding": [single(number) for number in vector(one, encoding)],
        }
        for place, one in enumerate(message.data)
    ]
    usage = {name: count for name, count in usage_json(message.usage).items() if name in {"prompt_tokens", "total_tokens"}}
    members = {"object": b'"list"', "data": orjson.dumps(entries), "model": orjson.dumps(message.model), "usage": orjson.dumps(usage)}
    merge(members, message.extra_json, "")
    return write(members)


def models(entries: Iterable[dict[str, Any]], request: bytes | chat_pb2.ListModelsRequest = b"") -> bytes:
    """Write the page of models that a `ListModelsRequest` asks for, out of OpenAI's model objects.

    The page token is the id of the last model of the page before, so that models may come and go between pages; the
    entries are sorted by id for it. Raises ProxyError `invalid_request`.
    """
    asked = parse(chat_pb2.ListModelsRequest, request) if isinstance(request, bytes) else request
    if asked.page_size < 0:
        raise refusal("page_size", "is negative")
    everything = sorted(entries, key=lambda entry: str(entry["id"]))
    rest = [entry for entry in everything if str(entry["id"]) > asked.page_token]
    page = rest[: min(asked.page_size, MAX_PAGE)] if asked.page_size else rest
    answer = chat_pb2.ListModelsResponse()
    for entry in page:
        created = entry.get("created")
        extra = {name: value for name, value in entry.items() if name not in {"id", "created", "owned_by", "object"} and value is not None}
        answer.models.add(
            id=str(entry["id"]),
            created=created if type(created) is int else 0,
            owned_by=str(entry.get("owned_by") or ""),
            extra_json=orjson.dumps(extra).decode() if extra else "",
        )
    if len(page) < len(rest):
        answer.next_page_token = page[-1]["id"]
    return answer.SerializeToString()
