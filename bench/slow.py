"""Clients that are slow on purpose, and what they cost the others: `python -m bench.slow [--readers 1000] [--drips 3000]`.

First readers that take nothing of streams that are sent as fast as they are read: memory for each, and how much of each stream went
out of the upstream before it was held up. Then connections that send a byte of their head, or of their body, every half second (slow
loris): when each is cut, by deadlines of 5 s. Meanwhile somebody else asks, one request after the other. Exit code 1 if a reader costs
over 256 KiB, if one that drips is not cut within its deadline and 2 s, or if one of the others is not served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.cancel import quantiles
from bench.crowd import PATH, Crowd, crowd
from bench.proc import cost
from tests.e2e.client import ask, chat, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE = 5.0
BOUND = 256 * 1024


@dataclass
class Others:
    """Who asks meanwhile."""

    took: list[float] = field(default_factory=list)
    failed: int = 0


@contextlib.asynccontextmanager
async def others(held: Crowd) -> AsyncIterator[Others]:
    """Ask, ten times a second."""
    found = Others()

    async def work() -> None:
        while True:
            began = time.monotonic()
            answer = await ask(held.daemon.url, PATH, chat("fine"))
            found.took.append(time.monotonic() - began)
            found.failed += answer.status != 200 or not answer.whole
            await asyncio.sleep(0.1)

    task = asyncio.create_task(work())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def connect(held: Crowd, receive_buffer: int | None = None) -> socket.socket:
    """A plain socket."""
    parts = urlsplit(held.daemon.url)
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return sock


async def unread(held: Crowd, count: int) -> int:
    """Readers that take nothing."""
    before, loop, socks = cost([held.daemon.pid]), asyncio.get_running_loop(), []
    for number in range(count):
        socks.append(await connect(held, 4096))
        await loop.sock_sendall(socks[-1], request("POST", PATH, b'{"model":"flood-%d","stream":true,"messages":[]}' % number))
    sent, seen = -1, 0
    while sent != seen:
        await asyncio.sleep(2)
        sent, seen = seen, sum(held.poured().values())
    start = cost([held.daemon.pid])
    async with others(held) as asked:
        await asyncio.sleep(5)
    end = cost([held.daemon.pid])
    each = (end.rss - before.rss) / count
    print(f"{count} readers that take nothing: {each / 1024:.1f} KiB of memory each (bound {BOUND // 1024}), "
          f"{seen / count / 1024:.0f} KiB of each stream were sent by the upstream (all buffers on the way included); "
          f"{(end.cpu - start.cpu) / 5 * 100:.1f} % of a core")  # fmt: skip
    print(f"  others meanwhile: {len(asked.took)} served, {asked.failed} not; {quantiles(asked.took)}", flush=True)
    for sock in socks:
        sock.close()
    return int(each > BOUND) + asked.failed


async def drip(sock: socket.socket, data: bytes) -> tuple[float, bytes]:
    """Send a byte every half second, until there is an answer or an end: how long that took, and what was said."""
    loop, began = asyncio.get_running_loop(), time.monotonic()
    answer = asyncio.ensure_future(loop.sock_recv(sock, 4096))
    place = 0
    while not answer.done() and time.monotonic() - began < 4 * DEADLINE:
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(sock, data[place : place + 1])
        place += 1
        await asyncio.wait([answer], timeout=0.5)
    said = b"" if not answer.done() or answer.exception() is not None else answer.result()
    took = time.monotonic() - began if answer.done() else float("inf")
    answer.cancel()
    sock.close()
    return took, said


async def loris(held: Crowd, count: int) -> int:
    """Connections that drip, half of them their heads, half their bodies."""
    loop, whole = asyncio.get_running_loop(), request("POST", PATH, b"{" * 4000)
    heads, _, body = whole.partition(b"\r\n\r\n")
    tasks, start = [], cost([held.daemon.pid])
    async with others(held) as asked:
        for number in range(count):
            sock = await connect(held)
            if number % 2:
                await loop.sock_sendall(sock, heads + b"\r\n\r\n")
            tasks.append(asyncio.create_task(drip(sock, body if number % 2 else heads)))
        opened = time.monotonic()
        found = await asyncio.gather(*tasks)
    end = cost([held.daemon.pid])
    bad = asked.failed
    for name, some in (("heads", found[::2]), ("bodies", found[1::2])):
        took = [seconds for seconds, _ in some]
        told = sum(said.startswith(b"HTTP/1.1 408") for _, said in some)
        late = sum(seconds > DEADLINE + 2 for seconds in took)
        print(f"{len(some)} dripping {name}: cut after {min(took):.2f} to {max(took):.2f} s, half by {statistics.median(took):.2f} s; "
              f"{told} told by a 408, {late} late")  # fmt: skip
        bad += late
    print(f"  others meanwhile: {len(asked.took)} served, {asked.failed} not; {quantiles(asked.took)}; "
          f"{(end.cpu - start.cpu) / (time.monotonic() - opened) * 100:.0f} % of a core; "
          f"{(end.rss - start.rss) / 2**20:+.0f} MiB", flush=True)  # fmt: skip
    return bad


async def main(wanted: argparse.Namespace) -> int:
    bad = 0
    with crowd(header_timeout=f"{DEADLINE}s", body_timeout=f"{DEADLINE}s", write_timeout="60s") as held:
        async with others(held) as asked:
            await asyncio.sleep(3)
        print(f"nobody slow: {len(asked.took)} served; {quantiles(asked.took)}", flush=True)
        bad += await unread(held, wanted.readers) if wanted.readers else 0
        await asyncio.sleep(2)
        bad += await loris(held, wanted.drips) if wanted.drips else 0
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--drips", type=int, default=3000)
    sys.exit(asyncio.run(main(parser.parse_args())))
