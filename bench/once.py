"""What once costs: `python -m bench.once` (about a minute). An Idempotency-Key, a replay, a resumable stream, a second listener.

proxyd, the mock upstream and this client are three processes. CPU is the proxy's, from /proc (10 ms steps); with and without a key
take turns, round by round, and the ratio is made inside a round, then the median is taken. `--json` prints the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import answers, children, loops, proc
from bench.contestants import PROXYD
from bench.load import HEAD, KEY, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONNECTIONS = 16
KEYS = itertools.count()
LIMIT = 120.0
"""Seconds that one measurement may take."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The daemon that is measured."""

    port: int
    pid: int
    mock: int

    def cpu(self) -> float:
        """CPU seconds so far."""
        return proc.cost([self.pid]).cpu

    def request(self, model: str, *, stream: bool, key: str | None) -> bytes:
        """One chat request, as an SDK writes it."""
        body = answers.request_body(model, stream=stream)
        head = HEAD.format(port=self.port, key=KEY, length=len(body))
        if key is not None:
            head = head.replace("\r\n\r\n", f"\r\nIdempotency-Key: {key}\r\n\r\n")
        return head.encode() + body


class Client:
    """One connection; an answer is read until its end and only measured by its length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, proxy: Proxy) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port, limit=1 << 20))

    async def begin(self, request: bytes) -> bytes:
        """Send a request; the head of its answer, which must be a 200."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise children.Trouble(f"not a 200: {head!r} {await self._reader.read(1000)!r}")
        return head

    async def rest(self, head: bytes) -> int:
        """Read the body; its length."""
        if b"Transfer-Encoding" not in head:
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            return len(await self._reader.readexactly(length))
        size = 0
        while (line := await self._reader.readuntil(b"\r\n")) != b"0\r\n":
            size += len(await self._reader.readexactly(int(line, 16) + 2)) - 2
        await self._reader.readexactly(2)
        return size

    async def ask(self, request: bytes) -> int:
        return await self.rest(await self.begin(request))

    def close(self) -> None:
        self._writer.close()


async def crowd(proxy: Proxy, count: int, request: Callable[[], bytes]) -> tuple[float, float]:
    """Ask `count` times over a few connections: CPU microseconds of the proxy a request, and requests a second."""
    clients = [await Client.to(proxy) for _ in range(CONNECTIONS)]
    left = iter(range(count))

    async def work(client: Client) -> None:
        for _ in left:
            await client.ask(request())

    cpu, began = proxy.cpu(), time.monotonic()
    await asyncio.gather(*map(work, clients))
    spent, elapsed = proxy.cpu() - cpu, time.monotonic() - began
    for client in clients:
        client.close()
    return spent / count * 1e6, count / elapsed


async def key_cost(proxy: Proxy, model: str, count: int, *, stream: bool) -> dict[str, float]:
    """What a key of its own adds to each request."""
    figures = {}
    for name, keyed in (("without", False), ("with", True)):
        cpu, rate = await crowd(proxy, count, lambda: proxy.request(model, stream=stream, key=f"k{next(KEYS)}" if keyed else None))  # noqa: B023
        figures |= {f"{name}_us": cpu, f"{name}_per_second": rate}
    return {**figures, "ratio": figures["with_us"] / figures["without_us"]}


async def latency(proxy: Proxy, count: int) -> dict[str, float]:
    """The median time of one request after the other, with and without a key."""
    client, figures = await Client.to(proxy), {}
    for name, keyed in (("without", False), ("with", True)):
        times = []
        for _ in range(count):
            request = proxy.request("mock-unary", stream=False, key=f"k{next(KEYS)}" if keyed else None)
            began = time.perf_counter()
            await client.ask(request)
            times.append(time.perf_counter() - began)
        figures[f"{name}_p50_us"] = statistics.median(times) * 1e6
    client.close()
    return figures


async def replays(proxy: Proxy, model: str, count: int, *, stream: bool) -> dict[str, float]:
    """One kept answer, again and again."""
    request = proxy.request(model, stream=stream, key=f"kept{next(KEYS)}")
    client = await Client.to(proxy)
    size = await client.ask(request)
    client.close()
    cpu, rate = await crowd(proxy, count, lambda: request)
    return {"us": cpu, "per_second": rate, "bytes": size}


