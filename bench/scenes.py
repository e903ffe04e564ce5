"""What is measured, in which order: rounds in which every proxy does the same work, one after the other.

The order turns round from round to round, so that a machine that grows busier falls on all alike. A figure is the median of
its rounds; a ratio is made inside a round, against the neighbour of the same minute, and then the median is taken.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import children
from bench.contestants import Contestant, Running, drive, running
from bench.load import Job, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work: seconds of a window, rounds, counts."""

    rounds: int
    seconds: float
    crowds: tuple[tuple[int, int, float], ...]
    """Streams, events a second in each, and the seconds over which they begin."""
    held: int
    many: int
    """Requests after which memory is read once more."""
    starts: int


FULL = Sizes(rounds=3, seconds=5.0, crowds=((300, 50, 0.6), (2000, 20, 3.0)), held=2000, many=100_000, starts=5)
QUICK = Sizes(rounds=1, seconds=1.0, crowds=((300, 50, 0.6),), held=500, many=2_000, starts=1)
UNARY_CONNECTIONS = 32
# LiteLLM takes milliseconds an event: what the others do in a second would keep it busy for minutes.
HEAVY_CROWD = (30, 10, 1.0)
HEAVY_HELD = 200
HEAVY_MANY = 2_000
SETTLE = 1.0
"""Seconds of rest before memory is read."""

Figures = dict[str, float]
"""By name; times in microseconds unless the name says otherwise."""


@dataclass(slots=True)
class Board:
    """All figures of a run: scene, then contestant, then one Figures a round."""

    rounds: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, scene: str, name: str, figures: Figures) -> None:
        self.rounds.setdefault(scene, {}).setdefault(name, []).append(figures)
        shown = "  ".join(f"{key} {value:,.1f}" for key, value in figures.items())
        print(f"{scene:>14}  {name:<22} {shown}", file=sys.stderr, flush=True)

    def median(self, scene: str, name: str, key: str) -> float | None:
        """Take the median over the rounds; None where it was not measured."""
        values = [figures[key] for figures in self.rounds.get(scene, {}).get(name, []) if key in figures]
        return statistics.median(values) if values else None

    def against(self, scene: str, name: str, key: str, base: str, combine: Callable[[float, float], float]) -> float | None:
        """Take the median of `combine(own, base's)` made round by round; None where one of the two is missing."""
        own, other = self.rounds.get(scene, {}).get(name, []), self.rounds.get(scene, {}).get(base, [])
        values = [combine(mine[key], its[key]) for mine, its in zip(own, other, strict=False) if key in mine and its.get(key)]
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class Stage:
    """What a scene needs."""

    who: list[Contestant]
    mock: int
    directory: Path
    sizes: Sizes
    board: Board

    @contextlib.contextmanager
    def proxy(self, contestant: Contestant) -> Iterator[Running]:
        """Run one proxy; when it is done, its ledger and its mistakes are looked at."""
        with running(contestant, self.mock, self.directory) as proxy:
            yield proxy
            proxy.check_alive()
            proxy.check_ledger()
            self.board.errors += [f"{contestant.name}: {error}" for error in proxy.errors]

    def rounds(self, act: Callable[[Running, int], None]) -> None:
        """Start all, have them act in turn, round by round, and stop them."""
        with contextlib.ExitStack() as stack:
            proxies = [stack.enter_context(self.proxy(contestant)) for contestant in self.who]
            for number in range(self.sizes.rounds):
                for proxy in proxies if number % 2 == 0 else reversed(proxies):
                    act(proxy, number)


