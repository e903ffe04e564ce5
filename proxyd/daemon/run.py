"""The life of the process, in order: open, listen, serve, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

from proxyd.config.address import parse_address
from proxyd.daemon import boot
from proxyd.daemon.drain import drain
from proxyd.daemon.heartbeat import Heartbeat
from proxyd.daemon.listen import address_of, open_port, why_not
from proxyd.daemon.reload import Reloader
from proxyd.daemon.systemd import Notifier, listen_fds, watchdog_interval
from proxyd.daemon.tls import Certificate, load
from proxyd.daemon.warm import warm
from proxyd.daemon.watch import look, watch
from proxyd.flow.probes import probe
from proxyd.web.app import App
from proxyd.web.connection import Listener
from proxyd.web.ops import OpsApp

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from proxyd.clock import Clock
    from proxyd.config.schema import Config
    from proxyd.daemon.listen import Port
    from proxyd.flow.runtime import Runtime
    from proxyd.log import Log
    from proxyd.store.db import Database

log = logging.getLogger(__name__)

HANDED = ("clients", "ops")
"""Names of the sockets that systemd may hand over."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
CHECKPOINT_SECONDS = 1.0
PRUNE_SECONDS = 300.0
CUT_SECONDS = 0.5
"""How long a broken answer's last words may take."""
AGAIN_SECONDS = 10.0
"""Until a chore that failed begins anew."""
SETTLE_SECONDS = 10.0
"""How long counting and writing may take after the last exchange has ended."""


