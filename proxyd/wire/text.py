"""What every body of JSON must be before it is read: UTF-8, and not nested without end. Checked as it arrives.

The law of this file: no piece takes longer than its own length warrants, so that between two pieces the event loop turns.
msgspec skips over what it does not decode without looking whether it is text, and counts its depth by the room that is left on
the interpreter's stack, which is another number on each version; here it is one number.
"""

from __future__ import annotations

import codecs
import re
from itertools import accumulate

from proxyd.errors import ProxyError

MAX_DEPTH = 200
"""Arrays and objects inside one another. JSON schemas of tools, the deepest that is sent in earnest, stay under 30."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = dict.fromkeys(b"[{", 1) | dict.fromkeys(b"]}", -1)


def check(body: bytes) -> None:
    """Check a body that is there whole, of at most 64 KiB or so. Raises ProxyError `invalid_json`."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        Nesting().feed(body)


class Checker:
    """Checks a body that comes in pieces, without holding more of it than its reader does.

    `feed` every piece in order, then `finish`; both raise ProxyError `invalid_json`.
    """

    __slots__ = ("_decoder", "_nesting", "_opened", "_unseen")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._nesting = Nesting()
        self._opened = 0
        self._unseen: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        """Check the next piece; a character may be cut at its end."""
        self._decode(piece, final=False)
        # With fewer brackets than levels there is nothing to look at, and so it is with nearly all bodies, pictures included.
        self._opened += piece.count(b"[") + piece.count(b"{")
        self._unseen.append(piece)
        if self._opened > MAX_DEPTH:
            for unseen in self._unseen:
                self._nesting.feed(unseen)
            self._unseen = []

    def finish(self) -> None:
        """Check that the body did not end inside a character."""
        self._decode(b"", final=True)

    def _decode(self, piece: bytes, *, final: bool) -> None:
        try:
            self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            raise _not_utf8() from None


class Nesting:
    """Follows how deep a body of JSON is. What is not JSON at all is found by whoever reads it."""

    __slots__ = ("_depth", "_escaped", "_in_string")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, piece: bytes) -> None:
        """Look at the next piece. Raises ProxyError `invalid_json` beyond MAX_DEPTH."""
        start = 0
        if self._in_string:
            if self._escaped and piece:
                start, self._escaped = 1, False
            end = _REST_OF_STRING.match(piece, start)
            if end is None:
                self._escaped = _escapes(piece, start) if len(piece) > start else self._escaped
                return
            start, self._in_string = end.end(), False
        outside = _STRING.sub(b"", piece[start:] if start else piece)
        if (quote := outside.find(b'"')) >= 0:  # a string that goes on in the next piece
            self._in_string, self._escaped = True, _escapes(outside, quote + 1)
            outside = outside[:quote]
        steps = map(_STEP.__getitem__, outside.translate(None, _NOT_BRACKETS))
        depths = list(accumulate(steps, initial=self._depth))
        if max(depths) > MAX_DEPTH:
            raise ProxyError("invalid_json", f"The JSON body of your request is nested more than {MAX_DEPTH} levels deep.")
        self._depth = depths[-1]


def _escapes(text: bytes, start: int) -> bool:
    """Whether the text, an unfinished string from `start` on, ends with a backslash that escapes what comes."""
    return (len(text) - max(start, len(text.rstrip(b"\\")))) % 2 == 1


def _not_utf8() -> ProxyError:
    return ProxyError("invalid_json", "The request body is not valid UTF-8.")
