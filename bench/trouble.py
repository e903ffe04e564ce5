"""What trouble costs: `python -m bench.trouble [--rounds 5] [--count 1500]`. An upstream that fails while another one answers; a slow disk.

An upstream that is down (connection refused), that answers 500, or that answers 500 every third time, each the first of a route whose
second one is well; against a route that has only the second. CPU is the proxy's; the rounds take turns, and the ratio to the route
without trouble is made inside a round. A breaker keeps calls from an upstream that fails again and again, so `failed` says how many
calls of a hundred requests reached it and failed.

The disk is slowed by a preload (tests/faults.c) that makes each fsync take `--delay` milliseconds longer: latency of one request after
the other, and time to the first event of a stream, in both durabilities. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import answers, children, loops
from bench.once import Client, Proxy, crowd, running
from tests.faults import Faults

CONFIG = """
listen: 127.0.0.1:{port}
ops: {{listen: "127.0.0.1:0"}}
storage: {{url: "sqlite:///{directory}/bench.db", durability: {durability}}}
upstreams:
  well: {{kind: openai, base_url: "http://127.0.0.1:{mock}/v1", max_connections: 10000}}
  down: {{kind: openai, base_url: "http://127.0.0.1:1/v1"}}
  broken: {{kind: openai, base_url: "http://127.0.0.1:{mock}/v1", max_connections: 10000}}
  flaky: {{kind: openai, base_url: "http://127.0.0.1:{mock}/v1", max_connections: 10000}}
models:
  "mock-*": well
  well: [{{upstream: well, model: mock-unary}}]
  refused: [{{upstream: down, model: mock-unary}}, {{upstream: well, model: mock-unary}}]
  always 500: [{{upstream: broken, model: mock-500}}, {{upstream: well, model: mock-unary}}]
  every third 500: [{{upstream: flaky, model: mock-third}}, {{upstream: well, model: mock-unary}}]
auth: {{keys: [{{name: bench, key: {key}}}]}}
"""
ROUTES = ("well", "refused", "always 500", "every third 500")
FAILED = "SELECT count(*) FROM usage_events WHERE model = ? AND state = 'failed'"
STREAM = answers.Script(3, 0).model


async def failing(proxy: Proxy, ledger: Path, rounds: int, count: int) -> None:
    """Print what failing over costs."""
    cpu: dict[str, list[float]] = {name: [] for name in ROUTES}
    rate: dict[str, list[float]] = {name: [] for name in ROUTES}
    for number in range(rounds + 1):
        for name in ROUTES if number % 2 else reversed(ROUTES):
            request = proxy.request(name, stream=False, key=None)
            micros, pace = await crowd(proxy, count, lambda: request)  # noqa: B023
            if number:  # the first round warms up
                cpu[name].append(micros)
                rate[name].append(pace)
    print(f"{'first upstream':16} {'CPU us':>8} {'ratio':>6} {'requests/s':>11} {'ratio':>6} {'failed':>7}")
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as link:
        for name in ROUTES:
            costs = statistics.median(own / base for own, base in zip(cpu[name], cpu["well"], strict=True))
            paces = statistics.median(own / base for own, base in zip(rate[name], rate["well"], strict=True))
            failed = link.execute(FAILED, (name,)).fetchone()[0] / count / (rounds + 1) * 100
            micros, pace = statistics.median(cpu[name]), statistics.median(rate[name])
            print(f"{name:16} {micros:8.0f} {costs:6.2f} {pace:11,.0f} {paces:6.2f} {failed:7.2f}")


async def latency(proxy: Proxy, count: int) -> tuple[float, float]:
    """Milliseconds of one request after the other, and to the first event of one stream after the other: medians."""
    client, whole, first = await Client.to(proxy), [], []
    for _ in range(count):
        began = time.perf_counter()
        await client.ask(proxy.request("mock-unary", stream=False, key=None))
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        head = await client.begin(proxy.request(STREAM, stream=True, key=None))
        first.append(time.perf_counter() - began)
        await client.rest(head)
    client.close()
    return statistics.median(whole) * 1000, statistics.median(first) * 1000


async def slow_disk(proxy: Proxy, faults: Faults, durability: str, delay: int) -> None:
    """Print what a slow disk adds."""
    await latency(proxy, 20)
    usual = await latency(proxy, 100)
    with faults.failing(sync_delay_us=delay * 1000):
        slow = await latency(proxy, 100)
    for name, before, after in zip(("unary", "first event"), usual, slow, strict=True):
        print(f"{durability:10} {name:12} {before:8.2f} {after:8.2f} {after - before:+8.2f}")


def main(wanted: argparse.Namespace) -> None:
    """Start what is measured, and tell."""
    with tempfile.TemporaryDirectory(prefix="proxyd-trouble-") as name, children.mock(sys.executable, Path(name)) as mock:
        folder = Path(name)
        with running(folder / "failing", mock, CONFIG) as proxy:
            loops.run(failing(proxy, folder / "failing" / "bench.db", wanted.rounds, wanted.count))
        print(f"\n{'':10} {'':12} {'ms':>8} {f'+{wanted.delay} ms':>8} {'adds':>8}")
        for durability in ("strict", "relaxed"):
            place = folder / durability
            faults = Faults(folder, place / "bench.db")
            config = CONFIG.replace("{durability}", durability)
            with running(place, mock, config, faults.environ) as proxy:
                loops.run(slow_disk(proxy, faults, durability, wanted.delay))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--delay", type=int, default=20)
    main(parser.parse_args())