class Daemon:
    """One proxyd. `start` it, `serve` until `stop`; tests and the demo run it in their own loop."""

    def __init__(self, config: Config, folder: Path, environ: Mapping[str, str], clock: Clock, files: tuple[Path, ...] = ()) -> None:
        """`files` are what the configuration was read from just now; without them there is nothing to reload."""
        self.config = config
        self._files = files
        self._seen = look(files)
        self._folder = folder
        self._environ = environ
        self._clock = clock
        self._runtime: Runtime
        self._database: Database
        self._heartbeat: Heartbeat
        self._notifier = Notifier(environ)
        self._chores: list[asyncio.Future[None]] = []
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ports: list[Port] = []
        self._reloader: Reloader | None = None
        self._certificate: Certificate | None = None
        self.key: str | None = None
        """The key that proxyd made itself, in development and test."""
        self.url = ""
        self.ops_url = ""

    async def start(self, access: Log | None) -> None:
        """Open everything and listen; each finished exchange gets a line in `access`.

        Raises RefusedError, StoreError, OSError (an address that is in use).
        """
        try:
            handed = listen_fds(self._environ)
            feed = watchdog_interval(self._environ)
        except ValueError as error:
            raise boot.RefusedError([str(error)]) from error
        if unknown := handed.keys() - HANDED:
            raise boot.RefusedError([f"a socket was handed over as {min(unknown)!r}: FileDescriptorName= must be {' or '.join(HANDED)}"])
        listen = [address_of(handed["clients"]) if "clients" in handed else self.config.listen]
        self._database, keyring = await boot.opened(self.config, self._folder, self._environ, self._clock)
        try:
            boot.check(self.config, listen, keyring)
            if self.config.tls is not None:
                self._certificate = Certificate(load(self.config.tls, self._folder))
            self._runtime, self.key = await boot.runtime(self.config, self._database, keyring, self._clock)
        except BaseException:
            await self._database.close()
            raise
        self._heartbeat = Heartbeat(self._clock, self._runtime.metrics, self._notifier, feed)
        if access is not None:
            self._runtime.observers.append(access.access_line)
            self._runtime.gauges.append(lambda: self._runtime.metrics.log_dropped(access.writer.dropped))
        for warning in boot.shared_names(self.config, keyring):
            log.warning("%s", warning)
        self._reloadable(listen)
        runtime = self._runtime
        self._chore("the heartbeat", self._heartbeat.beat)
        self._chore("checkpoints", lambda: runtime.checkpoint(CHECKPOINT_SECONDS))
        self._chore("pruning", lambda: runtime.prune(PRUNE_SECONDS))
        self._chore("probes", lambda: probe(runtime))
        self._chore("forgetting idle limits", runtime.allowances.sweep)
        self._chore("the last use of keys", runtime.keyring.note_use)
        try:
            self.url = await self._listen(self.config.listen, App(self._runtime), handed.get("clients"), self._certificate)
            if self.config.ops.listen is not None or "ops" in handed:
                address = address_of(handed["ops"]) if "ops" in handed else str(self.config.ops.listen)
                app = OpsApp(self._runtime, address.rpartition(":")[0].strip("[]"), guarded=not parse_address(address).loopback)
                self.ops_url = await self._listen(address, app, handed.get("ops"))
        except BaseException:
            await self._close()
            raise
        self._notifier.ready(f"listening on {self.url}")
        self._runtime.spawn(warm(self._runtime))

    @staticmethod
    def settle_memory() -> None:
        """Take what start-up made out of the garbage collector's sight, and let it look seldom.

        Exchanges leave no cycles behind; collections at Python's default pace were a tenth of a request's cost.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

    async def serve(self) -> None:
        """Serve until `stop`, then drain: no new work, running exchanges finish up to `streams.drain`; then close."""
        await self._stopping.wait()
        await drain(self._runtime, self._ports[:1], self._notifier, self._hurry)
        await self._close()
        # All is written: another signal has nothing to hurry, and must not make a good end look like a death.
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if loop.remove_signal_handler(number):
                signal.signal(number, signal.SIG_IGN)

    def stop(self) -> None:
        """Begin to drain; asked a second time, end at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT stop the daemon, and SIGHUP reload it."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def _hung_up(self) -> None:
        if self._reloader is None:
            log.warning("SIGHUP: there is no configuration file to reload")
        elif not self._stopping.is_set():
            self._runtime.spawn(self._reloader.work("SIGHUP"))

    def _reloadable(self, listen: Sequence[str]) -> None:
        if self._files:
            environ, key = self._environ, self.key
            self._reloader = Reloader(self._runtime, self._notifier, self._files, environ, listen, key, self._seen, self._certificate)
            self._runtime.reload = self._reloader.reload
            reloader = self._reloader
            self._chore("the watch over the file", lambda: watch(reloader))

    def _chore(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what goes on as long as the daemon does. A bug in it is logged, and does not end it for good."""

        async def forever() -> None:
            while True:
                try:
                    await work()
                except Exception:
                    log.exception("%s failed, and begins anew in %g seconds", name, AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)

        self._chores.append(self._runtime.spawn(forever()))

    async def _listen(self, address: str, app: App, handed: socket.socket | None, certificate: Certificate | None = None) -> str:
        listener = Listener(app, lambda: self._runtime.snapshot.config.limits)
        try:
            port = await open_port(address, listener, handed, certificate.context if certificate is not None else None)
        except OSError as error:
            says, advice = why_not(address, error)
            raise OSError(error.errno, f"{address} cannot be listened on: {says}: {advice}") from error
        self._ports.append(port)
        return port.url

    async def _close(self) -> None:
        """Close in the order that loses nothing: clients, counting, connections, database."""
        for chore in self._chores:
            chore.cancel()
        for port in self._ports:
            port.close()
        await asyncio.gather(*(port.listener.shutdown(CUT_SECONDS) for port in self._ports), return_exceptions=True)
        await self._runtime.settled(SETTLE_SECONDS)
        for upstream in self._runtime.snapshot.doors.values():
            upstream.close()
        await self._database.close()
        self._heartbeat.close()
        if self._runtime.tracer is not None:
            await self._runtime.tracer.close()  # last: all that counts is on disk, and this may have to wait
        self._notifier.close()


def run(main: Callable[[], object], environ: Mapping[str, str]) -> None:
    """Run a coroutine function on uvloop where the extra `fast` is installed (PROXYD_LOOP=asyncio switches it off)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # 1024 is the usual soft limit, for the sake of select(2), which nothing here uses
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
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
