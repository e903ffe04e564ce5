"""The mock upstream: `python -m bench.mock` prints `listening on http://127.0.0.1:PORT`. A raw protocol, to cost little.

POST /v1/chat/completions answers as the model name says (answers.Script; `mock-500` fails, `mock-third` every third time). GET /health
says ok, GET /connections how many were ever opened; POST /release ends the streams that are held. A stream whose client left is
dropped; nothing else ends it early.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from typing import cast

import httptools

from bench import answers

UNARY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_0f3c8c1b2a\r\nopenai-processing-ms: 412\r\n"
    b"openai-version: 2020-10-01\r\ncontent-length: %d\r\n\r\n"
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: req_0f3c8c1b2a\r\n"
    b"openai-processing-ms: 412\r\nopenai-version: 2020-10-01\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
UNARY = UNARY_HEAD % len(answers.UNARY) + answers.UNARY
_ERROR = b'{"error": {"message": "The server had an error.", "type": "server_error", "param": null, "code": null}}'
FAILURE = b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ERROR) + _ERROR
PLAIN = b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b"
EARLY = 0.0005
"""Seconds by which a timer may fire early: loops round to milliseconds."""


def plain(status: bytes, text: bytes = b"ok\n") -> bytes:
    """One plain answer."""
    return PLAIN % (status, len(text), text)


def framed(data: bytes) -> bytes:
    """One chunk of chunked transfer coding (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Pacer:
    """Sends each stream's next event when it is due: one heap and one timer for all streams."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[tuple[float, int, Stream]] = []
        self._serial = itertools.count()
        self._timer: asyncio.Handle | None = None
        self._next = math.inf
        self.held: set[Stream] = set()
        self.connections = 0
        self._turns = 0

    def add(self, stream: Stream) -> None:
        """Begin a stream whose first event has been sent."""
        script = stream.script
        if script.rate == answers.HOLD:
            self.held.add(stream)
        elif script.rate == 0:
            while stream.step():
                pass
        else:
            self._push(self._loop.time() + 1 / script.rate, stream)
            self._arm()

    def third(self) -> bool:
        """Whether it is the turn of `mock-third` to fail."""
        self._turns += 1
        return self._turns % 3 == 0

    def release(self) -> None:
        """End the streams that are held."""
        held, self.held = self.held, set()
        for stream in held:
            while stream.step():
                pass

    def _push(self, due: float, stream: Stream) -> None:
        heapq.heappush(self._due, (due, next(self._serial), stream))

    def _arm(self) -> None:
        if self._due and self._due[0][0] < self._next:
            if self._timer is not None:
                self._timer.cancel()
            self._next = self._due[0][0]
            self._timer = self._loop.call_at(self._next, self._run)

    def _run(self) -> None:
        self._next = math.inf
        limit = self._loop.time() + EARLY
        while self._due and self._due[0][0] <= limit:
            due, _, stream = heapq.heappop(self._due)
            if stream.step():
                self._push(due + 1 / stream.script.rate, stream)
        self._arm()


class Stream:
    """One streamed answer on its way out."""

    __slots__ = ("script", "sent", "transport", "usage")

    def __init__(self, script: answers.Script, transport: asyncio.Transport, *, usage: bool) -> None:
        self.script = script
        self.transport = transport
        self.usage = usage
        self.sent = 0

    def step(self) -> bool:
        """Send the next event, after the last one the end too. False when there is no more to send."""
        if self.transport.is_closing():
            return False
        self.transport.write(framed(answers.content(self.sent, time.monotonic_ns())))
        self.sent += 1
        if self.sent < self.script.events:
            return True
        last = [answers.FINISH, answers.REPORT, answers.DONE] if self.usage else [answers.FINISH, answers.DONE]
        self.transport.write(b"".join(framed(event) for event in last) + b"0\r\n\r\n")
        return False


class Connection(asyncio.Protocol):
    """One connection to the mock; a request at a time."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pacer.connections += 1

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._transport.abort()
            raise
        except httptools.HttpParserError:
            self._transport.write(plain(b"400 Bad Request"))
            self._transport.close()

    def on_message_begin(self) -> None:
        self._body = []
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._url == b"/v1/chat/completions":
            self._complete(b"".join(self._body))
        elif self._url == b"/release":
            self._pacer.release()
            self._transport.write(plain(b"200 OK"))
        elif self._url == b"/connections":
            self._transport.write(plain(b"200 OK", b"%d" % self._pacer.connections))
        elif self._url == b"/health":
            self._transport.write(plain(b"200 OK"))
        else:
            self._transport.write(plain(b"404 Not Found"))

    def _complete(self, body: bytes) -> None:
        if b'"mock-500"' in body or (b'"mock-third"' in body and self._pacer.third()):
            self._transport.write(FAILURE)
            return
        try:
            script = answers.read_model(body)
        except ValueError:
            self._transport.write(plain(b"400 Bad Request"))
            return
        if script is None:
            self._transport.write(UNARY)
            return
        self._transport.write(STREAM_HEAD + framed(answers.FIRST))
        usage = answers.USAGE_ASKED.search(body) is not None
        self._pacer.add(Stream(script, self._transport, usage=usage))


async def serve() -> None:
    """Listen on a free port of loopback, say which, and answer until killed."""
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = await loop.create_server(lambda: Connection(pacer), "127.0.0.1", 0, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    from bench import loops

    loops.run(serve())
