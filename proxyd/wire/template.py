"""Events of a stream that differ by their text alone: recognized by their bytes, and read without parsing the rest."""

from __future__ import annotations

import orjson


class Template:
    """An event of which all but its text is known; `text` stands between `head` and `tail`, as the inside of a JSON string.

    On the wire it begins with `first` and ends with `last`.
    """

    __slots__ = ("_begin", "_end", "first", "head", "index", "last", "tail")

    def __init__(self, head: bytes, tail: bytes, index: int) -> None:
        self.head = head
        self.tail = tail
        self.index = index
        self.first = b"data: " + head
        self.last = tail + b"\n\n"
        self._begin = len(head)
        self._end = -len(tail)

    def text(self, event: bytes) -> bytes:
        """Read the text of an event that begins with `head` and ends with `tail`; empty if it is not that simple."""
        inside = event[self._begin : self._end]
        try:
            # exactly one JSON string, or an error: a quote or an unfinished escape inside cannot pass
            text: str = orjson.loads(b'"%b"' % inside)
        except orjson.JSONDecodeError:
            return b""
        return text.encode()

    def texts(self, events: list[bytes]) -> bytes:
        """Read the text of events as they came, each beginning with `first` and ending with `last`; empty as above."""
        begin, end = self._begin + 6, self._end - 2
        inside = [event[begin:end] for event in events]
        said = b'","'.join(inside)
        if b"\\" in said and any(text.endswith(b"\\") for text in inside):
            return b""  # it might escape the quote that is put behind it
        try:
            # as many strings as events, or an error: so none has a quote inside, and none is finished by the next
            texts: list[str] = orjson.loads(b'["%b"]' % said)
        except orjson.JSONDecodeError:
            return b""
        return "".join(texts).encode() if len(texts) == len(inside) else b""
