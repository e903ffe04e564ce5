"""The life of the process, in order: open, listen, serve, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.daemon import boot
from proxyd.errors import ProxyError
from proxyd.web.app import App
from proxyd.web.connection import Listener
from proxyd.web.ops import OpsApp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxyd.clock import Clock
    from proxyd.config.schema import Config
    from proxyd.flow.runtime import Runtime
    from proxyd.model import Ending
    from proxyd.store.db import Database

log = logging.getLogger(__name__)

BACKLOG = 128
"""Connections the kernel holds before they are accepted. A longer queue melts the loop when descriptors run out (cpython#151615)."""
CHECKPOINT_SECONDS = 1.0
PRUNE_SECONDS = 300.0
SETTLE_SECONDS = 10.0
"""How long counting and writing may take after the last exchange has ended."""


class Daemon:
    """One proxyd. `start` it, `serve` until `stop`; tests and the demo run it in their own loop."""

    def __init__(self, config: Config, folder: Path, environ: Mapping[str, str], clock: Clock) -> None:
        self.config = config
        self._folder = folder
        self._environ = environ
        self._clock = clock
        self._runtime: Runtime
        self._database: Database
        self._chores: list[asyncio.Future[None]] = []
        self._stopping = asyncio.Event()
        self._stops = 0
        self._servers: list[asyncio.Server] = []
        self._listeners: list[Listener] = []
        self._sockets: list[Path] = []
        self.key: str | None = None
        """The key that proxyd made itself, in development and test."""
        self.url = ""
        self.ops_url = ""

    async def start(self, access_line: Callable[[Ending], None] | None) -> None:
        """Open everything and listen; each finished exchange is told to `access_line`.

        Raises RefusedError, StoreError, OSError (an address that is in use).
        """
        self._runtime, self._database, self.key = await boot.runtime(self.config, self._folder, self._environ, self._clock)
        if access_line is not None:
            self._runtime.observers.append(access_line)
        self._chores = [
            self._runtime.spawn(self._runtime.checkpoint(CHECKPOINT_SECONDS)),
            self._runtime.spawn(self._runtime.prune(PRUNE_SECONDS)),
        ]
        try:
            self.url = await self._listen(self.config.listen, App(self._runtime))
            if self.config.ops.listen is not None:
                host = self.config.ops.listen.rpartition(":")[0].strip("[]")
                self.ops_url = await self._listen(self.config.ops.listen, OpsApp(self._runtime, host))
        except BaseException:
            await self._close()
            raise

    async def serve(self) -> None:
        """Serve until `stop`, then drain: no new work, running exchanges finish up to `streams.drain`; then close."""
        await self._stopping.wait()
        runtime = self._runtime
        runtime.draining = True
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.pre_shutdown()
        deadline = self._clock.monotonic() + self.config.streams.drain
        while runtime.active and self._stops < 2 and self._clock.monotonic() < deadline:  # noqa: ASYNC110 - three things end this
            await asyncio.sleep(0.02)
        for ex in list(runtime.active.values()):
            if ex.answer is not None:
                ex.answer.fail(ProxyError("draining", "proxyd shut down before the answer was complete."))
        await self._close()

    def stop(self) -> None:
        """Begin to drain; asked a second time, end at once."""
        self._stops += 1
        self._stopping.set()

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT stop the daemon."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    async def _listen(self, address: str, app: App) -> str:
        limits = self.config.limits
        listener = Listener(app, lambda: limits.connections_per_address, limits.header_timeout)
        self._listeners.append(listener)
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            _unlink_stale(path)
            server = await loop.create_unix_server(listener, str(path), backlog=BACKLOG)
            self._sockets.append(path)
            self._servers.append(server)
            return address
        host, _, port = address.rpartition(":")
        server = await loop.create_server(listener, host.strip("[]") or None, int(port), backlog=BACKLOG, reuse_address=True)
        self._servers.append(server)
        bound = server.sockets[0].getsockname()
        return f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"

    async def _close(self) -> None:
        """Close in the order that loses nothing: clients, counting, connections, database."""
        for server in self._servers:
            server.close()
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*(listener.shutdown(1.0) for listener in self._listeners), return_exceptions=True)
        await self._runtime.settled(SETTLE_SECONDS)
        for upstream in self._runtime.doors.values():
            upstream.close()
        await self._database.close()
        for path in self._sockets:
            with contextlib.suppress(OSError):
                path.unlink()


def _unlink_stale(path: Path) -> None:
    """Remove the socket file that an earlier run left; anything else at that path stays, and binding says so."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def run(main: Callable[[], object], environ: Mapping[str, str]) -> None:
    """Run a coroutine function on uvloop where the extra `fast` is installed (PROXYD_LOOP=asyncio switches it off)."""
    factory = None
    if environ.get("PROXYD_LOOP", "") != "asyncio":
        with contextlib.suppress(ImportError):
            import uvloop  # noqa: PLC0415 - an extra

            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())  # type: ignore[arg-type]


def environment() -> Mapping[str, str]:
    """The process's environment; read here and nowhere below."""
    return os.environ
