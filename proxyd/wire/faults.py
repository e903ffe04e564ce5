"""Errors of every dialect, read into ours; and ours, written in the client's protocol."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.errors import TABLE, ProxyError
from proxyd.wire.dialects import decode, is_end
from proxyd.wire.usage import Fault, fault_of

if TYPE_CHECKING:
    from proxyd.wire.sse import Frame

MESSAGE_LIMIT = 2000
"""Characters of an upstream's own words that reach a client."""
QUOTA_CODES = frozenset({"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"})
"""A 429 with one of these is no matter of waiting."""
_KINDS = {429: TABLE["rate_limit_exceeded"].type}
"""The `type` of an error whose upstream gave none, where its class does not tell."""
_TGI_FAILED = "generation"
"""TGI's 424: its model broke while it generated. Elsewhere a 424 is about what the request refers to."""
_CREDENTIAL = frozenset({401, 403, 407})
"""Statuses that are about proxyd's own credential, at the upstream or at a proxy before it."""
_CREDENTIAL_CODES = frozenset({"invalid_api_key", "invalid_authentication", "authentication_error"})


def refused(error: ProxyError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """An error that is the whole answer, as OpenAI says it: status, headers that tell SDKs whether and when to try again, body."""
    told = [(b"Content-Type", b"application/json")]
    if error.advice is not None:
        told.append((b"x-should-retry", b"true" if error.advice else b"false"))
    elif not error.retry:
        told.append((b"x-should-retry", b"false"))
    if error.retry_after is not None:
        told.append((b"retry-after-ms", b"%d" % math.ceil(error.retry_after * 1000)))
    if error.upstream_id is not None:
        told.append((b"Upstream-Request-Id", error.upstream_id.encode()))
    return error.status, told, error.document()


def error_event(error: ProxyError) -> bytes:
    """An error inside an SSE stream. Both official SDKs raise on it; no `[DONE]` may follow."""
    return b"data: " + error.document() + b"\n\n"


def payload(frame: Frame) -> bytes | None:
    """What an event says, None for nothing. An error that is told beside the data (`error:`, `event: error`) is put into it."""
    error = frame.error
    if error is None:
        data = None if frame.data is None else bytes(frame.data)
        if data is None or frame.name != b"error" or is_end(data) or fault_of(decode(data)) is not None:
            return data
        error = data
    try:
        said = orjson.dumps(decode(error) or None)
    except TypeError:  # half a surrogate pair, a number past 64 bits
        said = b"null"
    if said == b"null":
        said = orjson.dumps(bytes(error).decode("utf-8", "replace") or "The upstream told of an error.")
    return b'{"error":%b}' % said


def refusal(status: int, body: bytes, secret: str | None) -> ProxyError:
    """What an upstream's error answer means to the client. `secret`, the upstream's credential, is cut out wherever it stands.

    An upstream's 401 or 403 is about proxyd's own credential (and quotes part of it): the client gets a 502 that says so.
    """
    if status in _CREDENTIAL:
        return _auth()
    if secret:
        body = body.replace(secret.encode(), b"***")
    said = _read(body)
    message = said.get("message") or f"The upstream answered with status {status} and no message."
    if status == 429 and (said.get("code") in QUOTA_CODES or said.get("type") in QUOTA_CODES):
        return _own("upstream_error", message, status, said, body, retry=False)
    if status in {408, 409, 425, 429} or status >= 500 or (status == 424 and said.get("type") == _TGI_FAILED):
        code = "upstream_overloaded" if status in {429, 503, 529} else "upstream_error"
        return _own(code, message, status, said, body, retry=True)
    return _own("upstream_refused", message, status, said, body, retry=False)


def _auth() -> ProxyError:
    return ProxyError("upstream_auth", "The upstream refused proxyd's credential. Whoever runs this proxyd must look into it.")


def refuses_usage(error: ProxyError) -> bool:
    """Whether an upstream refuses a request for its `stream_options` (wire facts 1.8: older ones do not know the member)."""
    named = any(word in error.document() for word in (b"stream_options", b"include_usage"))
    return named and error.code == "upstream_refused" and error.status in {400, 422}


def kept_refusal(status: int, body: bytes) -> ProxyError:
    """The error that was kept under a key, and is told again: its document, whose words were an upstream's or ours."""
    said = _read(body)
    return ProxyError("upstream_refused", str(said.get("message") or "")[:MESSAGE_LIMIT], status=status, retry=False, body=body)


def in_band(fault: Fault | None, secret: str | None) -> ProxyError:
    """What an error said inside a 200 means, before anything of it reached the client."""
    fault = fault or Fault()
    said = {"type": fault.type or None, "code": fault.code or None}
    message = fault.message or "The upstream's answer began with an error."
    if secret:
        message = message.replace(secret, "***")
    # vLLM, llama.cpp and TGI put an HTTP status there
    status = int(fault.code) if fault.code.isascii() and fault.code.isdigit() and len(fault.code) == 3 else None
    if status in _CREDENTIAL or _CREDENTIAL_CODES & {fault.code, fault.type}:
        error = _auth()
    elif status is not None and 400 <= status < 500 and status not in {408, 409, 429}:
        error = _own("upstream_refused", message, status, said, b"", retry=False)
    else:
        error = _own("upstream_error", message, 429 if status == 429 else 502, said, b"", retry=True)
    error.inside = True
    return error


def _own(code: str, message: str, status: int, said: dict[str, Any], body: bytes, *, retry: bool) -> ProxyError:
    """An error with the upstream's words, in OpenAI's shape; its body as it is, where it has that shape already."""
    kind = said.get("type")
    if not body or not said.get("shaped"):
        body = orjson.dumps(
            {
                "error": {
                    "message": message[:MESSAGE_LIMIT],
                    "type": kind
                    if isinstance(kind, str)
                    else _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error"),
                    "param": said.get("param") if isinstance(said.get("param"), str) else None,
                    "code": None if said.get("code") is None else str(said["code"]),
                }
            }
        )
    return ProxyError(code, message[:MESSAGE_LIMIT], status=status, retry=retry, body=body)


def _read(body: bytes) -> dict[str, Any]:
    """The facts of an error body: message, type, param, code; `shaped` if it is OpenAI's shape to the letter."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"message": _plain(body)}
    if isinstance(document, list) and document:  # Gemini's OpenAI endpoint
        document = document[0]
    if not isinstance(document, dict):
        return {"message": _plain(body)}
    error = document.get("error", document.get("detail", document))
    if isinstance(error, str):  # Ollama, TGI
        return {"message": error, "type": document.get("error_type")}
    if isinstance(error, list):  # FastAPI
        return {"message": "; ".join(_detail(item) for item in error[:8])}
    if not isinstance(error, dict):
        return {"message": _plain(body)}
    facts = {name: error.get(name) for name in ("type", "param", "code", "http_status_code")}
    message = error.get("message")
    facts["message"] = message if isinstance(message, str) else _plain(body)
    shaped = "error" in document and all(
        name in error and isinstance(error[name], str | None) for name in ("message", "type", "param", "code")
    )
    return facts | {"shaped": shaped and isinstance(message, str)}


def _detail(item: Any) -> str:
    if isinstance(item, dict):
        where = ".".join(str(part) for part in item.get("loc", ())) if isinstance(item.get("loc"), list) else ""
        return f"{where}: {item.get('msg', '')}" if where else str(item.get("msg", ""))
    return str(item)


def _plain(body: bytes) -> str:
    """Words for a body that is no error document: short text as it is, markup not at all."""
    text = body.decode("utf-8", "replace").strip()
    return "" if text.startswith("<") else "".join(c if c.isprintable() else " " for c in text)[:MESSAGE_LIMIT]
