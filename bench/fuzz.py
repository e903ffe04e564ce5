"""Mutated answers and requests through the whole daemon, for long: `python -m bench.fuzz [--answers 20000] [--requests 20000] [--seed 1]`.

Exit code 1 if anything is wrong; what was is printed, and comes again with the same seed. (One room alone: bench/rooms.py.)
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import Fuzz
from tests.fuzz_protobuf import ProtobufFuzz
from tests.origin import Origin


async def through_the_daemon(wanted: argparse.Namespace) -> int:
    origin = Origin()
    with tempfile.TemporaryDirectory(prefix="proxyd-fuzz-") as folder:
        fuzz = Fuzz(Path(folder), origin, random.Random(wanted.seed))
        before, began = fuzz.daemon.memory(), time.monotonic()
        try:
            await fuzz.answers(wanted.answers)
            await fuzz.requests(wanted.requests)
            framed = ProtobufFuzz(fuzz, random.Random(wanted.seed))
            await framed.requests(wanted.requests)
            await framed.answers(wanted.answers)
            grown, took = fuzz.daemon.memory() - before, time.monotonic() - began
            fuzz.daemon.stop()
        finally:
            if fuzz.daemon.child is not None:
                fuzz.daemon.child.end()
            origin.close()
    print(f"seed {wanted.seed}: {fuzz.findings.line()}")
    print(f"of these, half in protobuf: {framed.refused} calls refused, {framed.reused} on a connection that another one had left")
    print(f"{len(origin.violations)} violations upstream; memory {grown / 2**20:+.0f} MiB; {took:.0f} s")
    print(*fuzz.findings.wrong[:20], *origin.violations[:20], sep="\n")
    return 1 if fuzz.findings.wrong or origin.violations else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(through_the_daemon(parser.parse_args())))
