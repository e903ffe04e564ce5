"""What a signed token adds to a request, beside a key: `python -m bench.jwt`. The target: at most 20 µs more, once it is known."""

from __future__ import annotations

import asyncio
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from bench.loops import run
from proxyd.clock import Clock
from proxyd.config.schema import Jwt, Key
from proxyd.flow.bearers import Bearers, Issuer
from proxyd.rules.auth import Keys
from proxyd.rules.bearer import looks_signed, read_keys
from tests.issuer import Key as Signer
from tests.issuer import claims, key_set

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 20_000
ISSUER = "https://issuer.example.com"


async def timed(work: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """Microseconds of one round, the best of five runs."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(rounds):
            await work()
        best = min(best, (time.perf_counter() - begin) / rounds)
    return best * 1e6


async def main() -> int:
    """Measure, print, and say by the exit code whether the target holds."""
    rules = (Jwt(issuer=ISSUER, audience="proxyd"),)
    keys = Keys([Key(name=f"k{number}", key=f"key-{number:016d}") for number in range(1000)])
    presented = b"key-0000000000000500"

    async def by_key() -> object:
        return keys.find(presented)

    of_key = await timed(by_key)
    print(f"a key of the file: {of_key:.2f} µs")
    worst = 0.0
    for algorithm in ("RS256", "ES256", "EdDSA"):
        signer = Signer("k", algorithm)
        bearers = Bearers(Clock(), asyncio.ensure_future)  # type: ignore[arg-type]
        issuer = bearers._issuers[ISSUER, None] = Issuer(ISSUER, None)  # noqa: SLF001 - as after its first fetch
        issuer.keys, issuer.fetched = read_keys(key_set(signer)), time.monotonic()
        token = signer.sign(claims(ISSUER, exp=int(time.time()) + 3600, more="x" * 300)).encode()
        state = SimpleNamespace(bearers=bearers)

        async def known(token: bytes = token, state: SimpleNamespace = state) -> object:
            return keys.find(token) or (looks_signed(token) and await state.bearers.find(token, rules))

        async def unknown(token: bytes = token, state: SimpleNamespace = state) -> object:
            state.bearers._verified.clear()  # noqa: SLF001 - as if it were new
            return await state.bearers.find(token, rules)

        assert await known()
        of_known, of_unknown = await timed(known), await timed(unknown, 500)
        worst = max(worst, of_known - of_key)
        print(
            f"{algorithm}: a known token of {len(token)} bytes {of_known:.2f} µs ({of_known - of_key:+.2f}), a new one {of_unknown:.0f} µs"
        )
    print(f"a known token adds {worst:.2f} µs to a request; the target is 20: {'holds' if worst <= 20 else 'FAILS'}")
    return 0 if worst <= 20 else 1


if __name__ == "__main__":
    sys.exit(run(main()))
