"""Mutations guided by coverage (atheris) through the pure rooms that take bytes: `python -m bench.rooms [ROOM …] [--runs 500000]`.

`pip install atheris` first. Each room runs in a process of its own, from a few files as seeds; a row tells how often it was called,
and exit code 1 says that one raised what it must not, or took over `--slow` seconds for one input: what it was given is then printed.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import protobuf_rooms

ROOT = Path(__file__).parent.parent
Target = Callable[[bytes], None]
_STAT = re.compile(r"stat::(\w+): +(\d+)")
_BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""Line ends as YAML 1.1 has them, which is what the parser reads by."""
_COVERED = re.compile(r"cov: (\d+)")


def sse() -> Target:
    """Frames are the same however the bytes are cut."""
    from proxyd.wire.sse import SSE  # noqa: PLC0415 - imported where it is instrumented

    def target(data: bytes) -> None:
        whole, pieces = SSE(1 << 20), SSE(1 << 20)
        cut = data[0] % 7 + 1 if data else 1
        frames = whole.feed(data)
        others = [frame for start in range(0, len(data), cut) for frame in pieces.feed(data[start : start + cut])]
        assert sum(frame.size for frame in frames) == sum(frame.size for frame in others) <= len(data)
        assert [bytes(frame.data) for frame in frames if frame.data is not None] == [
            bytes(frame.data) for frame in others if frame.data is not None
        ]

    return target


