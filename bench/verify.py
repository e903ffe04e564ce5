"""Whether an answer is the right one: a fast wrong answer must not win.

Each check is begun for a request, fed the body as it comes, and asked at the end; it says None, or what was wrong. The strict
checks want the mock's own bytes; `loose` is for proxies that write their own JSON, and still wants every event, in order.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import answers

BLANK = b"\n\n"

Latency = Callable[[int], None]
"""Told the CLOCK_MONOTONIC nanoseconds at which an event that arrives now was written."""


class UnaryCheck:
    """One answer that is not streamed."""

    __slots__ = ("_loose", "_parts")

    def __init__(self, *, loose: bool) -> None:
        self._loose = loose
        self._parts: list[bytes] = []

    def begin(self) -> None:
        self._parts.clear()

    def feed(self, data: bytes) -> int:
        """Take the next bytes; how many events they ended (none)."""
        self._parts.append(data)
        return 0

    def wrong(self, status: int) -> str | None:
        """Say what was wrong with the answer, now that it is whole."""
        body = b"".join(self._parts)
        if status != 200:
            return f"status {status}: {body[:200]!r}"
        right = (b'"total_tokens":215' in body and body.rstrip().endswith(b"}")) if self._loose else body == answers.UNARY
        return None if right else f"wrong body: {body[:200]!r}"


class StreamCheck:
    """One stream: its length, its events and its end; with `latency`, or loosely, also each event's number."""

    __slots__ = ("_blanks", "_expected", "_half", "_last", "_latency", "_length", "_loose", "_rest", "_script", "_wrong")

    def __init__(self, script: answers.Script, latency: Latency | None = None, *, loose: bool = False) -> None:
        self._script = script
        self._latency = latency
        self._loose = loose
        self.begin()

    def begin(self) -> None:
        self._blanks = 0
        self._length = 0
        self._half = False
        self._last = b""
        self._rest = b""
        self._expected = 0
        self._wrong: str | None = None

    def feed(self, data: bytes) -> int:
        """Take the next bytes; how many events they ended."""
        blanks = data.count(BLANK)
        if self._half and data.startswith(b"\n"):
            blanks += 1
        # A lone line feed at the end may be the first half of a blank line.
        self._half = not data.endswith(BLANK) and data.endswith(b"\n")
        self._blanks += blanks
        self._length += len(data)
        self._last = data if len(data) >= len(answers.DONE) else self._last[-len(answers.DONE) :] + data
        if self._latency is not None or self._loose:
            self._read(data)
        return blanks

    def wrong(self, status: int) -> str | None:
        """Say what was wrong with the stream, now that it has ended."""
        if status != 200:
            return f"status {status}"
        if not self._last.endswith(answers.DONE):
            return f"ends with {self._last[-40:]!r}"
        if self._wrong is None and (self._latency is not None or self._loose) and self._expected != self._script.events:
            return f"{self._expected} of {self._script.events} content events"
        if self._wrong is None and not self._loose:
            if self._length != self._script.length:
                return f"{self._length} bytes, not {self._script.length}"
            if self._blanks != self._script.blanks:
                return f"{self._blanks} events, not {self._script.blanks}"
        return self._wrong

    def _read(self, data: bytes) -> None:
        text = self._rest + data
        whole = text.rfind(BLANK) + len(BLANK) if BLANK in text else 0
        self._rest = text[whole:]
        for found in answers.STAMP.finditer(text, 0, whole):
            if int(found[1]) != self._expected and self._wrong is None:
                self._wrong = f"event {int(found[1])} where {self._expected} was due"
            self._expected += 1
            if self._latency is not None:
                self._latency(int(found[2]))
