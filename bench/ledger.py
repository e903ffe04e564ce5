"""What the ledger costs: CPU time and waiting per exchange (open, then settle), at several numbers of exchanges at once.

    python -m bench.ledger [--seconds 2] [--folder DIR]

The CPU time is the whole process's, event loop and writer's thread together; "bare" is the same loop without a ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from proxyd.clock import Clock
from proxyd.config.schema import Durability
from proxyd.model import LedgerRow, Source, State, Usage
from proxyd.store.db import Database
from proxyd.store.ledger import Ledger

PAUSE = 0.008
"""Seconds between open and settle in relaxed mode, where nothing else slows the exchanges down."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run."""

    exchanges: int
    wall: float
    cpu: float
    waits: list[float]
    """Seconds from the open to the settled row, pause included."""


def row(number: int, now_us: int, name: str) -> LedgerRow:
    return LedgerRow(
        id=number, request_id=name, attempt=1, caller="laptop", endpoint="/v1/chat/completions", protocol="sse",
        model="gpt-4o-mini", upstream="openai", upstream_model="gpt-4o-mini", streamed=True, created_at=now_us, bytes_in=1432,
    )  # fmt: skip


def finish(row: LedgerRow, now_us: int) -> None:
    row.state, row.status, row.finish_reason = State.DONE, 200, "stop"
    row.usage, row.tokens_source = Usage(512, 209, 721, 0, 0), Source.UPSTREAM
    row.cost_nano, row.currency, row.price_source, row.price_version = 202_200, "USD", "route", "2026-11-01"
    row.upstream_model, row.upstream_request_id = "gpt-4o-mini-2024-07-18", "req_0123456789abcdef"
    row.bytes_out, row.ttft_ms, row.latency_ms, row.settled_at = 70_807, 310.25, 4180.5, now_us


async def run(ledger: Ledger | None, at_once: int, seconds: float, pause: float) -> Figures:
    clock = Clock()
    end = time.monotonic() + seconds
    waits: list[float] = []

    async def caller() -> None:
        number = 0
        while time.monotonic() < end:
            began = time.perf_counter()
            number += 1
            one = row(
                ledger.next_id() if ledger else number, clock.now_us(), f"req_{id(waits):x}{number:08x}{id(asyncio.current_task()):x}"
            )
            if ledger:
                await ledger.open(one)
            await asyncio.sleep(pause)
            finish(one, clock.now_us())
            if ledger:
                await ledger.settle(one)
            waits.append(time.perf_counter() - began)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return Figures(len(waits), time.perf_counter() - wall, time.process_time() - cpu, waits)


async def measure(folder: Path, seconds: float) -> None:
    print(f"{'durability':10} {'at once':>7} {'exch/s':>9} {'cpu µs':>8} {'less bare':>9} {'p50 ms':>8} {'p99 ms':>8}")
    for durability in Durability:
        pause = 0 if durability is Durability.STRICT else PAUSE
        for at_once in (1, 8, 32, 128):
            bare = await run(None, at_once, seconds / 4, pause)
            db = Database(folder / f"{durability}-{at_once}.db", durability=durability)
            await db.open()
            ledger = Ledger(db)
            await ledger.recover(Clock().now_us())
            figures = await run(ledger, at_once, seconds, pause)
            began = time.process_time()
            await db.close()
            cpu = (figures.cpu + time.process_time() - began) / figures.exchanges * 1e6
            cuts = statistics.quantiles(figures.waits, n=100)
            print(
                f"{durability:10} {at_once:7} {figures.exchanges / figures.wall:9.0f} {cpu:8.1f} "
                f"{cpu - bare.cpu / bare.exchanges * 1e6:9.1f} {cuts[49] * 1e3:8.2f} {cuts[98] * 1e3:8.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        asyncio.run(measure(Path(folder), args.seconds))


if __name__ == "__main__":
    main()
