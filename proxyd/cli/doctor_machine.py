"""The doctor's look at the machine: the interpreter, what is installed, descriptors, the clock, the unit. Not a command itself."""

from __future__ import annotations

import importlib.util
import platform
import resource
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.cli.finding import Finding, fail, ok, warn
from proxyd.cli.unit import served, settings_of
from proxyd.config import units
from proxyd.store import upkeep

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxyd.config.schema import Config

SPARE = 200
"""Descriptors for everything but clients and upstreams."""
SKEW = 60.0
"""Seconds that a clock may be off: signed tokens are refused beyond it."""
BUILT = 1_760_000_000.0
"""Seconds since the epoch: an earlier clock is wrong (2025-10-09)."""
_EXTRAS = (
    ("fast", "uvloop", "each request costs 10 to 25 % more"),
    ("tokens", "tiktoken", "tokens that no upstream reports are estimated, not counted"),
    ("prices", "genai_prices", "costs are known only where a route has a price"),
    ("compress", "brotli", "requests compressed with br or zstd are refused"),
)


def installed() -> list[Finding]:
    """The interpreter, aiohttp's parser, SQLite and the extras."""
    from aiohttp import http_parser  # noqa: PLC0415 - `proxyd doctor --help` imports no server

    found = [ok("python", f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}")]
    if http_parser.HttpRequestParser.__module__.endswith("_http_parser"):
        found.append(ok("aiohttp", "its C parser is there"))
    else:
        advice = "unset AIOHTTP_NO_EXTENSIONS, or install aiohttp from a wheel: proxyd does not start with the lenient Python parser"
        found.append(fail("aiohttp", "it runs without its C parser", advice))
    version, affected = upkeep.library()
    if affected:
        advice = (
            "proxyd writes by one connection and is safe; let no other program write into its database (a sqlite3 shell, Litestream), "
            "or use a Python with SQLite 3.51.3 or newer"
        )
        found.append(warn("sqlite", f"{version} has the WAL-reset bug", advice))
    else:
        found.append(ok("sqlite", version))
    for extra, module, lacking in _EXTRAS:
        if importlib.util.find_spec(module) is not None:
            found.append(ok(f"extra {extra}", f"{module} is installed"))
        else:
            found.append(warn(f"extra {extra}", f"not installed: {lacking}", f"pip install 'proxyd[{extra}]'"))
    return found


def descriptors(config: Config, pid: int | None) -> Finding:
    """Whether as many streams as may be can be: each takes a connection from the client and one to its upstream."""
    limit, whose = _limit(pid)
    wanted = 2 * config.limits.streams + SPARE
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return ok("descriptors", f"{limit if limit >= 0 else 'no limit'} for {whose}")
    advice = f"LimitNOFILE={wanted} in the unit, `ulimit -n {wanted}` in a shell, or a lower limits.streams"
    says = f"{limit} for {whose}: enough for {max(0, limit - SPARE) // 2} streams, and limits.streams is {config.limits.streams}"
    return warn("descriptors", says, advice)


def _limit(pid: int | None) -> tuple[int, str]:
    if pid is not None:
        try:
            lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
            words = next(line for line in lines if line.startswith("Max open files")).split()
            return resource.RLIM_INFINITY if words[3] == "unlimited" else int(words[3]), "the running daemon"
        except (OSError, StopIteration, ValueError):
            pass
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0], "this shell"


def clock(now: float, dates: Sequence[float]) -> Finding:
    """Hold this machine's clock (seconds since the epoch) against those of the upstreams."""
    advice = "let it be set by the network: timedatectl set-ntp true. Days in the ledger, key expiry and signed tokens go by it"
    if now < BUILT:
        return fail("clock", "it stands before this proxyd was made", advice)
    if not dates:
        return ok("clock", "no upstream told the time to compare with")
    off = now - statistics.median(dates)
    if abs(off) > SKEW:
        return warn("clock", f"it is {abs(off):,.0f} seconds {'ahead of' if off > 0 else 'behind'} the upstreams'", advice)
    return ok("clock", "agrees with the upstreams'")


def unit(place: Path, config: Config, config_file: Path) -> Iterable[Finding]:
    """What a systemd unit lacks for this configuration; drop-ins are read too. Nothing where there is no unit."""
    settings = settings_of(place)
    if settings is None:
        return
    about, well = f"unit {place.name}", True
    for says, advice in _unit_problems(settings, config, config_file):
        well = False
        yield warn(about, says, advice)
    if well:
        yield ok(about, "notifies, is watched, and waits for the drain")


def _unit_problems(settings: dict[str, str], config: Config, config_file: Path) -> Iterable[tuple[str, str]]:
    if settings.get("type") not in {"notify", "notify-reload"}:
        yield "systemd does not know when proxyd is ready", "Type=notify"
    if not settings.get("watchdogsec") or settings["watchdogsec"] == "0":
        yield "a daemon that hangs is not restarted", "WatchdogSec=30"
    stop, drain = _span(settings.get("timeoutstopsec", "90")), config.streams.drain
    if stop is not None and stop < drain + 30:
        yield f"it is killed {stop:g} s after the stop began, and streams.drain alone is {drain:g} s", f"TimeoutStopSec={drain + 60:g}"
    if settings.get("dynamicuser", "no") not in {"yes", "true", "1", "on"} and settings.get("user", "root") == "root":
        yield "it runs as root", "DynamicUser=yes, with StateDirectory=proxyd"
    if not settings.get("statedirectory") and not config.storage.url.startswith("sqlite:////"):
        yield "the database has no folder of its own", "StateDirectory=proxyd"
    files = settings.get("limitnofile", "").split(":")[0]
    if files.isdigit() and int(files) < 2 * config.limits.streams + SPARE:
        yield (
            f"LimitNOFILE={files} is too low for limits.streams ({config.limits.streams})",
            f"LimitNOFILE={2 * config.limits.streams + SPARE}",
        )
    words, named = settings.get("execstart", "").split(), served(settings)
    if named is not None and named.resolve() != config_file.resolve():
        yield f"it serves {named}, and this is {config_file}", f"proxyd doctor -c {named}"
    if words and not Path(words[0].lstrip("-@:+!")).is_file():
        yield f"there is no {words[0]}", "install proxyd there, or change ExecStart="


def _span(text: str) -> float | None:
    """Seconds of a systemd time span; None for one that has no end or is written in words that are not known here."""
    try:
        return float(text) if text.replace(".", "").isdigit() else sum(units.duration(part) for part in text.replace("min", "m").split())
    except ValueError:
        return None
