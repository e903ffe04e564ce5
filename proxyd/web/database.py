"""The care of the database, on the operator's port: the daemon is its one writer, so others ask it to."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.reprice import Prices, reprice
from proxyd.store import upkeep
from proxyd.store.file import StoreError
from proxyd.web.document import asked, tell

if TYPE_CHECKING:
    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream


async def prune(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Delete usage rows from before `before_us` (default: as `storage.retain` says), kept answers and conversations whose time is up."""
    order = await _order(runtime, down)
    now = runtime.clock.now_us()
    horizon = upkeep.horizon(runtime.snapshot.config.storage.retain, now)
    before = order.get("before_us", horizon.usage)
    # A moment that is still to come would empty the ledger.
    if before is not None and (type(before) is not int or not 0 <= before <= now):
        raise ProxyError("invalid_request", "`before_us` is a past moment, in microseconds since the epoch.", param="before_us")
    try:
        done = await runtime.pruned(replace(horizon, usage=before))
    except StoreError as error:
        raise ProxyError("ledger_unavailable", str(error)) from error
    tell(down, asdict(done))


async def vacuum(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Give the database's free room back to the disk."""
    await _order(runtime, down)
    try:
        before, after = await upkeep.vacuum(runtime.database)
    except StoreError as error:
        raise ProxyError("ledger_unavailable", str(error)) from error
    tell(down, {"before": before, "after": after})


async def priced_again(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Price settled rows since `since_us` again; `missing`: only those without a cost."""
    order = await _order(runtime, down)
    begin, missing = order.get("since_us", 0), order.get("missing", False)
    if not isinstance(begin, int) or not isinstance(missing, bool):
        raise ProxyError("invalid_request", "Send {since_us: microseconds since the epoch, missing: true or false}.")
    snapshot = runtime.snapshot
    prices = Prices(snapshot.routes, snapshot.prices, runtime.price_list, snapshot.config.upstreams)
    try:
        looked, changed = await reprice(runtime.database, prices, begin, missing=missing)
    except StoreError as error:
        raise ProxyError("ledger_unavailable", str(error)) from error
    tell(down, {"looked_at": looked, "changed": changed})


async def _order(runtime: Runtime, down: Downstream) -> dict[str, object]:
    """Read a request, and refuse one that means another database than this daemon's. Raises ProxyError."""
    order = await asked(down)
    mine, meant = runtime.database.path.resolve(), order.get("database")
    if isinstance(meant, str) and Path(meant) != mine:
        raise ProxyError("conflict", f"The proxyd at this port writes {mine}, not {meant[:4096]}.", param="database")
    return order
