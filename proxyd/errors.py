"""Everything that can go wrong in an exchange, in one table: status, type, blame, and whether to try again.

ProxyError
├─ blame CLIENT     the request cannot be served as it is: never retried, never counted against an upstream
├─ blame UPSTREAM   the upstream failed: counted by its breaker, retried where `retry` says so
└─ blame US         proxyd cannot serve now: overloaded, draining, disk, or a bug

`code` is what clients read in `error.code`, what the ledger keeps in `error`, and the key of TABLE. `retry` is the
verdict for both sides: may proxyd try another upstream, and should the client's SDK try again (`x-should-retry`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence


class Blame(enum.StrEnum):
    """Whose fault it is."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    US = "us"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error code means: the HTTP status, OpenAI's `type`, whose fault, and whether trying again can help."""

    status: int
    type: str
    blame: Blame
    retry: bool


_C, _U, _P = Blame.CLIENT, Blame.UPSTREAM, Blame.US

TABLE: dict[str, Verdict] = {
    # the request
    "invalid_request": Verdict(400, "invalid_request_error", _C, False),
    "invalid_json": Verdict(400, "invalid_request_error", _C, False),
    "invalid_api_key": Verdict(401, "invalid_request_error", _C, False),
    "model_not_allowed": Verdict(403, "invalid_request_error", _C, False),
    "model_not_found": Verdict(404, "invalid_request_error", _C, False),
    "not_found": Verdict(404, "invalid_request_error", _C, False),
    "method_not_allowed": Verdict(405, "invalid_request_error", _C, False),
    "not_acceptable": Verdict(406, "invalid_request_error", _C, False),
    "stream_forbidden": Verdict(403, "invalid_request_error", _C, False),
    "idempotency_key_reused": Verdict(409, "invalid_request_error", _C, False),
    "idempotency_broken": Verdict(409, "invalid_request_error", _C, False),
    "conversation_not_found": Verdict(404, "invalid_request_error", _C, False),
    "conversation_busy": Verdict(409, "invalid_request_error", _C, False),
    "stream_conflict": Verdict(409, "invalid_request_error", _C, False),
    "stream_gone": Verdict(410, "invalid_request_error", _C, False),
    "request_timeout": Verdict(408, "invalid_request_error", _C, True),
    "headers_too_large": Verdict(431, "invalid_request_error", _C, False),
    "body_too_large": Verdict(413, "invalid_request_error", _C, False),
    "unsupported_media_type": Verdict(415, "invalid_request_error", _C, False),
    "rate_limit_exceeded": Verdict(429, "requests", _C, True),
    "too_many_connections": Verdict(429, "requests", _C, True),
    "insufficient_quota": Verdict(429, "insufficient_quota", _C, False),
    "forbidden_origin": Verdict(403, "invalid_request_error", _C, False),
    "conflict": Verdict(409, "invalid_request_error", _C, False),
    "misdirected_request": Verdict(421, "invalid_request_error", _C, False),
    "unsupported_http_version": Verdict(505, "invalid_request_error", _C, False),
    "deadline_exceeded": Verdict(504, "server_error", _P, False),
    "client_gone": Verdict(499, "invalid_request_error", _C, False),
    # the upstream
    "upstream_connect": Verdict(502, "upstream_error", _U, True),
    "upstream_connect_timeout": Verdict(504, "upstream_error", _U, True),
    "upstream_dns": Verdict(502, "upstream_error", _U, True),
    "upstream_tls": Verdict(502, "upstream_error", _U, True),
    "upstream_stale": Verdict(502, "upstream_error", _U, True),
    "upstream_timeout": Verdict(504, "upstream_error", _U, True),
    "upstream_cut": Verdict(502, "upstream_error", _U, True),
    "upstream_incomplete": Verdict(502, "upstream_error", _U, True),
    "upstream_bad_response": Verdict(502, "upstream_error", _U, True),
    "upstream_error": Verdict(502, "upstream_error", _U, True),
    "upstream_auth": Verdict(502, "upstream_error", _U, False),
    "upstream_refused": Verdict(400, "upstream_error", _C, False),
    "upstream_overloaded": Verdict(503, "upstream_error", _U, True),
    # proxyd
    "overloaded": Verdict(503, "server_error", _P, True),
    "auth_unavailable": Verdict(503, "server_error", _P, True),
    "draining": Verdict(503, "server_error", _P, True),
    "ledger_unavailable": Verdict(503, "server_error", _P, True),
    "not_implemented": Verdict(501, "server_error", _P, False),
    "internal": Verdict(500, "server_error", _P, True),
}


class ProxyError(Exception):
    """A failure of an exchange. `code` is a key of TABLE; `message` is for the client and must hold no secret.

    `status` overrides the table's for an upstream's own answer (its 429 stays a 429), and for nothing else; `body` is an
    upstream's own OpenAI-shaped error body, relayed as it is; `retry_after` is in seconds; `allow` lists the methods that a
    405 names.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry: bool | None = None,
        retry_after: float | None = None,
        body: bytes | None = None,
        type: str | None = None,  # noqa: A002 - OpenAI's own name for the member
        allow: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        verdict = TABLE[code]
        self.code = code
        self.message = message
        self.param = param
        self.status = verdict.status if status is None else status
        self.type = verdict.type if type is None else type
        self.blame = verdict.blame
        self.retry = verdict.retry if retry is None else retry
        self.retry_after = retry_after
        self.body = body
        self.allow = allow
        self.advice: bool | None = None
        """What an upstream told its client's SDK by `x-should-retry`; it goes on to the client. None: `retry` tells."""
        self.inside = False
        """An upstream said it inside an answer that had begun well."""
        self.upstream_id: str | None = None
        """The upstream's own id of the exchange, where it was one's answer that failed."""

    def document(self) -> bytes:
        """The error as OpenAI shapes it: `{"error": {message, type, param, code}}`."""
        if self.body is not None:
            return self.body
        return orjson.dumps({"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}})
