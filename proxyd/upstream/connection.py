"""One HTTP/1.1 connection to an upstream: it carries one call at a time and pushes what arrives into the call's sink.

The law of this file: bytes go from the socket through the parser into the sink inside one callback. No task wakes up, no
queue stands between, and nothing here decides what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_LIMIT = 64 * 1024
"""Bytes of a response head, and of anything else that is not body (trailers, chunk extensions). nginx allows 8 x 4 KiB,
Envoy 60 KiB; Cloudflare's own heads stay under 10 KiB."""
HEADERS_LIMIT = 256
INFORMATIONAL_LIMIT = 16
"""1xx answers before the real one (RFC 9110 15.2 sets no bound; a hostile upstream needs one)."""


class Sink(Protocol):
    """Where one answer goes. Called synchronously, in order: `head` once, `body` any number of times, `end` once."""

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Take the status and the headers (names in lower case)."""

    def body(self, data: bytes) -> None:
        """Take body bytes, transfer-decoded."""

    def end(self, failure: ProxyError | None) -> None:
        """The answer is over; None: the HTTP message ended properly."""


class Call(Protocol):
    """A running call, as whoever reads its answer may steer it."""

    reused: bool
    """It went out on a connection that had carried another call before."""

    def pause(self) -> None:
        """Stop reading; TCP makes the upstream wait."""

    def resume(self) -> None:
        """Read on."""

    def close(self) -> None:
        """No more is wanted. Before the end of the answer this breaks the connection, which is what stops an upstream."""


class Connection(asyncio.BufferedProtocol):
    """A connection of a pool. `send` starts a call; `released` is told when it can carry another or is gone."""

    reused = False
    sock: socket.socket | None = None
    """What the transport reads from (uvloop's own is none that can be shut down)."""

    def __init__(self, buffer: memoryview, released: Callable[[Connection, bool], None]) -> None:
        self._buffer = buffer  # one for the whole pool: a callback uses it up before the next begins
        self._released = released
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._sink: Sink | None = None
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        # State of one answer
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._informational = 0
        self._framed = False  # by length or chunks; else the end of the connection ends the message
        self._not_body = 0  # bytes read since the last body byte or head
        self._complete = False
        self._keep = False
        self._paused = False

    # The pool's side.

    @property
    def usable(self) -> bool:
        """Open and between calls."""
        return self._transport is not None and not self._transport.is_closing() and self._sink is None

    def send(self, head: bytes, body: bytes, sink: Sink) -> None:
        """Start a call: write the request, and from now on push the answer into `sink`."""
        transport = cast("asyncio.Transport", self._transport)
        self._reset()
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        transport.write(head + body if len(body) < 65536 else head)
        if len(body) >= 65536:
            transport.write(body)

    # A call's side.

    def pause(self) -> None:
        """Stop reading."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Give up the call, if it is still running, by breaking the connection."""
        if self._sink is not None:
            self._sink = None
            if self.sock is not None and self._transport is not None:
                # Now, not in a later turn of the loop: in a crowd that leaves at once, that is when all others have been seen to.
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)
            self._drop()

    def discard(self) -> None:
        """Close an idle connection."""
        self._drop()

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Lend the pool's buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what arrived; the parser's callbacks below do the rest."""
        if self._sink is None:  # bytes that nobody asked for: this connection lies (RFC 9112 9.2)
            self._drop()
            return
        self._not_body += nbytes
        try:
            cast("httptools.HttpResponseParser", self._parser).feed_data(self._buffer[:nbytes])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(cause if isinstance(cause, ProxyError) else _bad(f"a response could not be handled ({type(cause).__name__})"))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(_bad("the response is not valid HTTP/1.1"))
        else:
            if self._not_body > HEAD_LIMIT:
                self._fail(_bad("the response head or trailers are too large"))
            elif self._complete:
                self._finish()
            elif nbytes == len(self._buffer) and not self._paused:
                # There is more where this came from, and libuv would take up to 32 such helpings in a row: others first.
                cast("asyncio.Transport", self._transport).pause_reading()
                asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Let the transport close itself; `connection_lost` follows."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the running answer: properly, if only the connection's end could end it, else as cut."""
        self._transport = None
        sink, self._sink = self._sink, None
        self._released(self, False)
        if sink is None:
            return
        if self._status and not self._framed and exc is None:
            sink.end(None)
        elif self._status:
            sink.end(ProxyError("upstream_cut", "The upstream broke the connection in the middle of its answer."))
        else:
            sink.end(
                ProxyError(
                    "upstream_stale" if self.reused and not self._not_body else "upstream_cut",  # not one byte of an answer came
                    "The upstream closed the connection without an answer.",
                )
            )
        self._parser = None

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        """Refuse a second message after the one that was asked for."""
        if self._complete:
            raise _bad("the upstream sent more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect the head; skip trailers."""
        if self._status:
            return
        if len(self._headers) >= HEADERS_LIMIT:
            raise _bad("the response has too many headers")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Pass the head on, unless it is an interim one."""
        parser = cast("httptools.HttpResponseParser", self._parser)
        if parser.get_http_version() not in {"1.1", "1.0"}:
            raise _bad("it is not HTTP/1.1")
        status = parser.get_status_code()
        if not 100 <= status <= 599:  # RFC 9110 15: three digits, five classes; what else would the client make of it
            raise _bad("its status is none of HTTP's")
        if 100 <= status < 200:
            self._informational += 1
            self._headers = []
            if status == 101 or self._informational > INFORMATIONAL_LIMIT:
                raise _bad("the upstream sent interim responses that were not asked for")
            return
        self._status = status
        self._not_body = 0
        self._framed = status in {204, 304} or any(name in {b"content-length", b"transfer-encoding"} for name, _ in self._headers)
        if self._sink is not None:
            self._sink.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Push."""
        self._not_body = 0
        if self._sink is not None:
            self._sink.body(data)

    def on_message_complete(self) -> None:
        """Note the end; `buffer_updated` acts on it when the parser has returned."""
        if self._status:
            self._complete = True
            # Asked here: behind this callback llhttp forgets how the message was framed, and would always say no.
            self._keep = cast("httptools.HttpResponseParser", self._parser).should_keep_alive()

    # Ends.

    def _finish(self) -> None:
        """Hand the connection back before the sink hears of the end: the sink may start the next call at once."""
        sink, self._sink = self._sink, None
        transport = self._transport
        keep = transport is not None and self._keep and transport.get_write_buffer_size() == 0
        self._parser = None
        if keep:
            self.resume()
            self._released(self, True)
        else:
            self._drop()
        if sink is not None:
            sink.end(None)

    def _fail(self, failure: ProxyError) -> None:
        sink, self._sink = self._sink, None
        self._drop()
        if sink is not None:
            sink.end(failure)


def _bad(what: str) -> ProxyError:
    return ProxyError("upstream_bad_response", f"The upstream's answer cannot be used: {what}.")
