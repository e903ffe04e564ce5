"""How soon an upstream hears that the client has left: `python -m bench.cancel [--single 500] [--storm 1000]`.

From the client's close to the end of the connection at the origin, which is a process of its own; first one after the other, then
all in one moment. Exit code 1 if one was never told, if a descriptor stayed, or if a row is not settled.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from bench.crowd import Crowd, crowd


def quantiles(values: list[float]) -> str:
    """Milliseconds, as a person reads them."""
    ordered = sorted(values)
    return ", ".join(f"{name} {ordered[min(int(len(ordered) * q), len(ordered) - 1)] * 1000:.2f} ms" for name, q in QUANTILES)


QUANTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


async def told(held: Crowd, left: dict[str, float]) -> list[float]:
    """Wait until the origin knows of all who left, 10 s at most; how long each took."""
    for _ in range(200):
        ended = held.ended()
        if all(name in ended for name in left):
            break
        await asyncio.sleep(0.05)
    return [ended[name] - at for name, at in left.items() if name in ended]


async def main(wanted: argparse.Namespace) -> int:
    with crowd() as held:
        await held.stream("warm")
        before = held.descriptors()
        left: dict[str, float] = {}
        for number in range(wanted.single):
            writer = await held.stream(f"single-{number}")
            await asyncio.sleep(0.002)
            left[f"single-{number}"] = time.monotonic()
            writer.close()
            await asyncio.sleep(0.002)
        waits = await told(held, left)
        print(f"one by one: {len(waits)} of {wanted.single} told, {quantiles(waits)}", flush=True)
        missed = wanted.single - len(waits)

        names = [f"storm-{number}" for number in range(wanted.storm)]
        writers = await held.streams(names)
        left = {}
        for name, writer in zip(names, writers, strict=True):
            left[name] = time.monotonic()
            writer.close()
        waits = await told(held, left)
        print(f"all at once: {len(waits)} of {wanted.storm} told, {quantiles(waits)}, all of them in "
              f"{max(waits) + max(left.values()) - min(left.values()):.2f} s", flush=True)  # fmt: skip
        missed += wanted.storm - len(waits)
        for _ in range(200):
            rows = held.daemon.rows()
            if sum(row["state"] == "cancelled" for row in rows) == wanted.single + wanted.storm:
                break
            await asyncio.sleep(0.05)
        states = {state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}}
        leaked = held.descriptors() - before
        print(f"rows {states}; {leaked} descriptors more than before; {missed} missed")
    return 1 if missed or leaked > 2 or states.get("open", 0) > 1 else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--single", type=int, default=500)
    parser.add_argument("--storm", type=int, default=1000)
    sys.exit(asyncio.run(main(parser.parse_args())))
