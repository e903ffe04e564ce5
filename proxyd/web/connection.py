"""A client's connection: aiohttp's, with our own answers to malformed requests, a cap, and flow control to the upstream."""

from __future__ import annotations

import asyncio
import collections
import logging
import resource
import socket
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from proxyd.errors import ProxyError
from proxyd.wire.headers import Fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxyd.config.schema import Limits

log = logging.getLogger(__name__)

RESERVED_FILES = 64
"""Descriptors that clients may not use up: the database, look-ups, vocabularies, the listeners themselves."""
UNSENT_BYTES = 128 * 1024
"""Of one connection, that wait in the kernel for a client's window; with the transport's own 64 KiB and what one read brings, the
256 KiB of a stream that are held at most."""
MAX_LINE, MAX_HEADERS = 8190, 128
"""Bytes of a request line or of one header, and headers in a head."""
_MANY_HEADERS = "Too many headers received"
"""What aiohttp's parser says then, and no type of its own."""
LINGER, LINGER_BYTES, LINGERING = 1.0, 1 << 20, 32
"""Seconds and bytes for which a connection that is turned away is still heard, and how many there may be: more are closed at once."""
LOG_SECONDS = 1.0
"""Between two lines that say that connections are refused: a flood of them must not become a flood of log."""
_LAST_WORDS = (
    b"HTTP/1.1 %d %b\r\nX-Request-Id: %b\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)


class Steered(Protocol):
    """Whatever fills this connection's write buffer."""

    def pause(self) -> None:
        """The buffer is full."""

    def resume(self) -> None:
        """There is room again."""


class Sent:
    """What a handler returns to aiohttp when the answer is already on its way: there is nothing left to do."""

    __slots__ = ("body", "keep_alive", "status")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, _request: web.BaseRequest) -> None:
        """Nothing: the head is out."""

    async def write_eof(self) -> None:
        """Nothing: the body is out."""


class _Refused(asyncio.Protocol):
    """A connection that is turned away: what it sends is thrown away for a moment.

    Closed at once it would be reset, and its client would hear of that in place of the answer.
    """

    def __init__(self, wire: asyncio.Transport, others: set[asyncio.Transport]) -> None:
        self._wire, self._others, self._taken = wire, others, 0
        others.add(wire)
        self._end = asyncio.get_running_loop().call_later(LINGER, wire.close)

    def data_received(self, data: bytes) -> None:
        """Throw it away."""
        self._taken += len(data)
        if self._taken > LINGER_BYTES:
            self._wire.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was
        """It is gone."""
        self._end.cancel()
        self._others.discard(self._wire)


