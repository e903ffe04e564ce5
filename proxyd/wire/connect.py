"""Connect and gRPC-Web: the same messages in their envelopes, with their errors, ends and time limits. Bytes only.

Sources: https://connectrpc.com/docs/protocol/ and
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md (trailers in the body, flag 0x80).
"""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import orjson
from google.protobuf import json_format
from google.protobuf.message import Message

from proxyd.errors import ProxyError
from proxyd.wire.proto_chunk import field
from proxyd.wire.proto_error import error_message
from proxyd.wire.proto_frames import MAX_FRAME, varint

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPRESSED = 0x01
END = 0x02
"""Flag of Connect's last envelope, which holds JSON."""
TRAILERS = 0x80
"""Flag of gRPC-Web's last envelope, which holds trailers as header lines."""
_DETAIL = "proxyd.v1.Error"
_PADDED = re.compile(rb"[^=]*=*")
MAX_PADS = 8192
"""Of a body that is text; each flush of its writer leaves two at most."""
MAX_JSON = 4 << 20
"""Bytes of a message that comes as JSON: protobuf's own reader of it takes 30 ns for a character."""
MAX_VALUES = 20_000
"""In such a message: some 50 ms."""


@dataclass(frozen=True, slots=True)
class Code:
    """An RPC error code: Connect's name, gRPC's number, and the HTTP status of a unary Connect answer."""

    name: str
    number: int
    status: int


# https://connectrpc.com/docs/protocol/#error-codes
_CANCELED = Code("canceled", 1, 499)
_INVALID = Code("invalid_argument", 3, 400)
_DEADLINE = Code("deadline_exceeded", 4, 504)
_EXHAUSTED = Code("resource_exhausted", 8, 429)
_UNIMPLEMENTED = Code("unimplemented", 12, 501)
_INTERNAL = Code("internal", 13, 500)
_UNAVAILABLE = Code("unavailable", 14, 503)
CODES: dict[int, Code] = {
    400: _INVALID,
    401: Code("unauthenticated", 16, 401),
    403: Code("permission_denied", 7, 403),
    404: Code("not_found", 5, 404),
    408: _DEADLINE,
    409: Code("aborted", 10, 409),
    413: _EXHAUSTED,
    415: _UNIMPLEMENTED,
    429: _EXHAUSTED,
    499: _CANCELED,
    500: _INTERNAL,
    501: _UNIMPLEMENTED,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _DEADLINE,
}
"""By the HTTP status that the error has on the plain routes; others by their class, see `code_of`."""


def code_of(error: ProxyError) -> Code:
    """Give the RPC code of an error."""
    return CODES.get(error.status) or (_INVALID if error.status < 500 else _INTERNAL)


def envelope(message: bytes, flags: int = 0) -> bytes:
    """Put a message into Connect's and gRPC's envelope: one byte of flags, four of length, most significant first."""
    return bytes((flags,)) + len(message).to_bytes(4, "big") + message


class EnvelopeReader:
    """Takes enveloped bytes as they arrive, in pieces of any size, and gives (flags, message)."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Add bytes; returns what is whole now, decompressed where its flag says gzip.

        Raises ProxyError: `body_too_large` for a length over the limit, before anything of that length is kept, or
        when it decompresses to more; `invalid_request` for gzip that is none.
        """
        buffer = self._buffer
        buffer += data
        messages = []
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if size > self._limit:
                raise _too_large(self._limit)
            if len(buffer) - 5 < size:
                break
            flags, message = buffer[0], bytes(buffer[5 : 5 + size])
            del buffer[: 5 + size]
            if flags & COMPRESSED:
                flags, message = flags & ~COMPRESSED, gunzip(message, self._limit)
            messages.append((flags, message))
        return messages

    @property
    def broken(self) -> bool:
        """Whether the stream, if it ended here, ended inside an envelope."""
        return bool(self._buffer)


def check_coding(*named: str | None) -> None:
    """Check what the headers say of how messages are compressed. Raises ProxyError `unsupported_media_type`."""
    if any(name not in {None, "identity", "gzip"} for name in named):
        raise ProxyError("unsupported_media_type", "Messages may come compressed as gzip, or as they are (identity).")


def request_message(body: bytes, limit: int) -> bytes:
    """Take the one message out of the body of a server-streaming or gRPC-Web call.

    Looks at no second one: a body can hold millions, or as many bombs. Raises ProxyError `invalid_request` or `body_too_large`.
    """
    size = int.from_bytes(body[1:5], "big")
    if len(body) >= 5 and size > limit:
        raise _too_large(limit)
    if len(body) < 5 or len(body) - 5 != size or body[0] & (END | TRAILERS):
        raise ProxyError("invalid_request", "The body must be exactly one enveloped message.")
    return gunzip(body[5:], limit) if body[0] & COMPRESSED else body[5:]


