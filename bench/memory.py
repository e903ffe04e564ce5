"""Whether memory stays as it is: `python -m bench.memory [--requests 1000000] [--warm 50000]` prints resident memory as requests pass.

Two in three are unary, one in three streamed; one in ten is refused, one in twenty has an Idempotency-Key, and one in fifty leaves its
stream in the middle. Growth is the slope of a straight line through the samples after the warm-up, for each 100,000 requests. Exit
code 1 if that is over --most MiB, or if descriptors stay open.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from pathlib import Path

from bench import answers, children, loops, proc
from bench.load import HEAD
from bench.once import CONNECTIONS, Client, Proxy, running

SAMPLES = 40
"""Of resident memory, over the whole run."""
STREAM = answers.Script(20, 0)
HELD = answers.Script(2, answers.HOLD)
MIB = 2**20


async def refused(proxy: Proxy, request: bytes) -> None:
    """Ask with a wrong key, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    if head[9:10] != b"4":
        raise children.Trouble(f"not refused: {head!r}")


async def leave(proxy: Proxy, held: bytes) -> None:
    """Begin a stream that is silent after its first event, and leave."""
    client = await Client.to(proxy)
    await client.begin(held)
    client.close()


async def drive(proxy: Proxy, numbers: range) -> None:
    """Make these requests over a few connections."""
    wrong = HEAD.format(port=proxy.port, key="wrong-key-0123456789", length=2).encode() + b"{}"
    unary, stream, held = (
        proxy.request(model, stream=model != "mock-unary", key=None) for model in ("mock-unary", STREAM.model, HELD.model)
    )
    left = iter(numbers)

    async def work() -> None:
        client = await Client.to(proxy)
        for number in left:
            if number % 50 == 49:
                await leave(proxy, held)
            elif number % 20 == 7:
                await client.ask(proxy.request("mock-unary", stream=False, key=f"key-{number}"))
            elif number % 10 == 9:
                await refused(proxy, wrong)
            else:
                await client.ask(stream if number % 3 == 2 else unary)
        client.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


def slope(samples: list[tuple[int, int]]) -> float:
    """Bytes a request, by least squares."""
    count = len(samples)
    x, y = sum(at for at, _ in samples) / count, sum(size for _, size in samples) / count
    return sum((at - x) * (size - y) for at, size in samples) / sum((at - x) ** 2 for at, _ in samples)


async def main(wanted: argparse.Namespace, proxy: Proxy) -> int:
    samples: list[tuple[int, int]] = []
    await drive(proxy, range(100))
    open_before, began = proc.descriptors(proxy.pid), time.monotonic()
    step = max(1, wanted.requests // SAMPLES)
    for start in range(0, wanted.requests, step):
        await drive(proxy, range(start, min(start + step, wanted.requests)))
        gc.collect()
        samples.append((min(start + step, wanted.requests), proc.cost([proxy.pid]).rss))
        print(f"{samples[-1][0]:10,} requests, {samples[-1][1] / MIB:7.1f} MiB, {time.monotonic() - began:6.0f} s", flush=True)
    await asyncio.sleep(6)  # kept connections to the mock are dropped by the next call only: they are the same ones
    leaked = proc.descriptors(proxy.pid) - open_before
    late = [sample for sample in samples if sample[0] > wanted.warm] or samples
    growth = slope(late) * 100_000 / MIB if len(late) > 1 else 0.0
    print(f"{growth:+.2f} MiB each 100,000 requests after the first {wanted.warm:,}; {leaked:+} descriptors")
    return 1 if growth > wanted.most or leaked > CONNECTIONS else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--warm", type=int, default=50_000)
    parser.add_argument("--most", type=float, default=2.0, help="MiB each 100,000 requests that are no growth yet")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="proxyd-memory-") as name,
        children.mock(sys.executable, Path(name)) as upstream,
        running(Path(name, "proxyd"), upstream) as daemon,
    ):
        code = loops.run(main(given, daemon))
    sys.exit(code)