def room() -> int:
    """How many clients there may be: each takes a descriptor here, and another one at its upstream. prlimit(1) may change it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else max(8, (soft - RESERVED_FILES) // 2)


class ClientConnection(web.RequestHandler):
    """One connection from a client."""

    __slots__ = ("_address", "_begun", "_wire", "asked", "listener", "on_leaving", "steered")

    def __init__(self, listener: Listener, **settings: Any) -> None:
        super().__init__(listener, **settings)
        self.listener = listener
        self._address: str | None = None
        self._wire: asyncio.Transport | None = None
        self.steered: Steered | None = None
        self.on_leaving: Callable[[], None] | None = None
        """Called at once when the client leaves; the running handler is cancelled a turn of the loop later."""
        self.asked = False
        """A request has come on it."""
        self._begun = False
        """What came last was a part of a request's head."""

    @property
    def idle(self) -> bool:
        """No request is being served, and none has come."""
        return self._current_request is None and not self._messages

    @property
    def busy(self) -> bool:
        """A request is being served, or its answer has not left yet."""
        return self._current_request is not None or (self._wire is not None and self._wire.get_write_buffer_size() > 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection against its address and against our descriptors; close it at once beyond either bound."""
        wire = cast("asyncio.Transport", transport)
        peer = wire.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        listener, limits = self.listener, self.listener.limits()
        if address and listener.per_address[address] >= limits.connections_per_address:
            told = f"There are {limits.connections_per_address} connections from this address, which is as many as there may be."
            listener.refuse(wire, "too many connections from one address", address, ProxyError("too_many_connections", told))
            return
        if listener.connected >= room():
            # Here, not by accept: without a descriptor left accept spins (cpython#151615), and running answers starve.
            why = "too few descriptors for more clients: raise LimitNOFILE"
            listener.refuse(wire, why, address, ProxyError("overloaded", "proxyd has as many connections as it may."))
            return
        self._address, self._wire = address, wire
        listener.per_address[address] += 1
        listener.connected += 1
        sock = wire.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            # tcp(7): ends a connection whose peer has taken nothing for so long, its window closed or itself gone. The kernel
            # counts bytes, so a slow reader is not cut, and a silent one holds nothing of ours for ever.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.write_timeout * 1000))
            # Else the kernel takes megabytes of an answer before it says that its client does not read.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        super().connection_made(wire)

    @property
    def address(self) -> str:
        """The client's; empty on a Unix socket, and when it has left."""
        return self._address or ""

    def eof_received(self) -> None:
        """The client sends no more: it leaves. While something is still to be written to it, that is not certain yet."""
        if self._wire is not None and not self._wire.get_write_buffer_size():
            self._leaves()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the address its place back; the running handler is cancelled."""
        self._leaves()
        if self._address is not None:
            counts = self.listener.per_address
            self.listener.connected -= 1
            counts[self._address] -= 1
            if not counts[self._address]:
                del counts[self._address]
            self._address = None
        self.steered = self._wire = None
        super().connection_lost(exc)

    def _leaves(self) -> None:
        leaving, self.on_leaving = self.on_leaving, None
        if leaving is not None:
            leaving()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        super().data_received(data)
        self._begun = self.idle

    def _process_keepalive(self) -> None:
        """The time for a head is over (or for an idle connection, which ends without a word): who has begun one is told why.

        Not where an answer has ended the connection already, and the rest of its request still drips in.
        """
        due = asyncio.get_running_loop().time() >= self._next_keepalive_close_time
        if self._begun and self._keepalive and due and self.idle and self._wire is not None and not self._force_close:
            late = ProxyError("request_timeout", "The head of the request took too long to arrive.")
            self._wire.write(_last_words(late, self.listener.new_id()))
        super()._process_keepalive()

    def pause_writing(self) -> None:
        """The client reads slowly: pause whoever writes."""
        super().pause_writing()
        if self.steered is not None:
            self.steered.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self.steered is not None:
            self.steered.resume()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - aiohttp's signature
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # aiohttp's parser quotes the request here; nothing is reflected
    ) -> web.StreamResponse:
        """Answer what never reached our handler: a malformed request, or a bug, in OpenAI's shape, then close."""
        if isinstance(exc, LineTooLong) or message == _MANY_HEADERS:
            error = ProxyError("headers_too_large", f"A request may have {MAX_HEADERS} headers, none longer than {MAX_LINE} bytes.")
        elif status == 400:
            error = ProxyError("invalid_request", "The request is not valid HTTP/1.1.")
        else:
            log.error("unhandled error", exc_info=exc)
            error = ProxyError("internal", "proxyd failed to serve this request; its log says why.")
        answer = web.Response(status=error.status, body=error.document(), content_type="application/json")
        answer.headers["Server"] = "proxyd"
        answer.headers["X-Request-Id"] = self.listener.new_id()
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Keep aiohttp's own reports in our log, without a traceback per malformed request."""
        log.error("client connection failed: %s", kw.get("exc_info") or (args[0] if args else "unknown"))


def _last_words(error: ProxyError, request_id: str) -> bytes:
    """An answer that no handler gives; the connection ends with it."""
    document = error.document()
    return _LAST_WORDS % (error.status, HTTPStatus(error.status).phrase.encode(), request_id.encode(), len(document), document)


REPEATED = 256
"""Different sets of headers that are remembered; a client of the common SDKs has one or two."""
_LENGTH = b"content-length"
_APART = frozenset({_LENGTH, b"idempotency-key", b"prefer"})
"""What differs from request to request, and says nothing that is remembered."""
_APART_SIZES = frozenset(map(len, _APART))
_VOLATILE = frozenset({b"traceparent", b"tracestate"})


class Handler(Protocol):
    """What serves the requests of a port."""

    def __call__(self, request: web.BaseRequest) -> Awaitable[Any]:
        """Serve one."""

    def new_id(self) -> str:
        """Make a request id, for an answer that no handler gives."""


class Listener(web.Server):
    """Makes a ClientConnection for each client."""

    def __init__(self, handler: Handler, limits: Callable[[], Limits]) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.new_id = handler.new_id
        self.per_address: collections.Counter[str] = collections.Counter()
        self.limits = limits
        """As they are now; a reload changes them."""
        self._second, self._date = 0, b""
        self._repeated: dict[tuple[tuple[bytes, bytes], ...], Fields] = {}
        self.connected = 0
        self._complained = 0.0
        self._refused: set[asyncio.Transport] = set()
        # aiohttp's defaults are for one application, not for the open net (its web_protocol.py):
        # heads may take an hour, malformed requests log a traceback, bodies are decompressed without our bound.
        self._settings: dict[str, Any] = {
            "access_log": None,
            "logger": log,
            "auto_decompress": False,
            "read_bufsize": 64 * 1024,
            "lingering_time": 2.0,
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
            "max_headers": MAX_HEADERS,
        }

    def date(self, second: int) -> bytes:
        """The Date of that second, as HTTP writes it (RFC 9110 5.6.7)."""
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
        return self._date

    def fields(self, raw: tuple[tuple[bytes, bytes], ...]) -> Fields:
        """Return the headers without Content-Length; what was read out of the same ones before is remembered with them."""
        lean: list[tuple[bytes, bytes]] = []
        apart: list[tuple[bytes, bytes]] = []
        for field in raw:
            (apart if len(field[0]) in _APART_SIZES and field[0].lower() in _APART else lean).append(field)
        same = tuple(lean)
        known = self._repeated.get(same)
        if known is None:
            known = Fields(same)
            if not any(name.lower() in _VOLATILE for name, _ in same):
                if len(self._repeated) >= REPEATED:
                    self._repeated.clear()
                self._repeated[same] = known
        own = [field for field in apart if field[0].lower() != _LENGTH]
        return Fields((*same, *own), known.memo) if own else known

    def __call__(self) -> ClientConnection:
        """Make the protocol of one connection."""
        return ClientConnection(self, loop=asyncio.get_running_loop(), keepalive_timeout=self.limits().header_timeout, **self._settings)

    def refuse(self, transport: asyncio.Transport, why: str, address: str, error: ProxyError) -> None:
        """Turn a connection away, saying so as far as the kernel still takes it."""
        now = asyncio.get_running_loop().time()
        if now - self._complained >= LOG_SECONDS:
            self._complained = now
            log.warning("connections refused: %s", why, extra={"address": address})
        transport.write(_last_words(error, self.new_id()))
        if len(self._refused) < LINGERING:
            transport.set_protocol(_Refused(transport, self._refused))
        else:
            transport.set_protocol(asyncio.Protocol())
            transport.close()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's own signature
        """Close every connection."""
        for wire in list(self._refused):
            wire.close()
        await super().shutdown(timeout)

    def close_idle(self) -> None:
        """Close kept connections that are between two requests; new ones may still say what they want."""
        for connection in self.clients:
            if connection.asked and connection.idle:
                # Not `close`: it would leave the transport open, and drop what is still to come of a running request's body.
                connection.force_close()

    @property
    def busy(self) -> bool:
        """An answer is not out yet."""
        return any(connection.busy for connection in self.clients)

    @property
    def expected(self) -> bool:
        """A client has connected and not asked yet."""
        return any(not connection.asked for connection in self.clients)

    @property
    def clients(self) -> list[ClientConnection]:
        """Those that are open."""
        return cast("list[ClientConnection]", list(self._connections))
