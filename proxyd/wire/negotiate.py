"""Which form a request comes in and which one its answer leaves in, by Content-Type, Accept and path (RFC 9110 12.5.1).

JSON and Server-Sent Events are one form here: whether an answer is streamed is said by the request's body.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxyd.errors import ProxyError

PROTOBUF = b"application/protobuf"
DELIMITED = b"application/protobuf; delimited=true"
"""A stream: each message behind its length as a varint."""

_PROTOBUF = frozenset({"application/protobuf", "application/x-protobuf", "application/x-protobuffer"})
_TEXT = frozenset({"application/json", "text/event-stream"})
_NAMES = "application/json, text/event-stream or application/protobuf"
_ELSEWHERE = " Protobuf is spoken at /v1/chat/completions, /v1/embeddings and /v1/models."


@dataclass(frozen=True, slots=True)
class Forms:
    """What was negotiated: True for protobuf, False for JSON and SSE."""

    asked: bool = False
    answered: bool = False


def negotiate(content_type: str | None, accept: str | None, *, speaks_protobuf: bool, named_pb: bool = False) -> Forms:
    """Agree on the forms of a request with a body and its answer; `named_pb`: its path ends in `.pb`.

    Raises ProxyError unsupported_media_type, not_acceptable.
    """
    asked = _asked(content_type, speaks_protobuf=speaks_protobuf, named_pb=named_pb)
    return Forms(asked, answer(accept, speaks_protobuf=speaks_protobuf, otherwise=asked or named_pb))


def answer(accept: str | None, *, speaks_protobuf: bool, otherwise: bool = False) -> bool:
    """Choose the answer's form: True for protobuf; `otherwise` is what it is where Accept leaves it open.

    Raises ProxyError not_acceptable where Accept names none that there is.
    """
    if accept is None or not accept.strip():
        return otherwise
    if accept in _TEXT:  # as the SDKs say it
        return False
    ranges = _ranges(accept)
    text = max(_quality(ranges, kind) for kind in _TEXT)
    protobuf = max(_quality(ranges, kind) for kind in _PROTOBUF) if speaks_protobuf else 0.0
    if text == protobuf == 0.0:
        told = _NAMES if speaks_protobuf else "application/json or text/event-stream"
        hint = "" if speaks_protobuf or "protobuf" not in accept else _ELSEWHERE
        raise ProxyError("not_acceptable", f"The answer can be {told}; the Accept header allows none of them.{hint}")
    return otherwise if text == protobuf else protobuf > text


def _asked(content_type: str | None, *, speaks_protobuf: bool, named_pb: bool) -> bool:
    if content_type is None:
        return named_pb
    media = content_type.partition(";")[0].strip().lower()
    if speaks_protobuf and media in _PROTOBUF:
        return True
    if media == "application/json" or media.endswith("+json"):
        return False
    # RFC 9110 15.5.16. A form of another site is refused so as well.
    kinds = "`Content-Type: application/json`" + (" or `application/protobuf`" if speaks_protobuf else "")
    what = "JSON or protobuf" if speaks_protobuf else "JSON"
    hint = "" if speaks_protobuf or "protobuf" not in media else _ELSEWHERE
    raise ProxyError("unsupported_media_type", f"The request body must be {what}: send it with {kinds}.{hint}")


def _ranges(accept: str) -> list[tuple[str, float]]:
    """The media ranges and their quality. What cannot be read weighs 1, as most servers have it."""
    found = []
    for item in accept.split(",")[:64]:
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((text[2:].strip() for text in parameters if text.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 1.0
        found.append((media, weight if 0.0 <= weight <= 1.0 else 1.0))
    return found


def _quality(ranges: list[tuple[str, float]], kind: str) -> float:
    """The quality of a media type: the most specific range that fits it counts."""
    for range_ in (kind, kind.partition("/")[0] + "/*", "*/*"):
        weights = [weight for media, weight in ranges if media == range_]
        if weights:
            return max(weights)
    return 0.0