def unary(stage: Stage) -> None:
    """Measure requests a second and CPU at 32 connections; latency at one; time to first token of a stream at one."""

    def act(proxy: Running, _: int) -> None:
        seconds = stage.sizes.seconds
        opened = children.connections(stage.mock)
        crowd = drive(proxy, Job("unary", connections=UNARY_CONNECTIONS, seconds=seconds))
        opened = children.connections(stage.mock) - opened - 1
        alone = drive(proxy, Job("unary", seconds=seconds / 2))
        first = drive(proxy, Job("ttft", seconds=seconds / 2, count=2, rate=500))
        figures = {
            "per_second": crowd.per_second,
            "cpu": crowd.cpu_us,
            "p50": alone.p50_us,
            "p99": alone.p99_us,
            "ttft_p50": first.p50_us,
            "ttft_p99": first.p99_us,
            "idle_share": crowd.machine_idle,
            # A proxy that connects anew for each request pays for it here and cannot show it in a single figure.
            "connections_per_1000": opened * 1e3 / crowd.requests,
        }
        stage.board.add("unary", proxy.contestant.name, figures)

    stage.rounds(act)


def streams(stage: Stage) -> None:
    """CPU of each streamed event, and how much later than without a proxy it arrives, in crowds of streams."""
    for crowd in stage.sizes.crowds:
        _crowd(stage, crowd)


def _crowd(stage: Stage, crowd: tuple[int, int, float]) -> None:
    seconds = stage.sizes.seconds

    def act(proxy: Running, _: int) -> None:
        heavy = proxy.contestant.loose
        if heavy and crowd != stage.sizes.crowds[0]:
            return
        count, rate, ramp = HEAVY_CROWD if heavy else crowd
        # A stream has to outlast the window, though it began first and the last one was slow to begin.
        events = int(rate * (2 * ramp + seconds + 1.0))
        seen = drive(proxy, Job("streams", connections=count, seconds=seconds, count=events, rate=rate, ramp=ramp))
        stage.board.add(f"{crowd[0]}×{crowd[1]}/s", proxy.contestant.name, _event_figures(seen))

    stage.rounds(act)


def _event_figures(seen: Seen) -> Figures:
    return {
        "per_second": seen.per_second,
        "cpu": seen.cpu_us,
        "p50": seen.p50_us,
        "p99": seen.p99_us,
        "idle_share": seen.machine_idle,
        "ended_early": seen.ended_early,
    }


def memory(stage: Stage) -> None:
    """Resident memory: just started, with streams held open, and after very many requests. Each proxy runs alone."""
    for contestant in stage.who:
        if contestant.kind == "direct":
            continue
        held, many = (HEAVY_HELD, HEAVY_MANY) if contestant.loose else (stage.sizes.held, stage.sizes.many)
        with stage.proxy(contestant) as proxy:
            time.sleep(SETTLE)
            # A few requests first: what one loads once and keeps belongs to the process, not to each stream.
            started = drive(proxy, Job("hold", connections=1, ramp=0.0, seconds=0.1, count=1, mock=stage.mock))
            warm = drive(proxy, Job("unary", connections=UNARY_CONNECTIONS, count=min(many // 10, 1_000)))
            drive(proxy, Job("unary", connections=UNARY_CONNECTIONS, count=many - proxy.asked))
            time.sleep(SETTLE)
            open_ = drive(proxy, Job("hold", connections=held, ramp=held / 700, seconds=SETTLE, count=1, mock=stage.mock))
        figures = {
            "idle_mb": started.rss_before / 1e6,
            "warm_mb": warm.rss / 1e6,
            "stream_kb": (open_.rss - open_.rss_before) / held / 1e3,
            "held": held,
            "after_mb": open_.rss_before / 1e6,
            "many": many,
        }
        stage.board.add("memory", contestant.name, figures)


def startup(stage: Stage) -> None:
    """From exec to the first connection taken."""
    for number in range(stage.sizes.starts):
        for contestant in stage.who:
            if contestant.kind != "direct" and not (contestant.loose and number):
                with stage.proxy(contestant) as proxy:
                    figures = {"listening_ms": proxy.listening_ms}
                stage.board.add("startup", contestant.name, figures)


SCENES: dict[str, Callable[[Stage], None]] = {"unary": unary, "streams": streams, "memory": memory, "startup": startup}
