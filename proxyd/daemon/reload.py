"""A changed file takes effect without a stop: it is validated whole, everything new is built beside what runs, one reference is swapped.

The law of this file: whatever goes wrong before the swap leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyd.config.diff import Changes, applied, compare
from proxyd.config.load import examine_file
from proxyd.config.mistakes import ConfigError
from proxyd.daemon import boot
from proxyd.daemon.tls import load
from proxyd.daemon.warm import warm
from proxyd.daemon.watch import look
from proxyd.flow.runtime import Reloaded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from proxyd.config.load import Loaded
    from proxyd.config.schema import Config
    from proxyd.daemon.systemd import Notifier
    from proxyd.daemon.tls import Certificate
    from proxyd.daemon.watch import State
    from proxyd.flow.runtime import Runtime, Snapshot

TOLD = 5
"""Mistakes that go into one log line; the answer to who asked has them all."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reloader:
    """Reloads one daemon's configuration; one at a time."""

    runtime: Runtime
    notifier: Notifier
    files: tuple[Path, ...]
    """What the configuration was read from: the file, the `.env` beside it, the files that it points at."""
    environ: Mapping[str, str]
    listen: Sequence[str]
    """Where the clients' port really is."""
    made_key: str | None
    """The key that proxyd made itself at start."""
    seen: dict[Path, State | None]
    """How those were when they were last taken or refused, as far as they went."""
    certificate: Certificate | None
    """Of the clients' port, where that speaks TLS."""
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def file(self) -> Path:
        """The configuration."""
        return self.files[0]

    async def reload(self, cause: str) -> Reloaded:
        """Take the file as it is now. `cause` is for the log. Raises nothing for a bad one: the answer says what is wrong."""
        async with self._one:
            clock = self.runtime.clock
            self.notifier.reloading(int(clock.monotonic() * 1e6))
            try:
                seen = await asyncio.to_thread(look, self.files)  # before they are read: what changes meanwhile is read again
                loaded, changes, fresh = await self._prepared()
            except ConfigError as error:
                self.seen = seen
                outcome = Reloaded(clock.now_us(), problems=tuple(str(mistake) for mistake in error.mistakes))
            except boot.RefusedError as error:
                self.seen = seen
                outcome = Reloaded(clock.now_us(), problems=tuple(f"{self.file}: {reason}" for reason in error.reasons))
            except BaseException:  # who asked has left: nothing was changed, and the file is still to be taken
                self.notifier.ready()
                raise
            else:
                self._swap(fresh)
                self.files = loaded.files
                self.seen = {path: seen.get(path, state) for path, state in look(loaded.files).items()}
                shared = boot.shared_names(fresh.config, self.runtime.keyring)
                outcome = Reloaded(clock.now_us(), changes, warnings=(*(str(warning) for warning in loaded.warnings), *shared))
            self._tell(outcome, cause)
            return outcome

    async def work(self, cause: str) -> None:
        """Reload for nobody who waits for the outcome."""
        await self.reload(cause)

    async def _prepared(self) -> tuple[Loaded, Changes, Snapshot]:
        """Do everything that can fail. Reading and building take long (thousands of routes, a CA bundle): no stream waits for them."""
        old, clock = self.runtime.snapshot, self.runtime.clock
        loaded, config, changes = await asyncio.to_thread(self._read, old.config)
        boot.check(config, self.listen, self.runtime.keyring)
        if self.made_key is None and boot.make_key(config, self.runtime.keyring) is not None:
            raise boot.RefusedError(["auth.keys names no key any more, and one is made at start only: restart, or write auth: none"])
        # Read again though its path be the same: that is how certificates are renewed.
        tls = (
            await asyncio.to_thread(load, config.tls, self.file.parent) if config.tls is not None and self.certificate is not None else None
        )
        fresh = await asyncio.to_thread(boot.snapshot, config, self.made_key, clock, old)
        if self.certificate is not None and tls is not None:
            self.certificate.renew(tls)  # nothing can fail any more
        return loaded, changes, fresh

    def _read(self, old: Config) -> tuple[Loaded, Config, Changes]:
        """The file, what of it may run, and what differs."""
        loaded = examine_file(self.file, self.environ)
        return loaded, applied(old, loaded.config), compare(old, loaded.config)

    def _swap(self, fresh: Snapshot) -> None:
        """From here on nothing can fail. Running exchanges keep their snapshot, and with it the doors that they go through."""
        runtime, old = self.runtime, self.runtime.snapshot
        runtime.snapshot = fresh
        runtime.loaded_at = runtime.clock.now_us()
        for name, door in old.doors.items():
            if fresh.doors.get(name) is not door:
                door.close()
        storage = fresh.config.storage
        runtime.database.configure(storage.durability, storage.on_failure)
        boot.know(runtime)
        runtime.allowances.renew(fresh)
        runtime.spawn(warm(runtime))

    def _tell(self, outcome: Reloaded, cause: str) -> None:
        runtime = self.runtime
        runtime.reloaded = outcome
        runtime.metrics.reload(outcome.ok)
        if outcome.ok:
            log.info("the configuration was reloaded (%s): %s", cause, outcome.message)
            for warning in outcome.warnings:
                log.warning("%s", warning)
        else:
            more = len(outcome.problems) - TOLD
            text = "; ".join(outcome.problems[:TOLD]) + (f"; and {more} more" if more > 0 else "")
            log.error("the configuration was not reloaded (%s), the old one stays: %s", cause, text)
        self.notifier.ready(f"{'reloaded' if outcome.ok else 'a bad configuration file was not taken'}: {outcome.message}")
