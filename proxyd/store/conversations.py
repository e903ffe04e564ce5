"""Conversations on disk: each one a caller's own, its messages in order, a turn written whole or not at all."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection

    from proxyd.store.db import Database

PRUNE_ROWS = 20
"""Conversations deleted in one commit: pruning must never make the writer wait."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A conversation as it stands. Times in microseconds since the epoch."""

    name: str
    model: str
    """Of its first turn; empty before."""
    settings: str
    """JSON: members of the first turn's request that hold for later ones."""
    length: int
    version: int
    created_at: int
    updated_at: int
    messages: tuple[str, ...] = ()
    """Each one as JSON; none where only the conversation was asked for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn adds. It is written only if the conversation stands as it stood when the turn began."""

    caller: str
    name: str
    version: int | None
    """None: there was no such conversation."""
    base: int
    """How many of its messages come before; those behind them are replaced."""
    messages: tuple[str, ...]
    model: str
    settings: str
    request_id: str
    at_us: int


_COLUMNS = "name, model, settings, length, version, created_at, updated_at"
_FIND = f"SELECT {_COLUMNS} FROM conversations WHERE caller = ? AND name = ?"  # noqa: S608 - names of columns
_LIST = f"SELECT {_COLUMNS} FROM conversations WHERE caller = ? AND (updated_at, name) < (?, ?) ORDER BY updated_at DESC, name DESC LIMIT ?"  # noqa: S608
_MESSAGES = "SELECT body FROM messages WHERE conversation = (SELECT id FROM conversations WHERE caller = ? AND name = ?) ORDER BY position"
_CREATE = (
    "INSERT INTO conversations (caller, name, model, settings, length, version, request_id, created_at, updated_at) "
    "VALUES (?, ?, ?, ?, 0, 0, '', ?, ?)"
)
_STANDING = "SELECT id, version, request_id FROM conversations WHERE caller = ? AND name = ?"
_CUT = "DELETE FROM messages WHERE conversation = ? AND position >= ?"
_ADD = "INSERT INTO messages (conversation, position, body, request_id, created_at) VALUES (?, ?, ?, ?, ?)"
_GROW = "UPDATE conversations SET model = ?, settings = ?, length = ?, version = version + 1, request_id = ?, updated_at = ? WHERE id = ?"
_DELETE = "DELETE FROM conversations WHERE caller = ? AND name = ?"
_EXPIRED = """
DELETE FROM conversations WHERE id IN (
    SELECT id FROM conversations WHERE updated_at < ? AND (caller, name) NOT IN (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
    )
    ORDER BY updated_at LIMIT ?
)
"""
LATEST = 2**63 - 1


class Conversations:
    """Reads and writes `conversations` and `messages`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.busy: Collection[tuple[str, str]] = ()
        """Caller and name of those in which a turn runs: they are in use, however long ago the last one was."""

    async def load(self, caller: str, name: str) -> Stored | None:
        """A caller's conversation with its messages; None where there is none. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> Stored | None:
            row = connection.execute(_FIND, (caller, name)).fetchone()
            if row is None:
                return None
            return replace(Stored(*row), messages=tuple(body for (body,) in connection.execute(_MESSAGES, (caller, name))))

        return await self._db.read(work)

    async def page(self, caller: str, before: tuple[int, str], most: int) -> list[Stored]:
        """A caller's conversations, the last used first, behind (updated_at, name). Without their messages. Raises StoreError."""
        return await self._db.read(lambda connection: [Stored(*row) for row in connection.execute(_LIST, (caller, *before, most))])

    def create(self, turn: Turn) -> asyncio.Future[bool]:
        """Begin a conversation, perhaps with messages; False if it is there already. Fails with StoreError."""

        def work(connection: sqlite3.Connection) -> bool:
            try:
                connection.execute(_CREATE, (turn.caller, turn.name, turn.model, turn.settings, turn.at_us, turn.at_us))
            except sqlite3.IntegrityError:
                return False
            if turn.messages:
                _keep(connection, turn, version=0)
            return True

        return self._db.submit(work)

    def keep(self, turn: Turn) -> asyncio.Future[None]:
        """Write a turn, in the next commit. Never fails; what does not fit what stands there any more is left out."""

        def work(connection: sqlite3.Connection) -> None:
            if turn.version is None:
                connection.execute(
                    _CREATE + " ON CONFLICT DO NOTHING", (turn.caller, turn.name, turn.model, turn.settings, turn.at_us, turn.at_us)
                )
            _keep(connection, turn, version=turn.version or 0)

        return self._db.put(("conversations", turn.request_id), work)

    def delete(self, caller: str, name: str) -> asyncio.Future[bool]:
        """Delete a conversation and its messages; False if there is none. Fails with StoreError."""
        return self._db.submit(lambda connection: connection.execute(_DELETE, (caller, name)).rowcount > 0)

    async def prune(self, before_us: int) -> int:
        """Delete those that were last used before a moment, a few at a time. Returns how many. Raises StoreError."""
        deleted = 0
        while step := await self._step(before_us):
            deleted += step
        return deleted

    def _step(self, before_us: int) -> asyncio.Future[int]:
        busy = json.dumps(list(self.busy))
        return self._db.submit(lambda connection: connection.execute(_EXPIRED, (before_us, busy, PRUNE_ROWS)).rowcount)


def _keep(connection: sqlite3.Connection, turn: Turn, *, version: int) -> None:
    """Write the turn's messages behind those that come before. It may run again when the disk fails: the request id tells."""
    standing = connection.execute(_STANDING, (turn.caller, turn.name)).fetchone()
    if standing is None or standing[1] != version or standing[2] == turn.request_id:
        return
    row = standing[0]
    connection.execute(_CUT, (row, turn.base))
    added = [(row, turn.base + place, body, turn.request_id, turn.at_us) for place, body in enumerate(turn.messages)]
    connection.executemany(_ADD, added)
    connection.execute(_GROW, (turn.model, turn.settings, turn.base + len(added), turn.request_id, turn.at_us, row))
