"""What a scrape of very many series costs those who are being served: the longest silence inside a stream, with and without.

    python -m bench.scrape [--series 10000] [--streams 50] [--seconds 8] [--loop uvloop|asyncio]

Streams of the embedded echo, an event each 20 ms, read by this process; the series are made by one request to each of many models, and
scraped by a process of its own, one scrape after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

from bench.children import environment, free_port, spawn, stop, wait_listening
from bench.observe import ENDING
from bench.proc import cost
from bench.reload import Stream, read
from proxyd.metrics import Metrics

EACH = 66
"""Series of a model with one streamed exchange."""
SCRAPE = """
import sys, time, urllib.request
ended = time.monotonic() + float(sys.argv[2])
while time.monotonic() < ended:
    begun = time.monotonic()
    text = urllib.request.urlopen(sys.argv[1], timeout=60).read()
    print(time.monotonic() - begun, len(text), flush=True)
"""


def config(port: int, ops: int, models: int) -> str:
    routes = dict.fromkeys(["echo", *(f"some-provider/model-number-{number}" for number in range(models))], "echo")
    listen = {"listen": f"127.0.0.1:{port}", "ops": {"listen": f"127.0.0.1:{ops}"}, "auth": "none", "watch": False}
    return json.dumps({**listen, "upstreams": {"echo": {"kind": "echo"}}, "models": routes}, indent=0)


def pieces(models: int) -> str:
    """The longest that the loop is held up, apart from whatever else the machine does: in CPU time, the best of seven."""
    metrics = Metrics("bench")
    names = [f"some-provider/model-number-{number}" for number in range(models)]
    metrics.know(names, ["openai"])
    for name in names:
        metrics.exchange_begun()
        metrics.exchange_ended(replace(ENDING, route=name))
    found = []
    for _ in range(7):
        took, telling = [], metrics.pieces()
        while True:
            begun = time.thread_time()
            piece = next(telling, None)
            took.append((time.thread_time() - begun) * 1e3)
            if piece is None:
                break
        found.append((max(took), sum(took), len(took)))
    longest, whole, number = min(found)
    return f"{whole:.1f} ms of CPU in {number} pieces, the longest {longest:.2f} ms"


def series(ops: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{ops}/metrics", timeout=60) as answer:
        return sum(not line.startswith(b"#") for line in answer.read().splitlines())


async def one_each(port: int, models: int) -> None:
    """A stream of one word to each model."""
    for start in range(0, models, 20):
        names = [f"some-provider/model-number-{number}" for number in range(start, min(start + 20, models))]
        await asyncio.gather(*(read(port, Stream(), name, "word " * 3) for name in names))


async def scene(args: argparse.Namespace, places: tuple[int, int], pid: int, *, scraped: bool) -> None:
    port, ops = places
    streams = [Stream() for _ in range(args.streams)]
    words = "word " * round(args.seconds * 50)
    before = cost([pid]).cpu
    reading = [asyncio.ensure_future(read(port, stream, "echo", words)) for stream in streams]
    await asyncio.sleep(1.0)
    for stream in streams:
        stream.gaps.clear()  # a crowd that begins is another matter
    took: list[float] = []
    if scraped:
        command = [sys.executable, "-c", SCRAPE, f"http://127.0.0.1:{ops}/metrics", str(args.seconds - 2)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        took = [float(line.split()[0]) for line in done.stdout.splitlines()]
    await asyncio.gather(*reading)
    assert all(stream.whole for stream in streams)
    gaps = sorted(gap for stream in streams for gap in stream.gaps)
    told = f"{len(took)} scrapes, {statistics.median(took) * 1e3:.0f} ms each" if took else "no scrape"
    longest = ", ".join(f"{share:g} % {gaps[int(len(gaps) * share / 100)] * 1e3:.1f}" for share in (50, 99, 99.9))
    print(f"{told:28}ms between events: {longest}, longest {gaps[-1] * 1e3:.1f}; CPU {cost([pid]).cpu - before:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    args = parser.parse_args()
    models = max(1, args.series // EACH)
    with tempfile.TemporaryDirectory(prefix="proxyd-bench-") as folder:
        file, log = Path(folder, "config.yaml"), Path(folder, "log")
        places = free_port(), free_port()
        file.write_text(config(*places, models))
        child = spawn([sys.executable, "-m", "proxyd", "serve", "-c", str(file)], log, environment(PROXYD_LOOP=args.loop))
        try:
            wait_listening(child, places[1], log)
            asyncio.run(one_each(places[0], models))
            print(f"{series(places[1])} series: {pieces(models)}; {args.streams} streams, {args.loop}")
            for scraped in (False, True, False, True):
                asyncio.run(scene(args, places, child.pid, scraped=scraped))
        finally:
            stop(child)


if __name__ == "__main__":
    main()
