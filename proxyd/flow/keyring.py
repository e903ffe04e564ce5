"""The keys of the database, in memory: looked up without a disk, and changed there and here together."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from proxyd.model import TOKENS
from proxyd.rules import auth, price
from proxyd.store.db import StoreError
from proxyd.store.keys import KeyRefusedError, StoredKey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from proxyd.clock import Clock
    from proxyd.model import Budget, Caller, DeliveryDefaults
    from proxyd.store.keys import ApiKeys

PREFIX = "pxd_"
SHOWN = len(PREFIX) + 4
"""Characters of a key that people are shown; 24 of its 131 bits."""
USED_SECONDS = 60.0
_MARK = PREFIX.encode()
_LENGTH = len(PREFIX) + auth.KEY_LENGTH + auth.CHECK_LENGTH

log = logging.getLogger(__name__)


class Keyring:
    """All keys that were ever made. `load` first; the database is only asked to change something."""

    def __init__(self, store: ApiKeys, clock: Clock, chance: Random) -> None:
        self._store = store
        self._clock = clock
        self._chance = chance
        self._by_hash: dict[bytes, StoredKey] = {}
        self._used: dict[int, int] = {}

    async def load(self) -> None:
        """Read them all. Raises StoreError."""
        self._keep(await self._store.load())

    def find(self, presented: bytes) -> Caller | None:
        """Find the caller of a key; None for all that does not let anybody in. A typo shows before anything is looked up."""
        if len(presented) != _LENGTH or not presented.startswith(_MARK) or not auth.well_formed(presented.decode("latin-1"), PREFIX):
            return None
        found = self._by_hash.get(auth.digest(presented))
        now_us = self._clock.now_us()
        if found is None or not found.live(now_us):
            return None
        self._used[found.id] = now_us
        return found.caller

    def listed(self) -> list[StoredKey]:
        """All of them, oldest first, with the times of their last use as they are now."""
        keys = sorted(self._by_hash.values(), key=lambda key: key.id)
        return [_with_use(key, self._used.get(key.id)) for key in keys]

    def live(self) -> list[StoredKey]:
        """Those that let somebody in."""
        now_us = self._clock.now_us()
        return [key for key in self._by_hash.values() if key.live(now_us)]

    async def create(self, caller: Caller) -> tuple[str, StoredKey]:
        """Make the first key of a caller; returns the key, which is told this once. Raises KeyRefusedError, StoreError."""
        secret, hashed = self._made()
        key = StoredKey(0, hashed, secret[:SHOWN], caller, self._clock.now_us())
        added = await self._changed(self._store.add(key))
        return secret, added[0]

    async def rotate(self, name: str, grace: float) -> tuple[str, StoredKey]:
        """Make a key that replaces a caller's, which lives for `grace` more seconds. Raises KeyRefusedError, StoreError."""
        secret, hashed = self._made()
        now_us = self._clock.now_us()
        changed = await self._changed(self._store.replace(name, (hashed, secret[:SHOWN]), now_us, now_us + int(grace * 1e6)))
        return secret, changed[0]

    async def revoke(self, name: str, prefix: str | None) -> list[StoredKey]:
        """End a caller's keys, or the one that is shown so. Running exchanges go on. Raises KeyRefusedError, StoreError."""
        return await self._changed(self._store.revoke(name, prefix, self._clock.now_us()))

    async def note_use(self) -> None:
        """Write, every so often, when keys were last used."""
        while True:
            try:
                await asyncio.sleep(USED_SECONDS)
            finally:
                await self.flush()

    async def flush(self) -> None:
        """Write when keys were last used, now."""
        used, self._used = self._used, {}
        if not used:
            return
        for key in [key for key in self._by_hash.values() if key.id in used]:
            self._by_hash[key.hash] = _with_use(key, used[key.id])
        try:
            await self._store.used(used)
        except StoreError as error:
            log.warning("when keys were last used was not written: %s", error)

    def _made(self) -> tuple[str, bytes]:
        secret = auth.generate_key(PREFIX, self._chance.randbytes(32))
        return secret, auth.digest(secret.encode())

    async def _changed(self, change: asyncio.Future[list[StoredKey]]) -> list[StoredKey]:
        """Take a change over as it reaches the disk, also when whoever asked for it has left."""

        def take(change: asyncio.Future[list[StoredKey]]) -> None:
            if not change.cancelled() and change.exception() is None:
                self._keep(change.result())

        change.add_done_callback(take)
        try:
            return await asyncio.shield(change)
        except KeyRefusedError:
            # What stands in the way may be a change of which nobody knew whether the disk had taken it.
            await self._changed(self._store.all())
            raise

    def _keep(self, keys: Iterable[StoredKey]) -> None:
        for key in keys:
            self._by_hash[key.hash] = key


def document(key: StoredKey, now_us: int) -> dict[str, object]:
    """Tell of a key to a program; the key itself is not known."""
    caller = key.caller
    return {
        "name": caller.name,
        "prefix": key.prefix,
        "state": "live" if key.live(now_us) else "revoked" if key.revoked_at is not None else "expired",
        "models": list(caller.models),
        "rpm": caller.limits.rpm,
        "tpm": caller.limits.tpm,
        "concurrency": caller.limits.concurrency,
        "budget": None if caller.budget is None else written(caller.budget),
        "admin": caller.admin,
        "default_model": caller.default_model,
        "delivery": told(caller.delivery),
        "created_at": key.created_at,
        "expires_at": caller.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


def written(budget: Budget) -> str:
    """Write a budget as it is read."""
    if budget.unit == TOKENS:
        return f"{budget.amount} tokens/{budget.per}"
    return f"{price.written(budget.amount)}{budget.unit}/{budget.per}"


def told(delivery: DeliveryDefaults) -> dict[str, object] | None:
    """Tell how answers leave; what is not said is left out."""
    return {name: said for name, said in asdict(delivery).items() if said is not None} or None


def _with_use(key: StoredKey, moment: int | None) -> StoredKey:
    if moment is None:
        return key
    return StoredKey(key.id, key.hash, key.prefix, key.caller, key.created_at, key.revoked_at, moment)
