"""Claims on disk: one row under each caller's Idempotency-Key, durable before the upstream hears of the request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from proxyd.config.schema import Durability, OnFailure
from proxyd.store.known import ROOM, Known, collect
from proxyd.store.writer import Upsert

if TYPE_CHECKING:
    import sqlite3

    from proxyd.store.db import Database
    from proxyd.store.writer import Value

PRUNE_ROWS = 100
PRUNE_BYTES = 4 << 20
"""What is deleted in one commit, in rows and bytes of answers (or one row, however large): pruning must never make the writer wait."""
SIZE_LIMIT = 1 << 30
"""Bytes of kept answers; beyond it the oldest go first."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that wants to run under a key."""

    caller: str
    key: str
    endpoint: str
    streamed: bool
    fingerprint: bytes
    request_id: str
    attempt: int
    """The number of the upstream call that it is written for."""
    created_at: int
    expires_at: int

    def kept(self, state: str, status: int | None, headers: tuple[tuple[bytes, bytes], ...], body: bytes | None) -> Kept:
        """Its row, once it is known what has become of it."""
        name = self.caller, self.key, self.endpoint, self.streamed, self.fingerprint
        return Kept(*name, self.request_id, self.attempt, state, status, headers, body)


@dataclass(frozen=True, slots=True)
class Kept:
    """A row as it stands."""

    caller: str
    key: str
    endpoint: str
    streamed: bool
    fingerprint: bytes
    request_id: str
    attempt: int
    state: str
    status: int | None
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None
    frames: bytes | None = None
    """The same answer as frames of protobuf, where it was begun so."""
    usage_at: tuple[tuple[int, int], ...] = ()
    """From where to where in `body` events stand that only those are given who asked for the usage."""
    wants_usage: bool = True
    """Whoever began it asked so."""


_COLUMNS = "caller, key, endpoint, streamed, fingerprint, request_id, attempt, state, status, headers, body, frames, usage_at, wants_usage"
_FIND = f"SELECT {_COLUMNS} FROM idempotency_keys WHERE caller = ? AND key = ? AND expires_at > ?"  # noqa: S608 - names of columns
_BY_ID = f"SELECT {_COLUMNS} FROM idempotency_keys WHERE request_id = ?"  # noqa: S608
_CLAIM = (
    "INSERT INTO idempotency_keys (caller, key, endpoint, streamed, fingerprint, request_id, attempt, state, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?, ?) ON CONFLICT (caller, key) DO UPDATE SET endpoint = excluded.endpoint, "
    "streamed = excluded.streamed, fingerprint = excluded.fingerprint, request_id = excluded.request_id, attempt = excluded.attempt, "
    "state = 'running', begun = 0, status = NULL, headers = NULL, body = NULL, frames = NULL, usage_at = NULL, "
    "created_at = excluded.created_at, expires_at = excluded.expires_at"
)
_BEGUN = "UPDATE idempotency_keys SET begun = 1 WHERE request_id = ? AND state = 'running'"
_FINISH = (
    "UPDATE idempotency_keys SET state = ?, attempt = ?, status = ?, headers = ?, body = ?, frames = ?, usage_at = ?, wants_usage = ?, "
    "expires_at = ? WHERE request_id = ?"
)
_FORGET = "DELETE FROM idempotency_keys WHERE request_id = ? AND state != 'running'"
_ABANDON = "UPDATE idempotency_keys SET state = 'failed' WHERE request_id = ? AND state = 'running'"
# The ledger knows how many attempts a crash has cut short; the claim was written before them.
_RECOVER = (
    "UPDATE idempotency_keys SET state = CASE begun WHEN 1 THEN 'broken' ELSE 'failed' END, attempt = max(attempt, coalesce("
    "(SELECT max(attempt) FROM usage_events WHERE usage_events.request_id = idempotency_keys.request_id), 0)) WHERE state = 'running'"
)
# The oldest rows, up to so many bytes: `total` is what the rows before one hold.
_DELETE = (
    "DELETE FROM idempotency_keys WHERE id IN (SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY expires_at, id) - size AS total FROM "
    "(SELECT id, expires_at, coalesce(length(body), 0) + coalesce(length(frames), 0) AS size FROM idempotency_keys "
    "WHERE state != 'running' AND expires_at <= ? "
    "ORDER BY expires_at LIMIT ?)) WHERE total <= ?)"
)
_SIZE = "SELECT coalesce(sum(length(body)), 0) + coalesce(sum(length(frames)), 0) FROM idempotency_keys"
_NAMES = "SELECT caller, key FROM idempotency_keys"
_FOREVER = 2**63 - 1
_AS_BEGUN, _AS_FINISHED = 1, 2
"""Turns in a commit: a claim may be taken, begun and finished in one, behind the end of another."""


