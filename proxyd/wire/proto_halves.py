"""JSON in which a character is cut in half.

Servers that cut text by UTF-16 units send half of an escaped surrogate pair in one delta and its other half in the next. Strict
readers refuse that, and protobuf's strings cannot hold it; so the halves are put together here.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class Halves:
    """Reads the events of one stream; keeps the first half of a pair until the second comes."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[object, str], str] = {}

    def read(self, event: bytes) -> tuple[Any, bool]:
        """Read the data of an event; None if it is not JSON. True if it had to be mended."""
        try:
            return orjson.loads(event), False
        except orjson.JSONDecodeError:
            pass
        try:
            document = json.loads(event.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None, False
        choices = document.get("choices") if isinstance(document, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict):
                self._join(str(choice.get("index")), delta)
        return _whole(document), True

    def _join(self, index: str, delta: dict[str, Any]) -> None:
        for name in _TEXTS:
            text = delta.get(name)
            if isinstance(text, str) and text:
                text = self._kept.pop((index, name), "") + text
                if "\ud800" <= text[-1] <= "\udbff":
                    self._kept[index, name] = text[-1]
                    text = text[:-1]
                delta[name] = text


def _whole(item: Any) -> Any:
    """Pairs become characters; halves that are left over become U+FFFD."""
    if isinstance(item, str):
        return item.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(item, list):
        return [_whole(inner) for inner in item]
    if isinstance(item, dict):
        return {_whole(name): _whole(inner) for name, inner in item.items()}
    return item
