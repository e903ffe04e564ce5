"""Once means once for what proxyd answers by itself: nothing to join or resume, an answer that is made, kept and sent again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.claims import standing
from proxyd.rules.idempotency import ClaimState, Request, Verdict, judge
from proxyd.store.db import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxyd.config.schema import OnBroken
    from proxyd.flow.claims import Place
    from proxyd.store.idempotency import Claim, Claims, Kept

    Make = Callable[[], tuple[tuple[tuple[bytes, bytes], ...], bytes, Awaitable[object]]]
    """Begins to write what is asked for; returns the answer's headers, its body, and when it is true."""


class Once:
    """Requests under an Idempotency-Key that call no upstream."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._under_way: dict[Place, asyncio.Future[None]] = {}

    async def answer(self, claim: Claim, on_broken: OnBroken, make: Make) -> tuple[Kept, bool]:
        """Return what `make` answers, or what stands under the key already; and whether it stood.

        What is made and that it was made are one commit, whether the client waits for it or not.
        Raises ProxyError idempotency_key_reused, ledger_unavailable; then nothing was made.
        """
        place = (claim.caller, claim.key)
        while (other := self._under_way.get(place)) is not None:
            await asyncio.wait([other])
        mine = self._under_way[place] = asyncio.get_running_loop().create_future()
        try:
            return await self._answer(claim, on_broken, make)
        except StoreError:
            raise ProxyError("ledger_unavailable", "proxyd cannot read or write its claims now.", retry_after=2) from None
        finally:
            del self._under_way[place]
            mine.set_result(None)

    async def _answer(self, claim: Claim, on_broken: OnBroken, make: Make) -> tuple[Kept, bool]:
        place = (claim.caller, claim.key)
        found = None if self._claims.fresh(*place) else await self._claims.look(*place, claim.created_at)
        request = Request(claim.endpoint, claim.streamed, claim.fingerprint)
        if found is not None and judge(standing(found), request, on_broken) is Verdict.REPLAY:
            return found, True
        return await asyncio.shield(self._made(claim, make)), False

    async def _made(self, claim: Claim, make: Make) -> Kept:
        """Make it, and write that it was made, in one commit. Raises StoreError; then the key may be used again."""
        headers, body, made = make()
        kept = claim.kept(ClaimState.DONE, 200, headers, body)
        try:
            await asyncio.gather(made, self._claims.write(claim), self._claims.finish(kept, claim.expires_at))
        except StoreError:
            self._claims.finish(claim.kept(ClaimState.FAILED, 503, (), None), claim.expires_at)  # a claim may wait in memory for the disk
            raise
        return kept
