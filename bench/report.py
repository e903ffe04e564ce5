"""The tables, as text or Markdown, and the targets that proxyd is held to."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.scenes import Board

MAIN = "proxyd strict"
"""The contestant that the targets are about: all accounting on, each row on disk before the client sees the end."""
BASE = "nginx"
DIRECT = "direct"

Row = list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the names of the columns, and the rows."""

    title: str
    columns: Row
    rows: list[Row]


def _less(own: float, other: float) -> float:
    return own - other


def _ratio(own: float, other: float) -> float:
    return own / other


def _shown(value: float | None, form: str = "{:,.0f}") -> str:
    return "–" if value is None else form.format(value)


def _added(board: Board, scene: str, name: str, key: str) -> str:
    """Show what the proxy adds, in microseconds; of the direct row, what there is without a proxy."""
    if name == DIRECT:
        return f"({_shown(board.median(scene, name, key))})"
    return _shown(board.against(scene, name, key, DIRECT, _less))


def _cpu(board: Board, scene: str, name: str) -> Row:
    if name == DIRECT:
        return ["–", "–"]
    times = board.against(scene, name, "cpu", BASE, _ratio)
    return [_shown(board.median(scene, name, "cpu"), "{:,.1f}"), _shown(times, "{:.1f}")]


def _unary(board: Board) -> Table:
    rows = []
    for name in board.rounds["unary"]:
        added = [_added(board, "unary", name, key) for key in ("p50", "p99", "ttft_p50", "ttft_p99")]
        opened = _shown(board.median("unary", name, "connections_per_1000"), "{:,.1f}")
        rows.append([name, _shown(board.median("unary", name, "per_second")), *_cpu(board, "unary", name), *added, opened])
    columns = [
        "proxy",
        "requests/s",
        "CPU µs/request",
        "× nginx",
        "added p50 µs",
        "added p99 µs",
        "TTFT +p50 µs",
        "TTFT +p99 µs",
        "upstream connections per 1,000",
    ]
    return Table("Requests: throughput and CPU at 32 connections, latency and time to first token at one", columns, rows)


def _streams(board: Board, scene: str) -> Table:
    rows = []
    for name in board.rounds[scene]:
        added = [_added(board, scene, name, key) for key in ("p50", "p99")]
        steady = "" if not board.median(scene, name, "ended_early") else " (not steady)"
        rows.append([name + steady, _shown(board.median(scene, name, "per_second")), *_cpu(board, scene, name), *added])
    count, _, rate = scene.partition("×")
    title = f"Streams: {int(count):,} at once, each {rate.removesuffix('/s')} events a second"
    return Table(title, ["proxy", "events/s", "CPU µs/event", "× nginx", "added p50 µs", "added p99 µs"], rows)


def _memory(board: Board) -> Table:
    rows = []
    for name, rounds in board.rounds["memory"].items():
        figures = rounds[0]
        stream = f"{figures['stream_kb']:.1f} (of {figures['held']:,.0f})"
        after = f"{figures['after_mb']:.1f} (after {figures['many']:,.0f})"
        rows.append([name, f"{figures['idle_mb']:.1f}", f"{figures['warm_mb']:.1f}", stream, after])
    return Table("Memory (resident)", ["proxy", "idle MB", "warm MB", "kB per idle stream", "after requests MB"], rows)


def _startup(board: Board) -> Table:
    rows = [[name, _shown(board.median("startup", name, "listening_ms"))] for name in board.rounds["startup"]]
    return Table("Start: from exec to listening", ["proxy", "ms"], rows)


def _install(board: Board) -> Table:
    rows = []
    for name, rounds in board.rounds["install"].items():
        rows.append([name, f"{rounds[0]['packages']:.0f}", f"{rounds[0]['mb']:.1f}"])
    return Table("Installation: pip into a fresh venv", ["what", "packages", "MB"], rows)