def meter() -> Target:
    """What goes in comes out, and can be read at any time."""
    from proxyd.model import Format  # noqa: PLC0415
    from proxyd.wire.meter import Meter  # noqa: PLC0415

    def target(data: bytes) -> None:
        form = (Format.SSE, Format.JSON, Format.NDJSON)[data[0] % 3] if data else Format.SSE
        kept = Meter(form)
        out = kept.feed(data[: len(data) // 2]) + kept.feed(data[len(data) // 2 :])
        out += kept.end(True) + kept.take_held()
        assert out == data
        kept.read()
        kept.produced()

    return target


def stripped() -> Target:
    """Where a usage event is taken out, what is left is the same however the bytes are cut, and nothing is made up."""
    from proxyd.model import Format  # noqa: PLC0415
    from proxyd.wire.meter import Meter  # noqa: PLC0415

    def target(data: bytes) -> None:
        came = []
        for cut in (len(data) or 1, data[0] % 13 + 1 if data else 1):
            kept = Meter(Format.SSE, strip_usage=True)
            out = b"".join(kept.feed(data[start : start + cut]) for start in range(0, len(data), cut))
            came.append((out + kept.end(True) + kept.take_held(), kept.read().usage, kept.produced(), kept.ended))
        assert came[0] == came[1]
        assert len(came[0][0]) <= len(data)

    return target


def body() -> Target:
    """What is understood of a request is what the upstream will understand."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.model import Endpoint  # noqa: PLC0415
    from proxyd.wire import text  # noqa: PLC0415
    from proxyd.wire.body import Edits, parse_ask, upstream_body  # noqa: PLC0415

    def target(data: bytes) -> None:
        with contextlib.suppress(ProxyError):
            text.check(data)
            ask = parse_ask(Endpoint.CHAT, data)
            again = parse_ask(Endpoint.CHAT, upstream_body(ask, Edits()))
            assert (again.model, again.stream, again.max_tokens) == (ask.model, ask.stream, ask.max_tokens)

    return target


def headers() -> Target:
    """Nothing that leaves holds a line end, whatever came."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire import headers  # noqa: PLC0415

    def target(data: bytes) -> None:
        pairs = [tuple(line.partition(b":")[::2]) for line in data.split(b"\n")]
        with contextlib.suppress(ProxyError):
            for field, value in [*headers.to_upstream(pairs, stream=True), *headers.to_client(headers.Fields(pairs))]:
                assert not {10, 13, 0} & {*field, *value}
            headers.credential(pairs)
        headers.parse_retry_after(data[:40], data[40:80], 1e9)

    return target


def text() -> Target:
    """A body that comes in pieces is refused when the whole one is."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire import text  # noqa: PLC0415

    def verdict(work: Callable[[], None]) -> str | None:
        try:
            work()
        except ProxyError as error:
            return error.code
        return None

    def pieces(data: bytes) -> None:
        checker = text.Checker()
        for place in range(0, len(data), 3):
            checker.feed(data[place : place + 3])
        checker.finish()

    def target(data: bytes) -> None:
        assert verdict(lambda: text.check(data)) == verdict(lambda: pieces(data))

    return target


def coding() -> Target:
    """No compressed body decodes to more than there is room for."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire.coding import CODINGS, decoder  # noqa: PLC0415

    room = 256 * 1024

    def target(data: bytes) -> None:
        if not data:
            return
        inner = decoder(CODINGS[data[0] % len(CODINGS)])
        assert inner is not None
        came = 0
        with contextlib.suppress(ProxyError):
            for start in range(1, len(data), 97):
                came += len(inner.feed(data[start : start + 97], room - came))
                assert came <= room
            inner.finish()

    return target


def config() -> Target:
    """A file is a configuration, or has mistakes that say where."""
    from proxyd.config.load import examine  # noqa: PLC0415
    from proxyd.config.mistakes import ConfigError  # noqa: PLC0415
    from proxyd.config.secrets import Secrets  # noqa: PLC0415

    def secret(_name: str) -> str:
        raise FileNotFoundError

    def target(data: bytes) -> None:
        written = data.decode("utf-8", "replace")
        try:
            examine(written, filename="f", secrets=Secrets({"KEY": "x" * 20}, secret, None))
        except ConfigError as error:
            found = error.mistakes
        else:
            return
        lines = len(_BREAKS.findall(written)) + 2
        assert found
        assert all(1 <= mistake.line <= lines and mistake.column >= 1 for mistake in found)

    return target


@dataclass(frozen=True, slots=True)
class Room:
    """One row: what makes the target, and where its seeds are."""

    make: Callable[[], Target]
    seeds: str
    """A pattern below the project's folder."""
    package: str = "proxyd.wire"
    """What is instrumented."""
    longest: int = 4096


ROOMS = {
    "sse": Room(sse, "tests/corpus/*.body"),
    "meter": Room(meter, "tests/corpus/*.body"),
    "stripped": Room(stripped, "tests/corpus/*.body"),
    "body": Room(body, "tests/pb_samples/requests/*.json"),
    "headers": Room(headers, "tests/corpus/*.json"),
    "text": Room(text, "tests/pb_samples/requests/*.json"),
    "coding": Room(coding, "tests/corpus/sse-gzip*.body"),
    "pb-request": Room(protobuf_rooms.request, "tests/pb_samples/requests/*.pb"),
    "pb-embeddings": Room(protobuf_rooms.embeddings, "tests/pb_samples/other/*"),
    "pb-calls": Room(protobuf_rooms.calls, "tests/pb_samples/requests/*"),
    "pb-events": Room(protobuf_rooms.events, "tests/corpus/*chat*.body"),
    "pb-answer": Room(protobuf_rooms.answer, "tests/corpus/*.body"),
    "pb-frames": Room(protobuf_rooms.frames, "tests/pb_samples/*/*.pb*"),
    "config": Room(config, "*.yaml", "proxyd.config", 2048),
}


def inside(name: str, runs: int, slow: int) -> None:
    """Hand one room to atheris; does not return."""
    import atheris  # noqa: PLC0415

    room = ROOMS[name]
    with atheris.instrument_imports(include=[room.package]):
        target = room.make()
    with tempfile.TemporaryDirectory(prefix="proxyd-corpus-") as seeds:
        for file in ROOT.glob(room.seeds):
            Path(seeds, file.name).write_bytes(file.read_bytes()[: room.longest])
        options = [f"-runs={runs}", f"-max_len={room.longest}", f"-timeout={slow}", "-verbosity=1", "-print_final_stats=1", seeds]
        atheris.Setup([sys.argv[0], *options], target)
        atheris.Fuzz()


def main(names: list[str], runs: int, slow: int) -> int:
    """Run rooms one after the other, and tell of each."""
    failed = 0
    print(f"{'room':12} {'executions':>12} {'a second':>9} {'edges':>6} {'MiB':>5}")
    for name in names:
        began = time.monotonic()
        command = [sys.executable, "-m", "bench.rooms", "--inside", name, "--runs", str(runs), "--slow", str(slow)]
        with tempfile.TemporaryDirectory(prefix="proxyd-room-") as folder:
            done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
            culprits = [(file.name, file.read_bytes()) for file in Path(folder).iterdir()]
        stats = dict(_STAT.findall(done.stderr))
        executions = int(stats.get("number_of_executed_units", 0))
        covered = max(map(int, _COVERED.findall(done.stderr)), default=0)
        pace = executions / (time.monotonic() - began)
        print(f"{name:12} {executions:12,} {pace:9,.0f} {covered:6} {stats.get('peak_rss_mb', '?'):>5}", flush=True)
        if done.returncode or executions < runs:
            failed += 1
            print(done.stdout[-2000:], done.stderr[-3000:], *culprits, sep="\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--runs", type=int, default=500_000)
    parser.add_argument("--slow", type=int, default=5)
    parser.add_argument("--inside", choices=ROOMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.rooms) - set(ROOMS):
        parser.error(f"there is no room {min(unknown)!r}")
    if given.inside:
        inside(given.inside, given.runs, given.slow)
    sys.exit(main(given.rooms or list(ROOMS), given.runs, given.slow))
