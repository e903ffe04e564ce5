"""The connections to one HTTP upstream: opened on demand, at most so many, kept for the next call while they are fresh."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import socket
import ssl
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohappyeyeballs

from proxyd.config.schema import Reuse
from proxyd.errors import ProxyError
from proxyd.upstream.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxyd.clock import Clock
    from proxyd.config.schema import Upstream
    from proxyd.upstream.connection import Call, Sink

IDLE_SECONDS = 4.0
"""Kept shorter than the shortest keep-alive in the field (uvicorn, and so vLLM: 5 s): a pooled connection that the
upstream closes while a POST is on its way is a 502 for nobody's fault."""
READ_BYTES = 64 * 1024
"""Most bytes taken from a socket at once; with the client's write buffer this bounds what one stream holds."""
EYEBALLS_SECONDS = 0.25
"""RFC 8305's recommended delay before the next address is tried beside the first."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""What a socket fails with when this machine has no more of something: no fault of any upstream."""

AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Pool:
    """Connections to the host of one upstream. Close it when the upstream leaves the configuration."""

    def __init__(self, spec: Upstream, base_url: str, clock: Clock) -> None:
        url = urlsplit(base_url)
        self.host = url.hostname or ""
        self.tls = url.scheme == "https"
        self.port = url.port or (443 if self.tls else 80)
        self._clock = clock
        self._keep = spec.reuse is not Reuse.NEVER
        self._limit = spec.max_connections
        self.context = ssl.create_default_context() if self.tls else None
        """TLS settings; None for plain HTTP."""
        self._address = _literal(self.host, self.port)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._idle: deque[Connection] = deque()
        self._members: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lookup: asyncio.Future[Sequence[AddrInfo]] | None = None
        self._resolver: ThreadPoolExecutor | None = None
        self.closed = False

    async def call(self, head: bytes, body: bytes, sink: Sink, timeout: float | None, *, fresh: bool = False) -> Call:  # noqa: ASYNC109
        """Send a request on a pooled connection, or on a new one (always, if `fresh`), within `timeout` seconds.

        Raises ProxyError: upstream_dns, upstream_connect, upstream_connect_timeout or upstream_tls, and overloaded; nothing was
        sent then.
        """
        connection = None if fresh else self._take()
        if connection is None:
            try:
                async with asyncio.timeout(timeout):
                    connection = await self._connect(fresh=fresh)
            except TimeoutError:
                raise ProxyError("upstream_connect_timeout", "The upstream could not be connected to in time.") from None
        connection.send(head, body, sink)
        return connection

    def close(self) -> None:
        """Close what is idle; running calls finish."""
        self.closed = True
        while self._idle:
            self._idle.pop().discard()
        if self._resolver is not None:
            self._resolver.shutdown(wait=False)  # who looks up now goes on
            self._resolver = None

    # Taking and giving back.

    def _take(self) -> Connection | None:
        """Take the freshest idle connection, discarding stale ones."""
        horizon = self._clock.monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > horizon:
                connection.reused = True
                return connection
            connection.discard()
        return None

    def _released(self, connection: Connection, alive: bool) -> None:  # noqa: FBT001
        """Take a connection back after a call, or note that it is gone."""
        if not alive:
            self._members.discard(connection)
            with contextlib.suppress(ValueError):
                self._idle.remove(connection)
            self._wake()
        elif not self._keep or self.closed:
            connection.discard()
        else:
            connection.idle_since = self._clock.monotonic()
            self._idle.append(connection)
            while self._idle and self._idle[0].idle_since <= connection.idle_since - IDLE_SECONDS:
                self._idle.popleft().discard()
            self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    # Opening.

    async def _connect(self, *, fresh: bool) -> Connection:
        while self._connecting + len(self._members) >= self._limit:
            if (connection := self._take()) is not None:
                if not fresh:
                    return connection
                connection.discard()  # its place is free when it is gone
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # the place was ours and is not needed: pass it on
                raise
        self._connecting += 1
        try:
            connection = await _dial(self, lambda: Connection(self._buffer, self._released))
            self._members.add(connection)
        finally:
            self._connecting -= 1
            self._wake()
        return connection

    async def resolved(self) -> Sequence[AddrInfo]:
        """Find the host's addresses; those who ask at the same time share one look-up. Raises OSError.

        In a thread of its own: a resolver that does not answer holds up neither other upstreams nor the counting of tokens.
        """
        if self._address is not None:  # written as an address: no resolver is asked
            return self._address
        if self._lookup is None:
            if self._resolver is None:
                self._resolver = ThreadPoolExecutor(1, f"resolver of {self.host}")
            ask = functools.partial(socket.getaddrinfo, self.host, self.port, type=socket.SOCK_STREAM)
            lookup: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(self._resolver, ask)
            self._lookup = lookup
            lookup.add_done_callback(self._looked_up)
        return await asyncio.shield(self._lookup)

    def _looked_up(self, lookup: asyncio.Future[Sequence[AddrInfo]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # whoever waited was told; perhaps nobody waits any more


async def _dial(pool: Pool, protocol: Callable[[], Connection]) -> Connection:
    """Resolve, connect and shake hands. Foreign errors become ours here and nowhere else."""
    loop = asyncio.get_running_loop()
    try:
        infos = await pool.resolved()
    except OSError as error:
        raise ProxyError("upstream_dns", "The upstream's host name could not be resolved.") from error
    try:
        sock = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=EYEBALLS_SECONDS if len(infos) > 1 else None)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise ProxyError("overloaded", "proxyd has no socket left for the upstream.", retry_after=1) from error
        raise ProxyError("upstream_connect", "The upstream could not be connected to.") from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        host = pool.host if pool.context else None
        _, connection = await loop.create_connection(protocol, sock=sock, ssl=pool.context, server_hostname=host)
    except ssl.SSLError as error:
        sock.close()
        raise ProxyError("upstream_tls", f"The TLS handshake with the upstream failed ({error.reason or 'see the log'}).") from error
    except OSError as error:
        sock.close()
        raise ProxyError("upstream_connect", "The upstream broke the connection while it was being opened.") from error
    except BaseException:
        sock.close()
        raise
    connection.sock = sock
    return connection


def _literal(host: str, port: int) -> Sequence[AddrInfo] | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))]