class Claims:
    """Reads and writes `idempotency_keys`. `recover` comes first, once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known = Known()
        self._learning = asyncio.Lock()
        self.size = 0
        """Bytes of the answers that are kept, as far as is known: exact after `prune`, grown by what was finished since."""
        self.crowded = asyncio.Event()
        """More than SIZE_LIMIT is kept: it is time to prune."""

    def fresh(self, caller: str, key: str) -> bool:
        """Whether certainly nothing stands under the key, so that `write` may follow without a `look`. Asked once: it takes note."""
        fresh = (caller, key) not in self._known
        self._known.add((caller, key))
        return fresh

    def write(self, claim: Claim) -> asyncio.Future[None]:
        """Take a key that is free: on disk with what is written in the same moment. Fails with StoreError as `Ledger.open` does."""
        strict = self._db.durability is Durability.STRICT
        keep = not strict or self._db.on_failure is OnFailure.SERVE
        undo = Upsert(_ABANDON, (claim.request_id,), _AS_FINISHED)
        name = ("idempotency_keys claim", claim.request_id)
        return self._db.put(name, Upsert(_CLAIM, _values(claim)), keep=keep, wait=strict, undo=undo)

    def look(self, caller: str, key: str, now_us: int) -> asyncio.Future[Kept | None]:
        """What stands under a caller's key, everything counted in that was put before. Fails with StoreError."""

        def work(connection: sqlite3.Connection) -> Kept | None:
            row = connection.execute(_FIND, (caller, key, now_us)).fetchone()
            return None if row is None else _kept(row)

        return self._db.submit(work)

    def begun(self, request_id: str, *, wait: bool = False) -> asyncio.Future[None]:
        """Note that a byte of the answer goes out: after a crash it tells a broken answer from none.

        With `wait` done when on disk, or when the disk fails; without, at once.
        """
        return self._db.put(("idempotency_keys begun", request_id), Upsert(_BEGUN, (request_id,), _AS_BEGUN), wait=wait)

    def finish(self, kept: Kept, expires_at: int) -> asyncio.Future[None]:
        """Write what has become of a claim. Done when on disk (strict), or at once; never fails."""
        headers = orjson.dumps([[name.decode("latin-1"), value.decode("latin-1")] for name, value in kept.headers]).decode()
        usage = orjson.dumps(kept.usage_at).decode() if kept.usage_at else None
        answer = (kept.state, kept.attempt, kept.status, headers, kept.body, kept.frames, usage, int(kept.wants_usage))
        params = (*answer, expires_at, kept.request_id)
        self.size += len(kept.body or b"") + len(kept.frames or b"")
        if self.size > SIZE_LIMIT:
            self.crowded.set()
        finish = Upsert(_FINISH, params, _AS_FINISHED)
        return self._db.put(("idempotency_keys", kept.request_id), finish, wait=self._db.durability is Durability.STRICT)

    async def find(self, caller: str, key: str, now_us: int) -> Kept | None:
        """What stands under a caller's key, or under a request id (whoever it belongs to: the asker must check)."""

        def work(connection: sqlite3.Connection) -> Kept | None:
            row = connection.execute(_FIND, (caller, key, now_us)).fetchone() or connection.execute(_BY_ID, (key,)).fetchone()
            return None if row is None else _kept(row)

        return await self._db.read(work)

    def forget(self, request_id: str) -> asyncio.Future[int]:
        """Delete the claim of a request that has ended, and what is kept under it. Fails with StoreError."""
        return self._db.submit(lambda connection: connection.execute(_FORGET, (request_id,)).rowcount)

    async def recover(self) -> None:
        """Close the claims that an earlier run left running, so that none stays stuck. Once, at start. Raises StoreError."""
        await self._db.submit(lambda connection: connection.execute(_RECOVER).rowcount)

    async def prune(self, now_us: int) -> int:
        """Delete what has expired, a few rows at a time; then the oldest, while more than SIZE_LIMIT is kept. Returns the size kept."""
        self.crowded.clear()
        await self._learn()
        while await self._delete(now_us):
            pass
        self.size = await self._db.read(_size)
        while self.size > SIZE_LIMIT and await self._delete(_FOREVER):
            self.size = await self._db.read(_size)
        return self.size

    async def _learn(self) -> None:
        """Find out which keys there are: after the start, and when many have expired since.

        Then it listens for one round first: what was claimed before that is in the file, if the disk is well.
        """
        async with self._learning:  # what another one reads before this one has learnt would lack what comes between
            if (self._known.count > ROOM and self._known.listen()) or not self._known.listening or not self._db.healthy:
                return
            self._known.learn(*await self._db.read(lambda connection: collect(connection.execute(_NAMES))))

    def _delete(self, expired_by: int) -> asyncio.Future[int]:
        return self._db.submit(lambda connection: connection.execute(_DELETE, (expired_by, PRUNE_ROWS, PRUNE_BYTES)).rowcount)


def _values(claim: Claim) -> tuple[Value, ...]:
    """Return the values of _CLAIM."""
    # fmt: off
    return (
        claim.caller, claim.key, claim.endpoint, 1 if claim.streamed else 0, claim.fingerprint, claim.request_id,
        claim.attempt, claim.created_at, claim.expires_at,
    )
    # fmt: on


def _size(connection: sqlite3.Connection) -> int:
    size: int = connection.execute(_SIZE).fetchone()[0]
    return size


def _kept(row: tuple[object, ...]) -> Kept:
    caller, key, endpoint, streamed, print_, request_id, attempt, state, status, headers, body, frames, usage_at, wants_usage = row
    listed = orjson.loads(headers) if isinstance(headers, str) else []
    return Kept(
        str(caller),
        str(key),
        str(endpoint),
        bool(streamed),
        bytes(print_),  # type: ignore[call-overload]  # a BLOB
        str(request_id),
        int(attempt),  # type: ignore[call-overload]  # an INTEGER
        str(state),
        status if isinstance(status, int) else None,
        tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in listed),
        body if isinstance(body, bytes) else None,
        frames if isinstance(frames, bytes) else None,
        tuple((begin, end) for begin, end in orjson.loads(usage_at)) if isinstance(usage_at, str) else (),
        bool(wants_usage),
    )
