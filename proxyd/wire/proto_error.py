"""`proxyd.v1.Error`: an error as the body of an answer, as the last frame of a stream, and as a Connect detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_scan import parse

if TYPE_CHECKING:
    from proxyd.errors import ProxyError


def error_message(error: ProxyError, *, with_status: bool = False) -> chat_pb2.Error:
    """Write an error; `with_status` inside streams and Connect errors: elsewhere the answer itself has the HTTP status.

    An upstream's own error body keeps its words and codes: they are read from `error.document()`.
    """
    said = _said(error.document())
    message = chat_pb2.Error(
        message=_word(said.get("message")) or error.message,
        code=_word(said.get("code")) or error.code,
        type=_word(said.get("type")) or error.type,
        param=_word(said.get("param")) or error.param or "",
    )
    if with_status:
        message.status = error.status
    if error.retry_after is not None:
        message.retry_after_ms = min(max(round(error.retry_after * 1000), 0), 2**32 - 1)
    return message


def error_body(error: ProxyError) -> bytes:
    """Write the body of an answer outside 2xx, `application/protobuf`."""
    return error_message(error).SerializeToString()


def error_json(data: bytes | chat_pb2.Error) -> bytes:
    """Write an `Error` as OpenAI's JSON error document. Raises ProxyError `invalid_request` if it is none."""
    message = parse(chat_pb2.Error, data) if isinstance(data, bytes) else data
    return orjson.dumps(
        {"error": {"message": message.message, "type": message.type or None, "param": message.param or None, "code": message.code or None}}
    )


def _said(document: bytes) -> dict[str, Any]:
    try:
        read = orjson.loads(document)
    except orjson.JSONDecodeError:
        return {}
    said = read.get("error") if isinstance(read, dict) else None
    return said if isinstance(said, dict) else {}


def _word(item: object) -> str:
    return "" if item is None or isinstance(item, (dict, list)) else str(item)[:4000]
