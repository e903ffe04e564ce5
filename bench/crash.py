"""Kill -9 and power cuts, for long: `python -m bench.crash --kills 200 --cuts 100 [--places] [--keep 50] [--seed 1] [--relaxed]`.

Each cycle starts the daemon, loads it with eight callers (unary and streamed), ends it at a random moment, and holds its ledger
against what the callers saw whole. `--places` cuts a short session at each of its writes and syncs in turn, from the first one of a
database that is not there yet. Exit code 1 if an answer is missing, doubled, wrong, or the database is damaged.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.crash import Crashes, library
from tests.origin import Origin
from tests.powercuts import Session


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
    if wanted.places:
        sound = await everywhere(wanted) and sound
    return 0 if sound else 1


async def everywhere(wanted: argparse.Namespace) -> bool:
    """Cut at each place until a session ends before the cut."""
    origin = Origin()
    place = told = 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="proxyd-cuts-") as name:
        folder = Path(name)
        if (preload := library(folder)) is None:
            print("power cut: no C compiler")
            return True
        session = Session(folder, origin, preload, wanted.keep, "relaxed" if wanted.relaxed else "strict")
        while True:
            found = await session.cut(place := place + 1)
            shutil.rmtree(folder / f"cut{place}")
            told += found.told
            wrong += [f"place {place}: {what}" for what in found.wrong]
            if not found.struck:
                break
            if place % 50 == 0:
                print(f"{place} places, {told} answers told, {len(wrong)} wrong", flush=True)
    origin.close()
    print(f"power cut at each of {place - 1} writes and syncs, {wanted.keep} % kept: {told} answers told, {len(wrong)} wrong", *wrong[:10],
          sep="\n  ", flush=True)  # fmt: skip
    return not wrong and not origin.violations


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--places", action="store_true", help="cut a short session at each of its writes and syncs")
    parser.add_argument("--keep", type=int, default=50, help="percent of unsynced sectors that survive a power cut")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--relaxed", action="store_true", help="durability: relaxed, which may lose: shows that the cuts bite")
    sys.exit(asyncio.run(main(parser.parse_args())))
