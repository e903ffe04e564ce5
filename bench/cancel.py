"""How soon an upstream hears that the client has left: `python -m bench.cancel [--single 500] [--storm 1000] [--rounds 3]`.

From the client's FIN to its arrival at the origin, which is a process of its own; first one after the other, then all in one
moment. The same crowd also leaves the origin itself, without the daemon: that is what the measuring costs. Exit code 1 if one was
never told, if a descriptor stayed, or if a row is not settled.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import time

from bench.crowd import Crowd, crowd

QUANTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


def quantiles(values: list[float]) -> str:
    """Milliseconds, as a person reads them."""
    ordered = sorted(values)
    return ", ".join(f"{name} {ordered[min(int(len(ordered) * q), len(ordered) - 1)] * 1000:.2f} ms" for name, q in QUANTILES)


def leave(writer: asyncio.StreamWriter) -> float:
    """Send the FIN now, not when the loop comes to it; the moment before."""
    now = time.monotonic()
    writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    return now


async def told(held: Crowd, left: dict[str, float]) -> list[float]:
    """Wait until the origin knows of all who left, 10 s at most; how long each took."""
    for _ in range(200):
        ended = held.ended()
        if all(name in ended for name in left):
            break
        await asyncio.sleep(0.05)
    return [ended[name] - at for name, at in left.items() if name in ended]


async def one_by_one(held: Crowd, count: int) -> list[float]:
    """Each leaves before the next one comes."""
    left: dict[str, float] = {}
    for number in range(count):
        writer = await held.stream(f"single-{number}")
        await asyncio.sleep(0.002)
        left[f"single-{number}"] = leave(writer)
        writer.close()
        await asyncio.sleep(0.002)
    return await told(held, left)


async def storm(held: Crowd, label: str, count: int) -> list[float]:
    """All leave in one moment."""
    names = [f"{label}-{number}" for number in range(count)]
    writers = await held.streams(names)
    await asyncio.sleep(0.5)  # the opening of the last ones is over for everybody
    left = {name: leave(writer) for name, writer in zip(names, writers, strict=True)}
    waits = await told(held, left)
    for writer in writers:
        writer.close()
    print(f"{label}: {len(waits)} of {count} told, {quantiles(waits)}; they left within "
          f"{(max(left.values()) - min(left.values())) * 1000:.0f} ms", flush=True)  # fmt: skip
    return waits


async def main(wanted: argparse.Namespace) -> int:
    with crowd() as held:
        await held.stream("warm")
        before = held.descriptors()
        waits = await one_by_one(held, wanted.single)
        print(f"one by one: {len(waits)} of {wanted.single} told, {quantiles(waits)}", flush=True)
        missed = wanted.single - len(waits)
        for number in range(wanted.rounds):
            missed += wanted.storm - len(await storm(held, f"all at once {number + 1}", wanted.storm))
            held.direct = True
            await storm(held, f"without proxyd {number + 1}", wanted.storm)
            held.direct = False
        expected = wanted.single + wanted.storm * wanted.rounds
        for _ in range(200):
            rows = held.daemon.rows()
            if sum(row["state"] == "cancelled" for row in rows) == expected:
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
    parser.add_argument("--rounds", type=int, default=3)
    sys.exit(asyncio.run(main(parser.parse_args())))
