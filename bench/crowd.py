"""A crowd of streams through the daemon, each begun and then silent: the origin that serves it, in a process of its own, and its clients.

A model whose name begins with `flood` is sent without end, as fast as it is read; `fine` is answered at once, whole. The origin notes when
each connection ends, by the model's name, on the clock that all processes share (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import resource
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bench import proc
from tests.e2e.client import PATH, chat, request
from tests.origin import completion, delta, head
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_FIRST = delta("a")
_BEGUN = head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}) + b"%x\r\n%b\r\n" % (len(_FIRST), _FIRST)


_PADDING = b'data: {"choices":[],"padding":"%b"}\n\n' % (b"x" * 16_000)  # no text, which would be kept to be counted
_MORE = b"%x\r\n%b\r\n" % (len(_PADDING), _PADDING)
_WHOLE = completion("hi")
_FINE = head(200, {"content-type": "application/json", "content-length": str(len(_WHOLE))}) + _WHOLE


class _Silent(asyncio.Protocol):
    """Begins a stream for each request, and says nothing more, or much."""

    ended: dict[str, float] = {}  # noqa: RUF012 - of this process, which is the origin's alone
    poured: dict[str, int] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self._seen = b""
        self._model = ""
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if (found := _MODEL.search(self._seen)) is not None and self._seen.endswith(b"}"):
            self._model, self._seen = found[1].decode(), b""
            self._transport.write(_FINE if self._model == "fine" else _BEGUN)
            self.resume_writing()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pour()

    def _pour(self) -> None:
        if self._model.startswith("flood") and not self._full and not self._transport.is_closing():
            self._transport.write(_MORE)
            self.poured[self._model] = self.poured.get(self._model, 0) + len(_MORE)
            if not self._full:
                asyncio.get_running_loop().call_soon(self._pour)

    def eof_received(self) -> None:
        self.ended.setdefault(self._model, time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.ended.setdefault(self._model, time.monotonic())


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)  # so that what was poured is not here, but at the daemon
        server = await asyncio.get_running_loop().create_server(_Silent, sock=sock)
        pipe.send(server.sockets[0].getsockname()[1])
        while True:
            pipe.send(dict(_Silent.ended if await asyncio.to_thread(pipe.recv) == "ended" else _Silent.poured))

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

    def poured(self) -> dict[str, int]:
        """How many bytes of each flood the origin has handed over; its own buffers hold 128 KiB of that at most."""
        self.pipe.send("poured")
        return self.pipe.recv()

    def descriptors(self) -> int:
        """What the daemon has open."""
        return proc.descriptors(self.daemon.pid)


@contextlib.contextmanager
def crowd(**more: object) -> Iterator[Crowd]:
    """Start both, and end both; `more` are limits."""
    raise_limit()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory(prefix="proxyd-crowd-") as folder:
        upstream = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "max_connections": 50_000}
        limits = {"streams": 50_000, "connections_per_address": 50_000, **more}
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
