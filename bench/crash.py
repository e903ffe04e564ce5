"""Kill -9 and power cuts under load, for long: `python -m bench.crash --kills 200 --cuts 100 [--keep 50] [--seed 1] [--relaxed]`.

Each cycle starts the daemon, loads it with eight callers (unary and streamed), ends it at a random moment, and holds its ledger
against what the callers saw whole. Exit code 1 if an answer is missing, doubled, wrong, or the database is damaged.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from tests.crash import Crashes, library
from tests.origin import Origin


async def main(wanted: argparse.Namespace) -> int:
    sound = True
    storage = {"durability": "relaxed"} if wanted.relaxed else None
    for name, cycles in (("kill -9", wanted.kills), ("power cut", wanted.cuts)):
        if not cycles:
            continue
        origin = Origin()
        with tempfile.TemporaryDirectory(prefix="proxyd-crash-") as folder:
            crashes = Crashes(Path(folder), origin, random.Random(wanted.seed), storage=storage)
            preload = library(Path(folder)) if name == "power cut" else None
            if name == "power cut" and preload is None:
                print("power cut: no C compiler")
                continue
            for cycle in range(cycles):
                await (crashes.cut(preload, wanted.keep) if preload else crashes.killed())
                if cycle % 20 == 19 or crashes.tally.details:
                    print(f"{name}: {crashes.tally.line()}", flush=True)
                if crashes.tally.details and not wanted.relaxed:
                    break
            tally = crashes.finish()
        origin.close()
        sound = sound and tally.sound and not origin.violations
        print(f"{name}, seed {wanted.seed}: {tally.line()}", *tally.details[:10], sep="\n  ", flush=True)
    return 0 if sound else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--keep", type=int, default=50, help="percent of unsynced sectors that survive a power cut")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--relaxed", action="store_true", help="durability: relaxed, which may lose: shows that the cuts bite")
    sys.exit(asyncio.run(main(parser.parse_args())))
