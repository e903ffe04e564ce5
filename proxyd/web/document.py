"""JSON documents, of the endpoints that proxyd serves by itself: how they are told, and how a small one is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from proxyd.web.downstream import Downstream

JSON = (b"Content-Type", b"application/json")
LARGEST = 64 * 1024
"""Bytes of a request."""
PATIENCE = 10.0
"""Seconds that it may take to arrive."""


def tell(down: Downstream, document: object, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    """Answer with a document."""
    down.reply(status, [JSON, *headers], orjson.dumps(document))


async def asked(down: Downstream) -> dict[str, object]:
    """Read the object that a request is; an empty body is an empty one. Raises ProxyError."""
    try:
        found = orjson.loads(await down.body(LARGEST, PATIENCE) or b"{}")
    except orjson.JSONDecodeError:
        raise ProxyError("invalid_json", "The request body is not JSON.") from None
    if not isinstance(found, dict):
        raise ProxyError("invalid_request", "The request body must be a JSON object.")
    return found
