"""Events of a stream that differ by their text alone: recognized by their bytes, and read without parsing the rest."""

from __future__ import annotations

import orjson


class Template:
    """An event of which all but its text is known; `text` stands between `head` and `tail`, as the inside of a JSON string.

    On the wire it begins with `first` and ends with `last`.
    """

    __slots__ = ("begin", "end", "first", "head", "index", "last", "tail")

    def __init__(self, head: bytes, tail: bytes, index: int) -> None:
        self.head = head
        self.tail = tail
        self.index = index
        self.first = b"data: " + head
        self.last = tail + b"\n\n"
        self.begin, self.end = len(self.first), -len(self.last)
        """Where, on the wire, the text stands."""

    def text(self, event: bytes) -> bytes:
        """Read the text of an event that begins with `head` and ends with `tail`; empty if it is not that simple."""
        inside = event[self.begin - 6 : self.end + 2]
        try:
            # exactly one JSON string, or an error: a quote or an unfinished escape inside cannot pass
            text: str = orjson.loads(b'"%b"' % inside)
        except orjson.JSONDecodeError:
            return b""
        return text.encode()

    def texts(self, events: list[bytes]) -> str:
        """Read the text of events as they came, each beginning with `first` and ending with `last`; empty as above."""
        begin, end = self.begin, self.end
        return joined([event[begin:end] for event in events])


def joined(inside: list[bytes]) -> str:
    """Read the insides of JSON strings together; empty if one of them is none."""
    said = b'","'.join(inside)
    if b"\\" in said and any(text.endswith(b"\\") for text in inside):
        return ""  # it might escape the quote that is put behind it
    try:
        # as many strings as events, or an error: so none has a quote inside, and none is finished by the next
        texts: list[str] = orjson.loads(b'["%b"]' % said)
    except orjson.JSONDecodeError:
        return ""
    return "".join(texts) if len(texts) == len(inside) else ""


def template_of(event: bytes, text: str, index: int) -> Template | None:
    """Make the template of an event whose delta says this text and nothing else; None where its bytes do not show it plainly."""
    for name in (b'"content":"', b'"content": "'):
        begin = event.find(name) + len(name)
        end = event.find(b'"', begin)
        # the name only once and nothing escaped: so it is the delta's member that stands there, and its text as it is
        if (
            begin >= len(name) > 0 < end
            and event.count(b'"content"') == 1
            and b"\\" not in event
            and event[begin:end] == text.encode("utf-8", "replace")
        ):
            return Template(event[:begin], event[end:], index)
    return None
