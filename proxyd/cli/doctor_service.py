"""The doctor's look at proxyd itself: its database, its ports, and the daemon if one runs. Not a command itself."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import proxyd
from proxyd.cli import Failed, ops
from proxyd.cli.finding import Finding, fail, ok, warn
from proxyd.config.address import parse_address
from proxyd.daemon.listen import why_not
from proxyd.store import upkeep
from proxyd.store.file import StoreError, migrations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.config.schema import Config

LEAST, COMFORTABLE = 100_000_000, 1_000_000_000
"""Bytes free on the database's disk, below which it is about to fail, and below which it is time to look."""
CHECKED_WHOLE = 2_000_000_000
"""Bytes up to which every page of a database is read (some ten seconds); beyond, `proxyd db check` does it."""
LONG_WAL = 512_000_000
"""Bytes of a -wal file that is not taken into its database: a reader does not end."""


@dataclass(frozen=True, slots=True)
class Running:
    """The daemon of a configuration, if one answers."""

    state: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def pid(self) -> int | None:
        """Its process, if it is one of this machine that can be seen."""
        pid = self.state.get("pid")
        return pid if isinstance(pid, int) and Path(f"/proc/{pid}").exists() else None

    @property
    def database(self) -> Path | None:
        """Where it keeps its ledger."""
        place = self.state.get("database")
        return Path(place) if isinstance(place, str) else None


def running(config: Config) -> Running:
    """Ask the daemon how it is."""
    about = "daemon"
    try:
        state = ops.ask(config, "GET", "/state")
        health, ready = (ops.call(str(config.ops.listen), "GET", path).document for path in ("/health", "/ready"))
    except ops.Unreachable:
        return Running(findings=(ok(about, "none runs with this configuration now"),))
    except Failed as error:
        return Running(findings=(fail(about, str(error), "set PROXYD_ADMIN_KEY, or look at what runs there: ss -ltnp"),))
    found = []
    if health.get("status") != "ok":
        found.append(fail(about, f"it says of itself: {health.get('status')}", "look at its log: journalctl -u proxyd -p warning"))
    if ready.get("status") != "ready":
        advice = "look at its log: journalctl -u proxyd -p warning"
        found.append(fail(about, f"takes no traffic: {', '.join(map(str, ready.get('reasons', ['it does not say why'])))}", advice))
    version = state.get("version")
    if version != proxyd.__version__:
        found.append(warn(about, f"runs {version}, and {proxyd.__version__} is installed", "restart it: systemctl restart proxyd"))
    for name, upstream in sorted(state.get("upstreams", {}).items()):
        if upstream.get("state") != "closed":
            found.append(warn(f"upstream {name}", f"the running daemon has its breaker {upstream.get('state')}", "see what it says above"))
    return Running(state, tuple(found) or (ok(about, f"runs, and takes traffic; {state.get('active', 0)} exchanges"),))


def ports(config: Config, daemon: Running) -> Iterable[Finding]:
    """Whether the addresses can be listened on, or proxyd does so already."""
    for about, text in (("listen", config.listen), ("ops.listen", config.ops.listen)):
        if text is not None:
            yield _port(about, text, serving=bool(daemon.state))


def _port(about: str, text: str, *, serving: bool) -> Finding:
    address = parse_address(text)
    if address.path is not None:
        folder = Path(address.path).parent
        missing = fail(about, f"the folder {folder} of the socket does not exist", "create it; in a unit RuntimeDirectory=proxyd does")
        return ok(about, text) if folder.is_dir() else missing
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and (serving or _ours(text)):
            return ok(about, f"{text}, where proxyd listens")
        says, advice = why_not(text, error)
        return fail(about, f"{text}: {says}", advice)
    return ok(about, f"{text} is free")


def _ours(text: str) -> bool:
    """Whether proxyd answers there: it gives every answer an id of its own making."""
    with contextlib.suppress(Failed):
        return ops.call(text, "GET", "/health").document.get("status") is not None
    return False


def database(path: Path, daemon: Running) -> Iterable[Finding]:
    """Whether the database is there, sound, private, and has room."""
    about, folder = "database", path.absolute().parent
    if not folder.is_dir():
        yield fail(about, f"the folder {folder} does not exist", "create it, or change storage.url")
        return
    if daemon.database is not None and daemon.database != path.resolve():
        advice = "is this the configuration that the daemon was started with? `storage.url` waits for a restart"
        yield warn(about, f"the running daemon writes {daemon.database}, not {path}", advice)
    yield _room(folder)
    if not path.exists():
        if os.access(folder, os.W_OK | os.X_OK):
            yield ok(about, f"{path} is made at the first start")
        else:
            yield fail(about, f"{folder} cannot be written by this user", "run doctor as proxyd's user, or make the folder its own")
        return
    if path.is_file():
        yield from _private(path)
    yield from _sound(path)


def _room(folder: Path) -> Finding:
    free = upkeep.free_space(folder)
    says, advice = f"{free / 1e9:,.1f} GB free in {folder}", "make room; `proxyd db prune --older-than 400d` and `proxyd db vacuum` help"
    if free < LEAST:
        return fail("disk", says, advice)
    return warn("disk", says, advice) if free < COMFORTABLE else ok("disk", says)


def _private(path: Path) -> Iterable[Finding]:
    files = [file for file in (path, path.with_name(path.name + "-wal")) if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077]
    if files:
        names = " ".join(map(str, files))
        mode = stat.S_IMODE(files[0].stat().st_mode)
        yield warn("database", f"others may read {files[0]} (mode {mode:o}); it holds who asked what", f"chmod 600 {names}")


def _sound(path: Path) -> Iterable[Finding]:
    about = "database"
    restore = "stop proxyd, keep a copy of the file, restore a backup (systemd/README.md)"
    try:
        facts = upkeep.facts(path)
        problems = upkeep.check(path) if facts.size <= CHECKED_WHOLE else []
    except StoreError as error:
        yield fail(about, str(error), restore if "damaged" in str(error) else "mend that, or name another file in storage.url")
        return
    if problems:
        yield fail(about, f"{path} is damaged: {problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else ""), restore)
        return
    if facts.wal > LONG_WAL:
        yield warn(about, f"{facts.wal / 1e6:,.0f} MB wait in {path.name}-wal", "some program keeps the database open for reading: end it")
    checked = "" if facts.size <= CHECKED_WHOLE else "; too large to be checked here: proxyd db check"
    older = "" if facts.schema == len(migrations()) else f"; schema {facts.schema} is brought up to {len(migrations())} at the next start"
    yield ok(about, f"{path}: {facts.rows.get('usage_events', 0):,} usage rows, {facts.size / 1e6:,.1f} MB, sound{older}{checked}")