async def listeners(proxy: Proxy, counts: tuple[int, int], events: int, rate: int) -> dict[str, float]:
    """What one more listener of a running stream costs an event: the slope between two crowds."""
    spent = []
    for count in counts:
        request = proxy.request(answers.Script(events, rate).model, stream=True, key=f"join{next(KEYS)}")
        clients = [await Client.to(proxy) for _ in range(count)]
        heads = [await client.begin(request) for client in clients]
        cpu = proxy.cpu()
        await asyncio.gather(*(client.rest(head) for client, head in zip(clients, heads, strict=True)))
        spent.append(proxy.cpu() - cpu)
        for client in clients:
            client.close()
    return {"us_per_event": (spent[1] - spent[0]) / (counts[1] - counts[0]) / events * 1e6}


async def memory(proxy: Proxy, count: int, *, keyed: bool) -> float:
    """Kilobytes that one open stream adds: its first event has come, and no more does."""
    before = proc.cost([proxy.pid]).rss
    model = answers.Script(1, answers.HOLD).model
    clients = [await Client.to(proxy) for _ in range(count)]
    heads = [await client.begin(proxy.request(model, stream=True, key=f"hold{next(KEYS)}" if keyed else None)) for client in clients]
    await asyncio.sleep(1)
    grown = proc.cost([proxy.pid]).rss - before
    await asyncio.to_thread(release, proxy.mock)
    await asyncio.gather(*(client.rest(head) for client, head in zip(clients, heads, strict=True)))
    for client in clients:
        client.close()
    return grown / count / 1e3


@contextlib.contextmanager
def running(directory: Path, mock: int, config: str = PROXYD, environ: Mapping[str, str] | None = None) -> Iterator[Proxy]:
    """Run a proxyd of its own."""
    directory.mkdir()
    port, log, file = children.free_port(), directory / "proxyd.log", directory / "config.yaml"
    file.write_text(config.format(port=port, mock=mock, directory=directory, durability="strict", key=KEY), encoding="utf-8")
    command = [sys.executable, "-m", "proxyd", "serve", "-c", str(file), "--log-level", "error"]
    process = children.spawn(command, log, children.environment(**(environ or {})))
    try:
        children.wait_healthy(port, "/health", log)
        yield Proxy(port, process.pid, mock)
    finally:
        children.stop(process)


async def measure(directory: Path, mock: int, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Take all figures, round by round."""
    board: dict[str, list[dict[str, float]]] = {}
    short = answers.Script(32, 0).model
    with running(directory / "cpu", mock) as proxy:
        await crowd(proxy, 500, lambda: proxy.request("mock-unary", stream=False, key=f"k{next(KEYS)}"))  # warm
        for _ in range(options.rounds):
            async with asyncio.timeout(LIMIT):
                board.setdefault("unary", []).append(await key_cost(proxy, "mock-unary", options.count, stream=False))
                board.setdefault("stream of 32", []).append(await key_cost(proxy, short, options.count // 4, stream=True))
                board.setdefault("latency", []).append(await latency(proxy, options.count // 8))
                board.setdefault("replay", []).append(await replays(proxy, "mock-unary", options.count, stream=False))
                board.setdefault("replay of 32", []).append(await replays(proxy, short, options.count, stream=True))
                board.setdefault("listener", []).append(await listeners(proxy, (1, 101), 200, 100))
    for name, keyed in (("memory without", False), ("memory with", True)):
        with running(directory / name.replace(" ", "-"), mock) as proxy:
            async with asyncio.timeout(LIMIT):
                await memory(proxy, 100, keyed=keyed)  # what the first ones bring is not theirs
                board[name] = [{"kb_per_stream": await memory(proxy, options.held, keyed=keyed)}]
    return board


def main() -> int:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.once", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument("--count", type=int, default=4000, metavar="N", help="requests a measurement (4000)")
    parser.add_argument("--held", type=int, default=1000, metavar="N", help="streams at once for the memory figure (1000)")
    parser.add_argument("--json", action="store_true", help="print every round")
    options = parser.parse_args()
    # /tmp may be memory, where a commit costs nothing.
    with (
        tempfile.TemporaryDirectory(prefix="proxyd-bench-", dir="/var/tmp", ignore_cleanup_errors=True) as directory,
        children.mock(sys.executable, Path(directory)) as mock,
    ):
        board = loops.run(measure(Path(directory), mock, options))
    if options.json:
        print(json.dumps(board, indent=1))
        return 0
    for scene, rounds in board.items():
        figures = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
        print(f"{scene:16}" + "  ".join(f"{name} {value:,.2f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
