"""What a reload costs those who are being served: streams dropped, and the longest silence inside one.

    python -m bench.reload [--streams 100] [--reloads 100] [--routes 1000]

Streams of the embedded echo, an event each 20 ms, read by a process of their own; first left alone, then with reloads one after
the other, each of which changes a route and replaces the upstream that they run on.

Measured (CPython 3.11, two cores shared with three times as many busy processes; 1,000 routes): 0 of 100 streams dropped; a reload 60 to
140 ms; the longest silence between two events 150 to 175 ms, where it is 70 to 80 without reloads; with 10 routes 71, as without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from bench.children import environment, free_port, spawn, wait_listening

WORDS = "word " * 400
"""About eight seconds of answer."""


@dataclass(slots=True)
class Stream:
    """What one reader saw."""

    whole: bool = False
    gaps: list[float] = field(default_factory=list)


def config(port: int, ops: int, routes: int, turn: int) -> str:
    models = {f"route-{number}": "echo" for number in range(routes)} | {"echo": "echo", f"turn-{turn}": "echo"}
    upstreams = {"echo": {"kind": "echo", "max_connections": 100 + turn % 100}}
    listen = {"listen": f"127.0.0.1:{port}", "ops": {"listen": f"127.0.0.1:{ops}"}, "auth": "none", "watch": False}
    return json.dumps({**listen, "upstreams": upstreams, "models": models})


async def read(port: int, seen: Stream, model: str = "echo", words: str = WORDS) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": words}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    last, tail = 0.0, b""
    while data := await reader.read(65536):
        now = time.monotonic()
        if last:
            seen.gaps.append(now - last)
        last, tail = now, (tail + data)[-64:]
        if tail.endswith(b"0\r\n\r\n"):
            seen.whole = b"data: [DONE]" in tail
            break
    writer.close()


def reload(ops: int) -> float:
    """Seconds until the daemon has said what changed."""
    begun = time.monotonic()
    request = urllib.request.Request(f"http://127.0.0.1:{ops}/reload", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["ok"]
    return time.monotonic() - begun


async def scene(args: argparse.Namespace, places: tuple[int, int], file: Path, reloads: int) -> None:
    port, ops = places
    streams = [Stream() for _ in range(args.streams)]
    reading = [asyncio.ensure_future(read(port, stream)) for stream in streams]
    await asyncio.sleep(1.0)
    took = []
    for turn in range(reloads):
        await asyncio.to_thread(file.write_text, config(port, ops, args.routes, turn))
        took.append(await asyncio.to_thread(reload, ops))
    during = sum(not each.done() for each in reading)
    await asyncio.gather(*reading)
    gaps = sorted(gap for stream in streams for gap in stream.gaps)
    dropped = sum(not stream.whole for stream in streams)
    print(f"{reloads:4d} reloads   {dropped} of {len(streams)} streams dropped ({during} still ran after the last reload)")
    print(f"               gap between events: median {statistics.median(gaps) * 1e3:.1f} ms, ", end="")
    print(f"99.9 % {gaps[int(len(gaps) * 0.999)] * 1e3:.1f} ms, longest {gaps[-1] * 1e3:.1f} ms")
    if took:
        print(f"               a reload: median {statistics.median(took) * 1e3:.0f} ms, longest {max(took) * 1e3:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--routes", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="proxyd-bench-") as folder:
        file, log = Path(folder, "config.yaml"), Path(folder, "log")
        places = free_port(), free_port()
        file.write_text(config(*places, args.routes, 0))
        child = spawn([sys.executable, "-m", "proxyd", "serve", "-c", str(file)], log, environment())
        try:
            wait_listening(child, places[1], log)
            asyncio.run(scene(args, places, file, 0))
            asyncio.run(scene(args, places, file, args.reloads))
        except OSError as error:
            raise SystemExit(f"{error}; the daemon's last words (exit {child.poll()}):\n{log.read_text()[-2000:]}") from error
        finally:
            child.terminate()
            child.wait(60)


if __name__ == "__main__":
    main()
