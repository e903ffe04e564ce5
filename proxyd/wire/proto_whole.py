"""An upstream that answers at once though it was asked for a stream: the one event that says the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxyd.errors import ProxyError
from proxyd.wire.dialects import decode

if TYPE_CHECKING:
    from collections.abc import Iterator


def as_stream(body: bytes) -> bytes:
    """Write a whole `chat.completion` as a stream of one event. Raises ProxyError `upstream_bad_response` if it is none."""
    document = decode(body)
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(choices, list):
        raise ProxyError("upstream_bad_response", "The upstream's answer is not a chat completion.")
    told = {**document, "object": "chat.completion.chunk", "choices": list(_choices(choices))}
    return b"data: " + json.dumps(told).encode() + b"\n\ndata: [DONE]\n\n"


def _choices(choices: list[Any]) -> Iterator[dict[str, Any]]:
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        rest = dict(choice)
        said = rest.pop("message", None)
        delta = dict(said) if isinstance(said, dict) else {}
        calls = delta.get("tool_calls")
        if isinstance(calls, list):  # only in streams are they numbered
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls) if isinstance(call, dict)]
        yield {**rest, "delta": delta}
