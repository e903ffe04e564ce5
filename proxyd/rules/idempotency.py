"""Once means once: what a second request with the same Idempotency-Key gets.

| what stands under the key      | the same request  | another request |
|--------------------------------|-------------------|-----------------|
| nothing                        | Run               | Run             |
| a failed attempt               | Run, the next one | Conflict        |
| running                        | Join              | Conflict        |
| done                           | Replay            | Conflict        |
| broken after its first byte    | Run or Conflict   | Conflict        |
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.config.schema import OnBroken
from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KEY = 255
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_ESCAPED = re.compile(r'\\(["\\])')
FINGERPRINT_VERSION = b"2"
KEPT_STATUSES = frozenset({400, 404, 413, 422})
"""Refusals that would be the same again. (A 401, 403, 408, 429 or 5xx may be cured by time.)"""


class ClaimState(enum.StrEnum):
    """What has become of a claim."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """No answer, or one that is worth another try: the next request runs anew."""
    BROKEN = "broken"
    """The answer broke off after its first byte."""


@dataclass(frozen=True, slots=True)
class Request:
    """What makes a request the same as another."""

    endpoint: str
    streamed: bool
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands under a key."""

    request: Request
    state: ClaimState
    attempt: int


class Verdict(enum.StrEnum):
    """What the second request gets."""

    RUN = "run"
    JOIN = "join"
    REPLAY = "replay"


def key_of(values: Iterable[bytes]) -> str | None:
    """Read the Idempotency-Key: bare, or quoted as the IETF draft has it. None where there is none.

    Raises ProxyError invalid_request for more than one, an empty, over-long or unprintable key.
    """
    found = list(values)
    if not found:
        return None
    if len(found) > 1:
        raise _bad("was sent more than once")
    text = found[0].decode("latin-1").strip(" \t")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = _ESCAPED.sub(r"\1", text[1:-1])  # RFC 8941 3.3.3
    if not text or len(text) > MAX_KEY:
        raise _bad(f"must have 1 to {MAX_KEY} characters")
    if not _PRINTABLE.fullmatch(text):
        raise _bad("must be printable ASCII")
    return text


def fingerprint(canonical: bytes) -> bytes:
    """Condense a request's canonical form."""
    return hashlib.sha256(FINGERPRINT_VERSION + canonical).digest()


def judge(standing: Standing | None, request: Request, on_broken: OnBroken) -> Verdict:
    """Decide. Raises ProxyError idempotency_key_reused or idempotency_broken."""
    if standing is None:
        return Verdict.RUN
    if standing.request != request:
        raise ProxyError(
            "idempotency_key_reused",
            f"This Idempotency-Key was used for another request: {_difference(standing.request, request)}. Use a new key.",
        )
    if standing.state is ClaimState.FAILED:
        return Verdict.RUN
    if standing.state is ClaimState.BROKEN:
        if on_broken is OnBroken.CONFLICT:
            raise ProxyError(
                "idempotency_broken", "The answer under this Idempotency-Key broke off after its first byte. Use a new key to run it again."
            )
        return Verdict.RUN
    return Verdict.JOIN if standing.state is ClaimState.RUNNING else Verdict.REPLAY


def kept(status: int) -> bool:
    """Whether an answer with this status is final, so that it is kept and sent again."""
    return 200 <= status < 300 or status in KEPT_STATUSES


def _difference(first: Request, second: Request) -> str:
    if first.endpoint != second.endpoint:
        return f"the path was {first.endpoint}"
    if first.streamed != second.streamed:
        return f"`stream` was {str(first.streamed).lower()}"
    return "the body differs"


def _bad(what: str) -> ProxyError:
    return ProxyError("invalid_request", f"The Idempotency-Key {what}.", param="Idempotency-Key")
