"""Which headers pass, both ways: allow-lists, each value checked anew.

Law: nothing passes because nobody thought of it. A name that is not in a table here stays on its side, its twin with
underscores too (CGI-style servers take `x_api_key` for `x-api-key`), and so does what `Connection` names (RFC 9110
7.6.1). Host, Content-Length and the credential of the upstream are added by the one who sends.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar

from proxyd import __version__
from proxyd.errors import ProxyError

Headers = Iterable[tuple[bytes, bytes]]
T = TypeVar("T")

MAX_VALUE = 1024
"""Bytes of a value that is passed on; a longer one is left out."""
MAX_ID = 256
"""Bytes of an upstream's id of an exchange; a longer one is left out."""
MAX_STAINLESS = 32
"""How many x-stainless-* fields of an SDK are passed on."""
MAX_RETRY_AFTER = 3600.0
"""Seconds; an upstream that asks for more is asked again after an hour."""

_TO_UPSTREAM = {
    b"user-agent": b"User-Agent",
    b"openai-beta": b"OpenAI-Beta",
    b"anthropic-version": b"Anthropic-Version",
    b"anthropic-beta": b"Anthropic-Beta",
    b"traceparent": b"traceparent",
    b"tracestate": b"tracestate",
}
_TO_CLIENT = {
    b"content-type": b"Content-Type",
    b"openai-processing-ms": b"openai-processing-ms",
    b"openai-version": b"openai-version",
    b"openai-model": b"openai-model",
}
# What upstreams call their own id of the exchange: OpenAI and most, Anthropic, Azure; the first that is there counts.
_REQUEST_ID = (b"x-request-id", b"request-id", b"apim-request-id")
_WANTED = frozenset({*_TO_CLIENT, *_REQUEST_ID})
_LISTS = frozenset({b"openai-beta", b"anthropic-beta", b"tracestate"})
_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})

_AGENT = f"proxyd/{__version__}".encode()
_STAINLESS = re.compile(rb"x-stainless-[a-z0-9][a-z0-9-]{0,63}")
_VISIBLE = bytes([9, *range(32, 127)])
# W3C Trace Context 3.2.2; version ff and ids of zeros alone are invalid. A higher version may have more after a dash.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]*)?")
# RFC 9110 8.3.1: type/subtype and parameters, tokens or quoted strings.
# A blank has one way to match only, so that no value makes this slow.
_MEDIA_TYPE = re.compile(
    rb"[\w!#$&^.+-]+/[\w!#$&^.+-]+"
    rb"(?:[ \t]*;(?:[ \t]*[\w!#$%&'*+.^`|~-]+=(?:[\w!#$%&'*+.^`|~-]+|\"[\x20\x21\x23-\x5b\x5d-\x7e]*\"))?)*",
    re.ASCII,
)
_DECIMAL = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)


class Fields(tuple[tuple[bytes, bytes], ...]):  # noqa: SLOT001 - the memo needs a place
    """The headers of one message, or of many that have the same ones: what is read out of them is remembered here.

    Nearly all of a gateway's requests come from a few clients that repeat their headers to the letter; reading them anew
    each time cost more than routing the request.
    """

    memo: dict[str, Any]

    def __new__(cls, fields: Iterable[tuple[bytes, bytes]], memo: dict[str, Any] | None = None) -> Self:
        """Take the fields as they are; `memo` is that of other Fields, which differ in nothing that is remembered."""
        made = super().__new__(cls, fields)
        made.memo = {} if memo is None else memo
        return made


def _remembered(read: Callable[[Headers], T]) -> Callable[[Headers], T]:
    """Remember what was read out of Fields; other headers are read each time."""
    name = read.__name__

    @functools.wraps(read)
    def reader(headers: Headers) -> T:
        memo = getattr(headers, "memo", None)
        if memo is None:
            return read(headers)
        found: T
        try:
            found = memo[name]
        except KeyError:
            found = memo[name] = read(headers)
        return found

    return reader


def first(headers: Headers, wanted: bytes) -> str | None:
    """Find the first header of a name, which is given in lower case."""
    return next((value.decode("latin-1") for name, value in headers if name.lower() == wanted), None)


