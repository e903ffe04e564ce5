"""A crowd of streams through the daemon, each begun and then silent: the origin that serves it, in a process of its own, and its clients.

The origin notes when each connection ends, by the model's name, on the clock that all processes share (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.client import chat, request
from tests.origin import delta, head
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

PATH = "/v1/chat/completions"
_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_FIRST = delta("a")
_BEGUN = head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}) + b"%x\r\n%b\r\n" % (len(_FIRST), _FIRST)


class _Silent(asyncio.Protocol):
    """Begins a stream for each request, and says nothing more."""

    ended: dict[str, float] = {}  # noqa: RUF012 - of this process, which is the origin's alone

    def __init__(self) -> None:
        self._seen = b""
        self._model = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if (found := _MODEL.search(self._seen)) is not None and self._seen.endswith(b"}"):
            self._model, self._seen = found[1].decode(), b""
            self._transport.write(_BEGUN)  # type: ignore[attr-defined]

    def eof_received(self) -> None:
        self.ended.setdefault(self._model, time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.ended.setdefault(self._model, time.monotonic())


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Silent, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv) == "ended":
            pipe.send(dict(_Silent.ended))

    raise_limit()
    with contextlib.suppress(EOFError):
        asyncio.run(main())


def raise_limit() -> None:
    """Let this process have as many descriptors as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass
class Crowd:
    """A daemon, the origin behind it, and streams that are open."""

    daemon: Daemon
    pipe: Connection
    origin: str
    direct: bool = False
    """Streams are opened at the origin itself: what the measuring costs."""

    async def stream(self, name: str) -> asyncio.StreamWriter:
        """Open a stream, and return once its first event is there."""
        url = self.origin if self.direct else self.daemon.url
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
        body = b'{"model":"%b","stream":true,"messages":%b}' % (name.encode(), str(chat("")["messages"]).replace("'", '"').encode())
        writer.write(request("POST", PATH, body))
        await reader.readuntil(_FIRST)
        return writer

    async def streams(self, names: list[str], at_once: int = 50) -> list[asyncio.StreamWriter]:
        """Open many."""
        found: list[asyncio.StreamWriter] = []
        for start in range(0, len(names), at_once):
            found += await asyncio.gather(*(self.stream(name) for name in names[start : start + at_once]))
        return found

    def ended(self) -> dict[str, float]:
        """When each stream ended at the origin."""
        self.pipe.send("ended")
        return self.pipe.recv()

    def descriptors(self) -> int:
        """What the daemon has open."""
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))


@contextlib.contextmanager
def crowd() -> Iterator[Crowd]:
    """Start both, and end both."""
    raise_limit()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory(prefix="proxyd-crowd-") as folder:
        upstream = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "max_connections": 50_000}
        limits = {"streams": 50_000, "connections_per_address": 50_000}
        config = settings(upstreams={"origin": upstream}, models={"*": "origin"}, limits=limits, streams={"ping": "off"})
        daemon = Daemon(Path(folder), config).start()
        with contextlib.suppress(PermissionError, ValueError):  # as a unit's LimitNOFILE would
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (65536, 65536))
        try:
            yield Crowd(daemon, ours, f"http://127.0.0.1:{port}")
        finally:
            daemon.kill()
            ours.close()
            process.terminate()
            process.join()
