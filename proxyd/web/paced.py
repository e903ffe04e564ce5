"""Server-sent events held back for as long as the client allows: the upstream's bytes, several events a write."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from proxyd.flow.packer import together
from proxyd.wire.faults import refused

if TYPE_CHECKING:
    from proxyd.errors import ProxyError
    from proxyd.web.encoder import Emit, Headers
    from proxyd.wire.wishes import Wishes

# What must not wait: the first text, a finish, an error. Told by bytes, for nothing here may cost what parsing costs.
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|refusal|text|arguments)"\s*:\s*"[^"]')
_URGENT = re.compile(rb'"finish_reason"\s*:\s*"|"error"\s*:\s*[{"]|^event:\s*error', re.MULTILINE)


class Paced:
    """One stream of events. Documents and refusals leave as they are."""

    protocol = "sse"
    lean = False
    ends = False

    def __init__(self, wishes: Wishes) -> None:
        self._delay = (wishes.delivery.max_delay_ms or 0) / 1000
        self._most = wishes.delivery.max_bytes
        self._held = bytearray()
        self._begun = False
        """The first text has left."""
        self._emit: Emit | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wish(self, wishes: Wishes, *, streamed: bool) -> None:
        """Nothing more than what it was made with."""

    def take_frames(self) -> bool:
        """It writes events."""
        return False

    def head(self, headers: Headers, *, streamed: bool) -> Headers:  # noqa: ARG002 - the same for both
        """All of them."""
        return headers

    def document(self, body: bytes) -> bytes:
        """As it is."""
        return body

    def refusal(self, error: ProxyError) -> tuple[int, Headers, bytes]:
        """As OpenAI shapes it."""
        return refused(error)

    def begin(self, headers: Headers, data: bytes, emit: Emit) -> bytes:  # noqa: ARG002 - whatever the headers
        """Begin a stream."""
        self._emit = emit
        return self.feed(data)

    def feed(self, data: bytes) -> bytes:
        """Take events; gives what leaves now."""
        held = self._held
        held += data
        if not self._begun and _TEXT.search(data):
            self._begun = True
            return self._take()
        if not held or _URGENT.search(data) or len(held) >= self._most or not self._delay:
            return self._take()
        if self._timer is None:
            loop = asyncio.get_running_loop()
            now = loop.time()
            self._timer = loop.call_later(together(now, now + self._delay), self._ring)
        return b""

    def ping(self) -> bytes:
        """A comment, behind what is held."""
        return self._take() + b": ping\n\n"

    def end(self, data: bytes) -> bytes:
        """Everything."""
        return self._take() + data

    def fail(self, data: bytes) -> bytes:
        """Everything."""
        return self._take() + data

    def stop(self) -> None:
        """Nothing is emitted from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self) -> bytes:
        self.stop()
        data, self._held = bytes(self._held), bytearray()
        return data

    def _ring(self) -> None:
        self._timer = None
        data = self._take()
        if data and self._emit is not None:
            self._emit(data)
