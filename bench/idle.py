"""What an open, silent stream costs: `python -m bench.idle [--streams 10000] [--seconds 10]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from bench.crowd import crowd
from bench.proc import cost


async def main(wanted: argparse.Namespace) -> int:
    with crowd() as held:
        warm = await held.streams([f"warm-{number}" for number in range(100)])
        before = cost([held.daemon.pid]).rss
        began = time.monotonic()
        writers = await held.streams([f"idle-{number}" for number in range(wanted.streams)])
        opened = time.monotonic() - began
        await asyncio.sleep(2)
        start = cost([held.daemon.pid])
        await asyncio.sleep(wanted.seconds)
        end = cost([held.daemon.pid])
        print(
            f"{wanted.streams} streams opened in {opened:.1f} s; {(end.rss - before) / wanted.streams / 1024:.1f} KiB each, "
            f"{end.rss / 2**20:.0f} MiB in all, {held.descriptors()} descriptors; "
            f"{(end.cpu - start.cpu) / wanted.seconds * 100:.1f} % of a core while silent"
        )
        for writer in [*warm, *writers]:
            writer.close()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=10)
    sys.exit(asyncio.run(main(parser.parse_args())))
