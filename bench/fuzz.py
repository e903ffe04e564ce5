"""Mutations for long, through the whole daemon or through one room.

`python -m bench.fuzz [--answers 20000] [--requests 20000] [--seed 1]` mutates the corpus's answers, and requests; with atheris,
`python -m bench.fuzz --rooms sse|meter|body|headers|text [--runs 1000000]` is guided by coverage through one pure room.
Exit code 1 if anything is wrong; what was, with its seed, is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "tests" / "corpus"


async def through_the_daemon(wanted: argparse.Namespace) -> int:
    from tests.fuzz import Fuzz  # noqa: PLC0415
    from tests.origin import Origin  # noqa: PLC0415

    origin = Origin()
    with tempfile.TemporaryDirectory(prefix="proxyd-fuzz-") as folder:
        fuzz = Fuzz(Path(folder), origin, random.Random(wanted.seed))
        before, began = fuzz.daemon.memory(), time.monotonic()
        try:
            await fuzz.answers(wanted.answers)
            await fuzz.requests(wanted.requests)
            grown, took = fuzz.daemon.memory() - before, time.monotonic() - began
            fuzz.daemon.stop()
        finally:
            if fuzz.daemon.child is not None:
                fuzz.daemon.child.end()
            origin.close()
    print(f"seed {wanted.seed}: {fuzz.findings.line()}")
    print(f"{len(origin.violations)} violations upstream; memory {grown / 2**20:+.0f} MiB; {took:.0f} s")
    print(*fuzz.findings.wrong[:20], *origin.violations[:20], sep="\n")
    return 1 if fuzz.findings.wrong or origin.violations else 0


def rooms(name: str):
    """What takes bytes and must never raise anything but a ProxyError."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.model import Endpoint, Format  # noqa: PLC0415
    from proxyd.wire import headers, text  # noqa: PLC0415
    from proxyd.wire.body import Edits, parse_ask, upstream_body  # noqa: PLC0415
    from proxyd.wire.meter import Meter  # noqa: PLC0415
    from proxyd.wire.sse import SSE  # noqa: PLC0415

    def sse(data: bytes) -> None:
        whole, pieces = SSE(1 << 20), SSE(1 << 20)
        cut = data[0] % 7 + 1 if data else 1
        frames = whole.feed(data)
        others = [frame for start in range(0, len(data), cut) for frame in pieces.feed(data[start : start + cut])]
        assert sum(frame.size for frame in frames) == sum(frame.size for frame in others) <= len(data)
        assert [bytes(frame.data) for frame in frames if frame.data is not None] == [
            bytes(frame.data) for frame in others if frame.data is not None
        ]

    def meter(data: bytes) -> None:
        form = (Format.SSE, Format.JSON, Format.NDJSON)[data[0] % 3] if data else Format.SSE
        kept = Meter(form)
        out = kept.feed(data[: len(data) // 2]) + kept.feed(data[len(data) // 2 :])
        out += kept.end(True) + kept.take_held()
        assert out == data
        kept.read()
        kept.produced()

    def body(data: bytes) -> None:
        with contextlib.suppress(ProxyError):
            text.check(data)
            ask = parse_ask(Endpoint.CHAT, data)
            again = parse_ask(Endpoint.CHAT, upstream_body(ask, Edits()))
            assert (again.model, again.stream, again.max_tokens) == (ask.model, ask.stream, ask.max_tokens)

    def head(data: bytes) -> None:
        pairs = [tuple(line.partition(b":")[::2]) for line in data.split(b"\n")]
        with contextlib.suppress(ProxyError):
            for field, value in [*headers.to_upstream(pairs, stream=True), *headers.to_client(headers.Fields(pairs))]:
                assert not {10, 13, 0} & {*field, *value}
            headers.credential(pairs)
        headers.parse_retry_after(data[:40], data[40:80], 1e9)

    def depth(data: bytes) -> None:
        with contextlib.suppress(ProxyError):
            text.check(data)
            checker = text.Checker()
            for place in range(0, len(data), 3):
                checker.feed(data[place : place + 3])

    return {"sse": sse, "meter": meter, "body": body, "headers": head, "text": depth}[name]


def guided(name: str, runs: int) -> None:
    """Hand one room to atheris; does not return."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["proxyd.wire"]):
        target = rooms(name)
    with tempfile.TemporaryDirectory(prefix="proxyd-corpus-") as seeds:
        for file in CORPUS.glob("*.body"):
            Path(seeds, file.name).write_bytes(file.read_bytes()[:4000])
        atheris.Setup([sys.argv[0], f"-runs={runs}", "-max_len=4096", "-verbosity=1", "-print_final_stats=1", seeds], target)
        atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", choices=("sse", "meter", "body", "headers", "text"))
    parser.add_argument("--runs", type=int, default=1_000_000)
    given = parser.parse_args()
    if given.rooms:
        guided(given.rooms, given.runs)
    sys.exit(asyncio.run(through_the_daemon(given)))
