"""What keys, limits and budgets add to a request, with 10,000 keys in the database, and what their memory is.

    python -m bench.auth [--keys 10000] [--requests 20000]

One process, no sockets: the very calls that `flow` makes for a request, in random order of callers, over a database that was
written and read as the daemon does. Times are CPU microseconds a request, the best of three rounds; memory is what tracemalloc counts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from proxyd.clock import Clock
from proxyd.config.schema import Allowance, Config, Kind, Limits, Model, RouteLimits, Target, Upstream
from proxyd.flow.admit import authenticate
from proxyd.flow.allowances import Allowances
from proxyd.flow.brake import Brake
from proxyd.flow.budgets import Budgets
from proxyd.flow.keyring import PREFIX, SHOWN, Keyring
from proxyd.flow.runtime import Snapshot
from proxyd.model import TOKENS, Budget, Caller, Endpoint, LedgerRow, Per, Source, State, Usage
from proxyd.model import Limits as Allowed
from proxyd.rules import auth
from proxyd.rules.auth import Keys
from proxyd.rules.pricelist import PriceList
from proxyd.rules.routes import RouteTable
from proxyd.store.db import Database
from proxyd.store.keys import ApiKeys, StoredKey, _added
from proxyd.store.ledger import Ledger
from proxyd.wire.body import parse_ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 3
BODY = b'{"model":"fast","max_tokens":200,"messages":[{"role":"user","content":"%s"}]}' % (b"Some words of a question. " * 20)


@dataclass(frozen=True, slots=True)
class Rig:
    keyring: Keyring
    secrets: list[bytes]
    callers: list[Caller]
    ledger: Ledger
    clock: Clock


async def rig(folder: Path, count: int) -> tuple[Rig, Database]:
    """A database with so many keys, each with limits and a budget of its own, read as at a start."""
    clock, chance = Clock(), random.SystemRandom()
    database = Database(folder / "bench.db", clock=clock)
    await database.open()
    ledger = Ledger(database)
    await ledger.recover(clock.now_us())
    secrets = [auth.generate_key(PREFIX, chance.randbytes(32)) for _ in range(count)]
    callers = [
        Caller(f"caller-{number}", limits=Allowed(600, 10**6, 64), budget=Budget(10**9, TOKENS, Per.MONTH)) for number in range(count)
    ]
    rows = [
        StoredKey(0, auth.digest(secret.encode()), secret[:SHOWN], caller, clock.now_us())
        for secret, caller in zip(secrets, callers, strict=True)
    ]
    await database.submit(lambda connection: [_added(connection, row) for row in rows] and None)
    keyring = Keyring(ApiKeys(database), clock, chance)
    before, began = memory(), time.perf_counter()
    await keyring.load()
    took = time.perf_counter() - began
    print(f"reading {count:,} keys at a start          {took * 1000:8.0f} ms, {(memory() - before) / 1e6:.1f} MB")
    return Rig(keyring, [secret.encode() for secret in secrets], callers, ledger, clock), database


def memory() -> int:
    return tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0


async def measure(name: str, requests: int, work: Callable[[int], Awaitable[None]]) -> float:
    """Microseconds of CPU for one."""
    tracemalloc.stop()  # it slows everything down
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for number in range(requests):
            await work(number)
        best = min(best, (time.process_time() - began) / requests)
    print(f"{name:42s} {best * 1e6:8.2f} µs")
    return best


def runtime_of(one: Rig) -> tuple[SimpleNamespace, Snapshot]:
    """As much of a runtime as authentication sees."""
    limits = RouteLimits(rpm=10**9, tpm=10**12, concurrency=10**6, per_caller=Allowance(rpm=10**6, tpm=10**9, concurrency=64))
    config = Config(
        upstreams={"u": Upstream(kind=Kind.ECHO)},
        models={"fast": Model(upstreams=(Target(upstream="u"),), limits=limits), "free": Model(upstreams=(Target(upstream="u"),))},
        limits=Limits(),
    )
    snapshot = Snapshot(config, RouteTable(config), Keys(()), None, {}, {})
    return SimpleNamespace(snapshot=snapshot, keyring=one.keyring, brake=Brake(one.clock), clock=one.clock, bearers=None), snapshot


def exchange(snapshot: Snapshot, caller: Caller, model: str) -> SimpleNamespace:
    """As much of an exchange as limits see."""
    route = snapshot.routes.resolve(model)
    assert route is not None
    ask = parse_ask(Endpoint.CHAT, BODY)
    return SimpleNamespace(
        caller=caller, route=route, ask=ask, raw=BODY, snapshot=snapshot, model=route.model, label=route.label, reservation=None
    )


async def main(keys: int, requests: int) -> None:
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        one, database = await rig(Path(folder), keys)
        runtime, snapshot = runtime_of(one)
        order = [random.randrange(keys) for _ in range(requests)]
        downs = [
            SimpleNamespace(headers=((b"Host", b"localhost"), (b"Authorization", b"Bearer " + secret)), address="192.0.2.1")
            for secret in one.secrets
        ]
        used = Usage(120, 80, 200)
        row = LedgerRow(
            1, "req", 1, "", "/v1/chat/completions", "json", "fast", "u", "m", streamed=False, created_at=0, state=State.DONE,
            usage=used, tokens_source=Source.UPSTREAM,
        )  # fmt: skip

        async def look_up(number: int) -> None:
            assert one.keyring.find(one.secrets[order[number]]) is not None

        async def who(number: int) -> None:
            await authenticate(runtime, downs[order[number]])  # type: ignore[arg-type]

        nobody = [Caller(caller.name) for caller in one.callers]

        def whole(allowances: Allowances, model: str, callers: list[Caller]) -> Callable[[int], Awaitable[None]]:
            prepared = exchange(snapshot, one.callers[0], model)

            async def work(number: int) -> None:
                prepared.caller = callers[order[number]]
                await allowances.reserve(prepared)
                row.caller = prepared.caller.name
                allowances.record(prepared, row)
                allowances.settle(prepared)
                allowances.headers(prepared)

            return work

        seen = Allowances(one.clock, Budgets(one.clock, one.ledger), PriceList())
        before = memory()
        for caller in one.callers:  # opens every account: the one request of each that asks the ledger
            ex = exchange(snapshot, caller, "fast")
            await seen.reserve(ex)  # type: ignore[arg-type]
            seen.settle(ex)  # type: ignore[arg-type]
        grown = memory() - before
        print(f"levels and accounts of {keys:,} callers       {grown / 1e6:8.1f} MB, {grown / keys:.0f} bytes each")
        await measure("a key looked up", requests, look_up)
        await measure("who it is: headers, brake, key, expiry", requests, who)
        await measure(
            "limits and budget, nothing limited",
            requests,
            whole(Allowances(one.clock, Budgets(one.clock, one.ledger), PriceList()), "free", nobody),
        )
        await measure("limits of three scopes and a budget", requests, whole(seen, "fast", one.callers))
        await database.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.auth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000, help="keys in the database")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of a round")
    given = parser.parse_args()
    asyncio.run(main(given.keys, given.requests))