def tables(board: Board) -> list[Table]:
    """All tables for what was measured, the targets last."""
    fixed = {"unary": _unary, "memory": _memory, "startup": _startup, "install": _install}
    made = [fixed[scene](board) if scene in fixed else _streams(board, scene) for scene in board.rounds]
    judged = targets(board)
    if judged:
        rows = [
            [target.what, f"≤ {target.limit:g} {target.unit}", f"{value:.2f} {target.unit}", _verdict(target, value)]
            for target, value in judged
        ]
        made.append(Table(f"Targets, for {MAIN}", ["what", "target", "measured", ""], rows))
    return made


@dataclass(frozen=True, slots=True)
class Target:
    """A promise in numbers."""

    what: str
    limit: float
    unit: str
    read: Callable[[Board], float | None]


def _verdict(target: Target, value: float) -> str:
    return "ok" if value <= target.limit else "MISSED"


def _event_ratio(scene: str) -> Callable[[Board], float | None]:
    return lambda board: board.against(scene, MAIN, "cpu", BASE, _ratio)


def _of_main(scene: str, key: str, scale: float = 1.0) -> Callable[[Board], float | None]:
    def read(board: Board) -> float | None:
        value = board.median(scene, MAIN, key)
        return None if value is None else value * scale

    return read


TARGETS = (
    Target("CPU per streamed event, 300 streams", 2, "× nginx", _event_ratio("300×50/s")),
    Target("CPU per streamed event, 2,000 streams", 2, "× nginx", _event_ratio("2000×20/s")),
    Target("CPU per unary request", 9, "× nginx", lambda board: board.against("unary", MAIN, "cpu", BASE, _ratio)),
    Target("memory, idle", 60, "MB", _of_main("memory", "idle_mb")),
    Target("memory per idle stream", 40, "kB", _of_main("memory", "stream_kb")),
    Target("start", 1, "s", _of_main("startup", "listening_ms", 1e-3)),
    Target("packages of the core", 18, "", lambda board: board.median("install", "proxyd", "packages")),
    Target("size of the core", 20, "MB", lambda board: board.median("install", "proxyd", "mb")),
)


def targets(board: Board) -> list[tuple[Target, float]]:
    """Judge the targets that this run can judge, with what was measured."""
    read = [(target, target.read(board)) for target in TARGETS]
    return [(target, value) for target, value in read if value is not None]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def surroundings(versions: dict[str, str]) -> list[str]:
    """On what it was measured: without that, no figure means anything."""
    python = f"Python {platform.python_version()}"
    packages = ", ".join(_version(package) for package in ("aiohttp", "uvloop", "httptools"))
    others = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"{os.cpu_count()} × {_cpu_name()}, Linux {platform.release()}, load average at the end {os.getloadavg()[0]:.1f}",
        f"{python}, {packages}{', ' + others if others else ''}",
    ]


def render(table: Table, *, markdown: bool) -> str:
    """One table as text."""
    widths = [max(len(cell) for cell in cells) for cells in zip(table.columns, *table.rows, strict=True)]

    def line(cells: Row) -> str:
        padded = [
            cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip()

    rule = ["-" * (width if place == 0 else width - 1) + ("" if place == 0 else ":") for place, width in enumerate(widths)]
    head = f"### {table.title}\n" if markdown else table.title
    return "\n".join([head, line(table.columns), line(rule if markdown else ["-" * width for width in widths]), *map(line, table.rows)])


def document(board: Board, versions: dict[str, str], *, markdown: bool) -> str:
    """Write the whole report."""
    parts = ["\n".join(surroundings(versions)), *(render(table, markdown=markdown) for table in tables(board))]
    if board.errors:
        wrong = "\n".join(f"- {error}" for error in dict.fromkeys(board.errors))
        parts.append(f"WRONG ANSWERS, the figures of these do not count:\n\n{wrong}")
    return "\n\n".join(parts)


def as_json(board: Board, versions: dict[str, str]) -> dict[str, object]:
    """Everything, for programs."""
    return {
        "surroundings": surroundings(versions),
        "command": sys.argv[1:],
        "rounds": board.rounds,
        "targets": [
            {"what": target.what, "limit": target.limit, "unit": target.unit, "measured": value, "met": value <= target.limit}
            for target, value in targets(board)
        ],
        "errors": board.errors,
    }
