"""The care of the database, on the operator's port: the daemon is its one writer, so others ask it to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from proxyd.errors import ProxyError
from proxyd.store import upkeep
from proxyd.store.file import StoreError
from proxyd.web.app import JSON

if TYPE_CHECKING:
    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream

ASKED = 64 * 1024
"""Bytes that a request may have."""


async def prune(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Delete usage rows from before `before_us` (default: as `storage.retain` says), kept answers and conversations whose time is up."""
    asked = await _asked(runtime, down)
    now, retain = runtime.clock.now_us(), runtime.snapshot.config.storage.retain.usage
    before = asked.get("before_us", None if retain is None else now - int(retain * 1e6))
    # A moment that is still to come would empty the ledger.
    if before is not None and (type(before) is not int or not 0 <= before <= now):
        raise ProxyError("invalid_request", "`before_us` is a past moment, in microseconds since the epoch.", param="before_us")
    try:
        done = await upkeep.prune(runtime.ledger, runtime.running.claims, before, now)
        kept = runtime.snapshot.config.storage.retain.conversations
        await runtime.memory.prune(None if kept is None else now - int(kept * 1e6))
    except StoreError as error:
        raise ProxyError("ledger_unavailable", str(error)) from error
    down.reply(200, [JSON], orjson.dumps({"usage": done.usage, "kept": done.kept}))


async def vacuum(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Give the database's free room back to the disk."""
    await _asked(runtime, down)
    try:
        before, after = await upkeep.vacuum(runtime.database)
    except StoreError as error:
        raise ProxyError("ledger_unavailable", str(error)) from error
    down.reply(200, [JSON], orjson.dumps({"before": before, "after": after}))


async def _asked(runtime: Runtime, down: Downstream) -> dict[str, object]:
    """Read a request, and refuse one that means another database than this daemon's. Raises ProxyError."""
    try:
        asked = orjson.loads(await down.body(ASKED, timeout=10) or b"{}")
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise ProxyError("invalid_json", "The request is not a JSON object.")
    mine, meant = runtime.database.path.resolve(), asked.get("database")
    if isinstance(meant, str) and Path(meant) != mine:
        raise ProxyError("conflict", f"The proxyd at this port writes {mine}, not {meant[:4096]}.", param="database")
    return asked
