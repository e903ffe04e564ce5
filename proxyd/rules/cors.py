"""Which web pages may read answers (Fetch, 3.2): exact origins, and never everybody's page with somebody's cookies.

Browsers keep pages from reading what other origins answer unless the answer says that they may. proxyd says so for the
origins of the file, of every answer, errors too, for a page that cannot read an error cannot tell it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.config.schema import Cors

ANY = "*"
MAX_AGE = 600
"""Seconds that a browser may keep what it was told ahead of a request."""
EXPOSED = (
    *("X-Request-Id", "Upstream-Request-Id", "X-Proxyd-Cost", "Idempotent-Replayed", "Preference-Applied", "Stream-Events", "Stream-State"),
    *("Retry-After", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
    *("openai-processing-ms", "openai-version", "openai-model"),
)
"""What a page may read of an answer's headers, beside the few that every page may."""

_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}){0,49}")
_EXPOSED = ", ".join(EXPOSED).encode()
_EXPOSABLE = frozenset(name.lower().encode() for name in EXPOSED)

Headers = list[tuple[bytes, bytes]]


def shared(cors: Cors, origin: str | None) -> Headers:
    """Say in an answer's head who may read it. `origin` is the request's header; a page of no listed origin is told nothing."""
    if ANY in cors.origins:
        return [(b"Access-Control-Allow-Origin", b"*"), (b"Access-Control-Expose-Headers", _EXPOSED)] if origin is not None else []
    if origin not in cors.origins or origin is None:
        return [(b"Vary", b"Origin")]  # a cache must not hand this to a page that may read it
    found = [(b"Access-Control-Allow-Origin", origin.encode("ascii")), (b"Access-Control-Expose-Headers", _EXPOSED), (b"Vary", b"Origin")]
    return [*found, (b"Access-Control-Allow-Credentials", b"true")] if cors.credentials else found


def lean(told: Headers, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Shorten what `shared` said to what an answer has, where bytes count: the whole list is longer than a short answer."""
    present = b", ".join(name for name, _ in headers if name.lower() in _EXPOSABLE)
    found = [(name, value) for name, value in told if name != b"Access-Control-Expose-Headers"]
    return [*found, (b"Access-Control-Expose-Headers", present)] if present and len(found) < len(told) else found


def preflight(methods: Iterable[str], wanted: str | None) -> Headers:
    """Answer what a browser asks ahead of a request: which methods and headers it may use. For an origin that may.

    Which headers a page sends is no secret and no danger: what they do, they do by their credential.
    """
    found = [(b"Access-Control-Allow-Methods", ", ".join(sorted(set(methods))).encode()), (b"Access-Control-Max-Age", b"%d" % MAX_AGE)]
    if wanted is not None and _TOKENS.fullmatch(wanted):
        found.append((b"Access-Control-Allow-Headers", wanted.encode("ascii")))
    return found


def merged(headers: Iterable[tuple[bytes, bytes]], more: Headers) -> Headers:
    """Add headers to others; both may say `Vary`, of which there is one."""
    found = list(headers)
    vary = [value for name, value in (*found, *more) if name == b"Vary"]
    rest = [(name, value) for name, value in (*found, *more) if name != b"Vary"]
    return [*rest, (b"Vary", b", ".join(vary))] if vary else rest
