"""An upstream's answer as it arrives: first peeked at by dispatch, then pushed on by relay.

The law of this file: `body` is the hot path. One call of the meter, one write; no allocation that is not needed, no task.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from proxyd.model import Format, Source, Usage
from proxyd.wire import headers
from proxyd.wire.meter import Limits, Meter, format_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.clock import Clock
    from proxyd.errors import ProxyError
    from proxyd.model import Endpoint, LedgerRow
    from proxyd.upstream.connection import Call

_CODING = re.compile(r"[A-Za-z0-9-]{1,20}(?:, ?[A-Za-z0-9-]{1,20}){0,3}")
READY_LIMIT = 256 * 1024
"""Bytes that wait for an answer's first event. An upstream that says so much before it has to be told to a client, who can be
slow, or be given up."""
REFUSAL_LIMIT = 256 * 1024
"""Bytes of an upstream's error answer that are read; the rest says nothing new."""
END_GRACE = 0.1
"""Seconds that an upstream has, after its terminal event, to end the HTTP message too. (The Python SDK waits as long.)"""


class Answer:
    """The sink of one attempt. Until `push` is set, what may leave is kept in `ready`."""

    def __init__(self, clock: Clock, endpoint: Endpoint, *, streamed: bool, strip_usage: bool, note_usage: bool = False) -> None:
        self.clock = clock
        self._endpoint = endpoint
        self._streamed = streamed
        self._strip_usage = strip_usage
        self.usage_at: list[tuple[int, int]] | None = [] if note_usage else None
        """Where events stand that carry only usage, if they are neither to be taken out nor for everybody."""
        self._waiter: asyncio.Future[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self.call: Call | None = None
        self.asked_size = 0
        """Bytes that the upstream was sent: with the history of a conversation, and decompressed."""
        # The answer
        self.status = 0
        self.headers = headers.Fields(())
        self.meter: Meter | None = None
        self.ready: list[bytes] = []
        self._ready_size = 0
        self.push: Callable[[bytes], None] | None = None
        self.over = False
        self.failure: ProxyError | None = None
        # Moments, monotonic
        self.sent_at = clock.monotonic()
        self.first_at: float | None = None
        self.last_at = self.sent_at
        self.paused_since: float | None = None
        self.noted_at = 0.0
        """`last_at` when its progress was last written down."""

    # The sink's side: called by the upstream's connection.

    def head(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Take the head, and make a meter that fits what is to come."""
        self.status, self.headers = status, headers.Fields(fields)
        self.last_at = self.clock.monotonic()
        if status >= 400 or not self._streamed:
            self.meter = self._fitting(b"")
        self._wake()

    def body(self, data: bytes) -> None:
        """Meter the bytes and pass on what may leave."""
        meter = self.meter
        if meter is None:
            meter = self.meter = self._fitting(data)
        out = meter.feed(data)
        self.last_at = now = self.clock.monotonic()
        if self.push is not None and out:
            self.push(out)
        else:
            if out:
                self.ready.append(out)
                self._ready_size += len(out)
            if self._waiter is not None and (meter.begun or self._ready_size > READY_LIMIT):
                self._wake()
        if self.first_at is None and meter.begun:
            self.first_at = now
        if meter.ended and self._grace is None and not self.over:  # whoever was pushed may have given it up
            self._grace = asyncio.get_running_loop().call_later(END_GRACE, self._expire)

    def end(self, failure: ProxyError | None) -> None:
        """Take the end: None if the HTTP message ended properly."""
        self.over = True
        if self._grace is not None:
            self._grace.cancel()
        self.failure = failure
        if self.meter is None and self.status:
            self.meter = self._fitting(b"")
        if self.meter is not None:
            if self.meter.ended:
                self.failure = None  # everything was said before the connection broke
            rest = self.meter.end(self.failure is None)
            if rest:
                (self.push or self.ready.append)(rest)
        self._wake()

    def _fitting(self, data: bytes) -> Meter:
        """A meter that fits the answer; SDKs read a stream by its bytes, whatever its label says, so its first bytes count too."""
        form = format_of(self.header(b"content-type"), streamed=self._streamed and self.status < 400, head=data)
        coding = self.header(b"content-encoding") or "identity"
        limits = Limits() if self.status < 400 else Limits(body=REFUSAL_LIMIT)
        return Meter(
            form,
            status=self.status,
            content_encoding=coding,
            strip_usage=self._strip_usage,
            usage_at=self.usage_at,
            endpoint=self._endpoint,
            limits=limits,
        )

    def _expire(self) -> None:
        """The terminal event has come, the end of the message has not: do not make the client wait for it."""
        self.close()
        self.end(None)

    # The verbs' side.

    def header(self, name: bytes) -> str | None:
        """The first header of that name, which is in lower case."""
        return headers.first(self.headers, name)

    def told(self) -> tuple[tuple[bytes, bytes], ...]:
        """What the client learns of the headers. A body that came coded, although we asked for identity, leaves as it came."""
        coding = self.header(b"content-encoding") or ""
        found = headers.to_client(self.headers)
        return (*found, (b"Content-Encoding", coding.encode())) if _CODING.fullmatch(coding) else found

    async def started(self) -> None:
        """Wait for the head, or for the end that came instead."""
        while not self.status and not self.over:
            await self._wait()

    async def begun(self, patience: float | None) -> None:
        """Wait for the first event (or, for a body of JSON, the first byte), for the end, or for more than can wait; at most so long.

        A stream whose head has come is not made to wait longer: its client is told of the head then, and kept alive by comments.
        """
        timer = None if patience is None else asyncio.get_running_loop().call_later(patience, self._wake)
        try:
            while not self.over and not (self.meter is not None and self.meter.begun) and self._ready_size <= READY_LIMIT:
                await self._wait()
                if timer is not None and self.may_stream and self.clock.monotonic() >= timer.when():
                    break
        finally:
            if timer is not None:
                timer.cancel()  # it holds the answer, also one whose client has left

    async def ended(self) -> None:
        """Wait for the end."""
        while not self.over:
            await self._wait()

    def fail(self, failure: ProxyError) -> None:
        """Give the attempt up: break it off upstream, and end it here with this failure."""
        if not self.over:
            self.close()
            self.end(failure)

    def close(self) -> None:
        """Let go of the upstream; a running answer is broken off, which stops it."""
        if self._grace is not None:
            self._grace.cancel()
        if self.call is not None and not self.over:  # after its end the connection carries somebody else's call
            self.call.close()

    # Flow control: the client's connection steers this.

    def pause(self) -> None:
        """The client's buffer is full."""
        if self.call is not None and not self.over:
            self.paused_since = self.clock.monotonic()
            self.call.pause()

    def resume(self) -> None:
        """There is room again; silence is counted from now."""
        if self.call is not None and not self.over:
            self.paused_since = None
            self.last_at = self.clock.monotonic()
            self.call.resume()

    # What it came to.

    @property
    def streams(self) -> bool:
        """It arrives as events, not as one document."""
        return self.meter is not None and self.meter.format is not Format.JSON

    @property
    def may_stream(self) -> bool:
        """It arrives as events, as far as can be told yet."""
        return self._streamed and self.status < 400 if self.meter is None else self.streams

    @property
    def had_error(self) -> bool:
        """An error was said inside it."""
        return self.meter is not None and self.meter.had_error

    @property
    def finished_whole(self) -> bool:
        """A whole successful answer has arrived (even if its connection has not ended yet)."""
        if self.meter is None or self.failure is not None or self.meter.had_error:
            return False
        # What could not be read (br, zstd, a body beyond all bounds) is judged by its transport.
        return self.meter.read().complete or (self.meter.unread and self.over)

    def progress(self, row: LedgerRow) -> LedgerRow:
        """The row as a crash should find it: what was reported so far, else an estimate by length."""
        assert self.meter is not None  # noqa: S101 - asked of running streams only
        reading = self.meter.read()
        usage, source = reading.usage, Source.UPSTREAM
        if usage is None:
            prompt, completion = -(-self.asked_size // 4), -(-len(self.meter.produced()) // 4)  # rather too many than none
            usage, source = Usage(prompt, completion, prompt + completion), Source.ESTIMATED
        return replace(row, usage=usage, tokens_source=source, upstream_model=reading.model or row.upstream_model)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
