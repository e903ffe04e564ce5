"""Keys on disk: hashes, and what each one allows. `load` them once; every change returns what has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.model import Budget, Caller, DeliveryDefaults, Limits, Per
from proxyd.store.file import read

if TYPE_CHECKING:
    import asyncio
    import sqlite3
    from collections.abc import Mapping
    from pathlib import Path

    from proxyd.store.db import Database

LIVE_AT_ONCE = 2
"""Keys of one caller, while a new one replaces the old."""


class KeyRefusedError(Exception):
    """The change cannot be made as things stand; the message says what to do."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A row."""

    id: int
    """0 before it is written."""
    hash: bytes
    prefix: str
    caller: Caller
    created_at: int
    revoked_at: int | None = None
    last_used_at: int | None = None

    def live(self, now_us: int) -> bool:
        """Whether it lets its caller in."""
        expires = self.caller.expires_at
        return self.revoked_at is None and (expires is None or now_us < expires)


_COLUMNS = (
    *("id", "hash", "prefix", "caller", "models", "admin", "rpm", "tpm", "concurrency"),
    *("budget_amount", "budget_unit", "budget_per", "budget_warn_at", "default_model", "created_at", "expires_at"),
    *("revoked_at", "last_used_at", "max_delay_ms", "max_bytes", "compress"),
)
# Names of columns only; every value is bound.
_ALL = f"SELECT {', '.join(_COLUMNS)} FROM api_keys"  # noqa: S608
_OF = f"{_ALL} WHERE caller = ? ORDER BY id"
_ADD = f"INSERT INTO api_keys ({', '.join(_COLUMNS[1:])}) VALUES ({', '.join('?' * (len(_COLUMNS) - 1))})"  # noqa: S608
_EXPIRE = "UPDATE api_keys SET expires_at = ? WHERE id = ?"
_REVOKE = "UPDATE api_keys SET revoked_at = ? WHERE id = ?"
_USED = "UPDATE api_keys SET last_used_at = ? WHERE id = ?"


class ApiKeys:
    """Reads and writes `api_keys`. Every future fails with StoreError when the disk does."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def load(self) -> list[StoredKey]:
        """Read all keys, dead ones too. Raises StoreError."""
        return await self._db.read(_everything)

    def all(self) -> asyncio.Future[list[StoredKey]]:
        """Read all keys in turn with the changes: what was asked for before is in it, what is asked for later comes later."""
        return self._db.submit(_everything)

    def add(self, key: StoredKey) -> asyncio.Future[list[StoredKey]]:
        """Write the first key of a caller. Fails with KeyRefusedError where it has a live one."""

        def work(connection: sqlite3.Connection) -> list[StoredKey]:
            if any(other.live(key.created_at) for other in _of(connection, key.caller.name)):
                raise KeyRefusedError(f"{key.caller.name!r} has a key already: rotate it, or revoke it first.")
            return [_added(connection, key)]

        return self._db.submit(work)

    def replace(self, name: str, new: tuple[bytes, str], now_us: int, until_us: int) -> asyncio.Future[list[StoredKey]]:
        """Write a key (hash and prefix) that allows what the caller's newest one does; that one ends at `until_us`, if not before.

        Done with the new one and those that were changed. Fails with KeyRefusedError without a live key, or with two already.
        """

        def work(connection: sqlite3.Connection) -> list[StoredKey]:
            live = [key for key in _of(connection, name) if key.live(now_us)]
            if not live:
                raise KeyRefusedError(f"{name!r} has no live key: create one.")
            if len(live) >= LIVE_AT_ONCE and until_us > now_us:
                raise KeyRefusedError(f"{name!r} has two live keys already: revoke one of them first.")
            # The newest one says what is allowed; an end of its own goes on to hold.
            added = _added(connection, StoredKey(0, new[0], new[1], live[-1].caller, now_us))
            for key in live:
                ends = until_us if key.caller.expires_at is None else min(until_us, key.caller.expires_at)
                connection.execute(_EXPIRE, (ends, key.id)) if ends > now_us else connection.execute(_REVOKE, (now_us, key.id))
            changed = {key.id for key in live}
            return [added, *(key for key in _of(connection, name) if key.id in changed)]

        return self._db.submit(work)

    def revoke(self, name: str, prefix: str | None, now_us: int) -> asyncio.Future[list[StoredKey]]:
        """End a caller's live keys, or the one that begins with `prefix`. Fails with KeyRefusedError where there is none."""

        def work(connection: sqlite3.Connection) -> list[StoredKey]:
            ended = {key.id for key in _of(connection, name) if key.live(now_us) and (prefix is None or key.prefix == prefix)}
            if not ended:
                which = f" that begins with {prefix}" if prefix else ""
                raise KeyRefusedError(f"{name!r} has no live key{which}.")
            connection.executemany(_REVOKE, [(now_us, number) for number in ended])
            return [key for key in _of(connection, name) if key.id in ended]

        return self._db.submit(work)

    def used(self, moments: Mapping[int, int]) -> asyncio.Future[None]:
        """Note when keys were last used, by id."""
        rows = [(moment, number) for number, moment in moments.items()]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(_USED, rows)

        return self._db.submit(work)


def stored(path: Path) -> list[StoredKey]:
    """Read all keys of a database that somebody else may be writing. Raises StoreError."""
    return read(path, _everything)


def _everything(connection: sqlite3.Connection) -> list[StoredKey]:
    return [_key(row) for row in connection.execute(f"{_ALL} ORDER BY id")]


def _of(connection: sqlite3.Connection, name: str) -> list[StoredKey]:
    return [_key(row) for row in connection.execute(_OF, (name,))]


def _added(connection: sqlite3.Connection, key: StoredKey) -> StoredKey:
    caller, limits, budget, delivery = key.caller, key.caller.limits, key.caller.budget, key.caller.delivery
    values = (
        *(key.hash, key.prefix, caller.name, orjson.dumps(caller.models).decode(), int(caller.admin)),
        *(limits.rpm, limits.tpm, limits.concurrency),
        *((None,) * 4 if budget is None else (budget.amount, budget.unit, budget.per.value, budget.warn_at)),
        *(caller.default_model, key.created_at, caller.expires_at, key.revoked_at, key.last_used_at),
        *(delivery.max_delay_ms, delivery.max_bytes, delivery.compress),
    )
    number = connection.execute(_ADD, values).lastrowid
    return _key(connection.execute(f"{_ALL} WHERE id = ?", (number,)).fetchone())


def _key(row: tuple[Any, ...]) -> StoredKey:
    number, hashed, prefix, name, models, admin, rpm, tpm, concurrency, amount, unit, per, warn_at, default, created, expires = row[:16]
    revoked, used, delay, held, compress = row[16:]
    caller = Caller(
        name,
        tuple(orjson.loads(models)),
        admin=bool(admin),
        limits=Limits(rpm, tpm, concurrency),
        budget=None if amount is None else Budget(amount, unit, Per(per), warn_at),
        default_model=default,
        expires_at=expires,
        delivery=DeliveryDefaults(delay, held, None if compress is None else bool(compress)),
    )
    return StoredKey(number, hashed, prefix, caller, created, revoked, used)