def to_upstream(client: Headers, *, stream: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Choose what an upstream learns of the client's headers, beside our own Content-Type, Accept and Accept-Encoding.

    Accept is ours, as the answer is for us: the client may have asked for protobuf, and SDKs send `application/json` for
    streams too. `identity`, since a compressed stream delays events and hides their usage. The caller adds Host,
    Content-Length and the upstream's credential.
    """
    accept = b"text/event-stream, application/json" if stream else b"application/json"
    return ((b"Content-Type", b"application/json"), (b"Accept", accept), (b"Accept-Encoding", b"identity"), *_forwarded(client))


@_remembered
def _forwarded(client: Headers) -> tuple[tuple[bytes, bytes], ...]:
    chosen: dict[bytes, bytes] = {}
    stainless = 0
    for name, values in _passing(client, _TO_UPSTREAM, b"x-stainless-").items():
        if name in _LISTS:
            value = b", ".join(values)
        elif name == b"traceparent" and len(values) > 1:
            continue
        else:
            value = values[0]
        if not _fit(value):
            continue
        if name in _TO_UPSTREAM:
            chosen[_TO_UPSTREAM[name]] = value
        elif stainless < MAX_STAINLESS and _STAINLESS.fullmatch(name):
            stainless += 1
            chosen[name] = value
    # Without a parent the state means nothing (W3C Trace Context 3.3).
    if not _TRACEPARENT.fullmatch(chosen.get(b"traceparent", b"")):
        chosen.pop(b"traceparent", None)
        chosen.pop(b"tracestate", None)
    chosen.setdefault(b"User-Agent", _AGENT)
    return tuple(chosen.items())


@_remembered
def to_client(upstream: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """Choose what the client learns of an upstream's headers; the upstream's id becomes `Upstream-Request-Id`.

    Its rate limits are not told, as they are those of an account that callers share; `Retry-After` goes by way of
    `parse_retry_after`. Framing, Date, X-Request-Id and the rest are the sender's own.
    """
    passing = _from_upstream(upstream)
    chosen = []
    for name, canonical in _TO_CLIENT.items():
        value = passing.get(name, (b"",))[0]
        if _fit(value) and (name != b"content-type" or _MEDIA_TYPE.fullmatch(value)):
            chosen.append((canonical, value))
    if own_id := _request_id(passing):
        chosen.append((b"Upstream-Request-Id", own_id))
    return tuple(chosen)


def upstream_request_id(upstream: Headers) -> str | None:
    """Find the upstream's own id of the exchange, for the ledger; None where it sent none that is fit to be kept."""
    own_id = _request_id(_from_upstream(upstream))
    return None if own_id is None else own_id.decode("ascii")


def retry_after(upstream: Headers, now: float) -> float | None:
    """Say how many seconds an upstream's answer asks us to wait, by its headers; see `parse_retry_after`."""
    told = {name.lower(): value for name, value in reversed(list(upstream))}  # the first of a name counts
    return parse_retry_after(told.get(b"retry-after"), told.get(b"retry-after-ms"), now)


def should_retry(upstream: Headers) -> bool | None:
    """Say what an upstream tells SDKs about trying again (`x-should-retry`); None where it says nothing, or something else."""
    return {"true": True, "false": False}.get((first(upstream, b"x-should-retry") or "").strip())


def parse_retry_after(retry_after: bytes | None, retry_after_ms: bytes | None, now: float) -> float | None:
    """Say how many seconds an upstream asks us to wait; None where it does not say, or says nonsense.

    In the SDKs' order: `retry-after-ms`, then `Retry-After` as (fractional) seconds, then as an HTTP date (RFC 9110
    10.2.3). `now` is wall time in seconds since the epoch. The result is in 0 … MAX_RETRY_AFTER.
    """
    for value, unit in ((retry_after_ms, 0.001), (retry_after, 1.0)):
        text = _text(value)
        if _DECIMAL.fullmatch(text):
            return min(float(text) * unit, MAX_RETRY_AFTER)
    wait = _until(_text(retry_after), now)
    return None if wait is None else min(max(wait, 0.0), MAX_RETRY_AFTER)


@_remembered
def credential(client: Headers) -> bytes | None:
    """Extract the key or token that the client presents: `Authorization: Bearer`, `X-Api-Key` or `api-key`.

    None where there is none; another scheme of Authorization is none. Two that differ raise ProxyError
    `invalid_api_key`: which of them counts must not be a matter of luck.
    """
    found: bytes | None = None
    for name, value in client:
        lower = name.lower()
        if lower not in _CREDENTIALS:
            continue
        presented = _bearer(value) if lower == b"authorization" else value.strip(b" \t")
        if not presented:
            continue
        if found is not None and presented != found:
            raise ProxyError("invalid_api_key", "Your request carries two different API keys. Send one.")
        found = presented
    return found


def _passing(headers: Headers, table: Collection[bytes], prefix: bytes = b"\n") -> dict[bytes, list[bytes]]:
    """Collect the values of the fields in a table, or of a prefix, by lower-cased name; not those that `Connection` names."""
    passing: dict[bytes, list[bytes]] = {}
    hidden: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if lower in table or lower.startswith(prefix):
            passing.setdefault(lower, []).append(value.strip(b" \t"))
        elif lower == b"connection":
            hidden.update(option.strip(b" \t").lower() for option in value.split(b","))
    for name in hidden & passing.keys():
        del passing[name]
    return passing


def _fit(value: bytes) -> bool:
    """Whether a stripped value can stand in a field: RFC 9110 5.5 without obs-text, which no field here needs."""
    return 0 < len(value) <= MAX_VALUE and not value.translate(None, _VISIBLE)


@_remembered
def _from_upstream(upstream: Headers) -> dict[bytes, list[bytes]]:
    return _passing(upstream, _WANTED)


def _request_id(passing: dict[bytes, list[bytes]]) -> bytes | None:
    for name in _REQUEST_ID:
        own_id = passing.get(name, (b"",))[0]
        if len(own_id) <= MAX_ID and _fit(own_id):
            return own_id
    return None


def _bearer(value: bytes) -> bytes:
    """Take the token out of `Bearer TOKEN`; the scheme in any case (RFC 9110 11.1)."""
    scheme, _, token = value.strip(b" \t").partition(b" ")
    return token.strip(b" \t") if scheme.lower() == b"bearer" else b""


def _text(value: bytes | None) -> str:
    return "" if value is None or len(value) > 64 else value.strip(b" \t").decode("latin-1")


def _until(date: str, now: float) -> float | None:
    """Seconds until an HTTP date; all three forms of RFC 9110 5.6.7 are GMT."""
    if not date[:3].isalpha():
        return None
    try:
        when = parsedate_to_datetime(date)
        wait = when.timestamp() - now if when.tzinfo else when.replace(tzinfo=UTC).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return wait if math.isfinite(wait) else None