def from_text(body: bytes) -> bytes:
    """Read a body of `application/grpc-web-text`: base64, whose padding may stand wherever its writer has flushed.

    Raises ProxyError `invalid_request`.
    """
    try:
        if body.count(b"=") <= MAX_PADS:
            return b"".join(base64.b64decode(piece, validate=True) for piece in _PADDED.findall(body))
    except ValueError:
        pass  # said below
    raise ProxyError("invalid_request", "The body is not base64, as application/grpc-web-text has it.")


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress at most `limit` bytes. Raises ProxyError `body_too_large` or `invalid_request`."""
    decoder = zlib.decompressobj(31)
    try:
        out = decoder.decompress(data, limit + 1)
    except zlib.error:
        raise ProxyError("invalid_request", "A message says that it is gzip and is not.") from None
    if len(out) > limit:
        raise _too_large(limit)
    if not decoder.eof:
        raise ProxyError("invalid_request", "A gzip'd message is cut off.")
    return out


def _too_large(limit: int) -> ProxyError:
    return ProxyError("body_too_large", f"A message is longer than {limit} bytes.")


def error_body(error: ProxyError) -> tuple[int, bytes]:
    """Write a unary Connect error: its HTTP status and its body, `application/json`."""
    return code_of(error).status, orjson.dumps(_error(error))


def _error(error: ProxyError) -> dict[str, object]:
    detail = base64.b64encode(error_message(error, with_status=True).SerializeToString()).rstrip(b"=").decode()  # Connect: without padding
    return {"code": code_of(error).name, "message": error.message, "details": [{"type": _DETAIL, "value": detail}]}


def end_of_stream(error: ProxyError | None = None) -> bytes:
    """Write the envelope that ends a Connect stream; the HTTP status of a stream is always 200."""
    return envelope(orjson.dumps({"error": _error(error)} if error is not None else {}), END)


def web_trailers(error: ProxyError | None = None) -> bytes:
    """Write the envelope that ends a gRPC-Web answer, unary or streamed."""
    if error is None:
        return envelope(b"grpc-status:0\r\n", TRAILERS)
    number, detail = code_of(error).number, error_message(error, with_status=True).SerializeToString()
    # google.rpc.Status {code = 1, message = 2, details = 3: Any {type_url = 1, value = 2}}
    wrapped = field(1, f"type.googleapis.com/{_DETAIL}".encode()) + field(2, detail)
    status = b"\x08" + varint(number) + field(2, error.message.encode()) + field(3, wrapped)
    # gRPC percent-encodes all but printable ASCII, and "%" itself
    message = quote(error.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    lines = (
        f"grpc-status:{number}\r\ngrpc-message:{message}\r\ngrpc-status-details-bin:{base64.b64encode(status).rstrip(b'=').decode()}\r\n"
    )
    return envelope(lines.encode(), TRAILERS)


def get_message(query: Mapping[str, str], limit: int) -> tuple[str, bytes]:
    """Read the query of a Connect GET: the encoding (`proto` or `json`) and the message.

    Raises ProxyError `invalid_request` or `body_too_large`.
    """
    encoding, text = query.get("encoding", ""), query.get("message")
    if query.get("connect", "v1") != "v1" or encoding not in {"proto", "json"} or text is None:
        raise ProxyError("invalid_request", "A Connect GET needs encoding=proto or json, message, and no connect other than v1.")
    try:
        padded = text + "=" * (-len(text) % 4)
        message = base64.b64decode(padded, b"-_", validate=True) if query.get("base64") == "1" else text.encode()
    except ValueError:
        raise ProxyError("invalid_request", "The message is not base64url.", param="message") from None
    compression = query.get("compression", "identity")
    if compression not in {"identity", "gzip", ""}:
        raise ProxyError("invalid_request", "The compression must be gzip or identity.", param="compression")
    message = gunzip(message, limit) if compression == "gzip" else message
    if len(message) > limit:
        raise _too_large(limit)
    return encoding, message


_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def timeout(connect_ms: str | None, grpc: str | None) -> float | None:
    """Read `Connect-Timeout-Ms` or `grpc-timeout`: seconds, None for no limit. Raises ProxyError `invalid_request`."""
    value, unit = (connect_ms, "m") if connect_ms is not None else (grpc[:-1], grpc[-1:]) if grpc is not None else (None, "")
    if value is None:
        return None
    digits = 10 if connect_ms is not None else 8
    if not (value.isascii() and value.isdigit() and len(value) <= digits) or unit not in _UNITS:
        raise ProxyError("invalid_request", "The timeout header is not what the protocol allows.")
    return int(value) * _UNITS[unit]


M = TypeVar("M", bound=Message)


def from_json(kind: type[M], data: bytes) -> M:
    """Read a message in protobuf's JSON form (Connect's `application/json`). Raises ProxyError `invalid_request`, `body_too_large`."""
    message = kind()
    if len(data) > MAX_JSON:
        raise ProxyError("body_too_large", f"A message in JSON has at most {MAX_JSON} bytes here; send it as application/proto.")
    if _values(data) > MAX_VALUES:
        raise ProxyError("invalid_request", f"The body has more than {MAX_VALUES} values; send it as application/proto.")
    try:
        document = orjson.loads(data)
        if isinstance(document, dict):
            json_format.ParseDict(document, message, ignore_unknown_fields=True)
            return message
    except (json_format.ParseError, ValueError, RecursionError, TypeError, AttributeError):
        pass  # said below, in our words: a parser's own quote the client's text
    raise ProxyError("invalid_request", f"The body is not a valid {kind.DESCRIPTOR.full_name} in JSON.")


def _values(data: bytes) -> int:
    """At least how many values a JSON text has, without building one: commas and brackets that stand in no string."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = plain.count(b'"')
    if quotes > 4 * MAX_VALUES:
        return quotes // 4
    outside = b"".join(plain.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"{") + outside.count(b"[")


def to_json(message: Message) -> bytes:
    """Write a message in protobuf's JSON form, on one line."""
    text: str = json_format.MessageToJson(message, indent=None, ensure_ascii=False)
    return text.encode()
