"""An upstream reached over HTTP: turns an ask into a request head, and hands it to the pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec.structs import replace

from proxyd.config.schema import Reuse
from proxyd.errors import ProxyError
from proxyd.upstream import kinds
from proxyd.upstream.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.clock import Clock
    from proxyd.config.schema import Upstream
    from proxyd.model import Endpoint
    from proxyd.upstream.connection import Call, Sink


class HttpUpstream:
    """One upstream of the configuration with its connections."""

    def __init__(self, spec: Upstream, clock: Clock) -> None:
        url = kinds.base_url(spec)
        self.spec = spec
        self._traits = kinds.traits(spec)
        self._base = kinds.base_path(url)
        self._url, self._clock = url, clock
        self._pool = Pool(spec, url, clock)
        # RFC 9112 3.2: the authority as the URL has it, without user information (the configuration refuses that).
        lines = [b"host: " + urlsplit(url).netloc.encode("idna" if not url.isascii() else "ascii")]
        if spec.api_key is not None:
            lines.append(b": ".join(self._traits.credential(spec.api_key)))
        self._fixed = b"\r\n".join(lines) + b"\r\n"

    async def call(
        self, endpoint: Endpoint, model: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, sink: Sink, *, fresh: bool = False
    ) -> Call:
        """Send the request; what comes back is pushed into `sink`. Headers must have passed `wire.headers`.

        Raises ProxyError (upstream_dns, upstream_connect, upstream_tls) when nothing was sent.
        """
        target = self._traits.path(self.spec, self._base, endpoint, model)
        extra = b"".join([b"%b: %b\r\n" % header for header in headers])
        head = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (target.encode("ascii"), self._fixed, extra, len(body))
        return await self._pool.call(head, body, sink, self.spec.timeouts.connect, fresh=fresh)

    async def probe(self, path: str | None) -> int:
        """Ask for a path of the host, or for the list of models, on a connection of its own; returns the status.

        Beside the pool, so that one whose every connection is busy does not look dead. Raises ProxyError when no status comes.
        """
        target = path if path is not None else kinds.models_path(self.spec)
        pool = Pool(replace(self.spec, reuse=Reuse.NEVER), self._url, self._clock)
        sink, head = _Status(), b"GET %b HTTP/1.1\r\n%b\r\n" % (target.encode("ascii"), self._fixed)
        call = None
        try:
            call = await pool.call(head, b"", sink, self.spec.timeouts.connect)
            return await sink.told
        finally:
            if call is not None:
                call.close()
            pool.close()

    def close(self) -> None:
        """Close idle connections; running calls finish."""
        self._pool.close()


class _Status:
    """The sink of a probe: only the status counts."""

    def __init__(self) -> None:
        self.told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:  # noqa: ARG002 - a sink's shape
        if not self.told.done():
            self.told.set_result(status)

    def body(self, data: bytes) -> None:
        """Not needed."""

    def end(self, failure: ProxyError | None) -> None:
        if not self.told.done():
            self.told.set_exception(failure or ProxyError("upstream_bad_response", "The upstream's answer has no status."))
