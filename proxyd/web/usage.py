"""What a caller has used, for the caller itself; and on the operator's port, history priced again."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING

import orjson

from proxyd.config.units import since
from proxyd.errors import ProxyError
from proxyd.flow.admit import authenticate
from proxyd.flow.reprice import Prices, reprice
from proxyd.rules.price import written_cost
from proxyd.store.file import StoreError
from proxyd.store.usage import By, Period, document, report

if TYPE_CHECKING:
    from proxyd.flow.runtime import Runtime
    from proxyd.store.usage import Line
    from proxyd.web.downstream import Downstream

JSON = (b"Content-Type", b"application/json")
BY = (By.MODEL, By.DAY, By.CONVERSATION)
"""What a caller may ask by: who else calls, and which upstreams there are, is not for callers."""
DEFAULT = "30d"


async def used(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Sum up the caller's own rows: `?by=model|day|conversation&since=7d`."""
    caller = await authenticate(runtime, down)
    by, text = down.query.get("by", By.MODEL.value), down.query.get("since", DEFAULT)
    if by not in {each.value for each in BY}:
        raise ProxyError("invalid_request", f"`by` is one of {', '.join(each.value for each in BY)}.", param="by")
    try:
        begin = since(text, runtime.clock.now_us())
    except ValueError as error:
        raise ProxyError("invalid_request", f"`since` {error}.", param="since") from None
    try:
        async with runtime.reports:
            found = await asyncio.to_thread(report, runtime.database.path, By(by), Period(begin), caller.name)
    except StoreError as error:
        raise ProxyError("ledger_unavailable", "The ledger cannot be read now.") from error
    told = {
        "object": "usage",
        "caller": caller.name,
        "by": by,
        "since": None if begin is None else dt.datetime.fromtimestamp(begin / 1e6, dt.UTC).isoformat(timespec="seconds"),
        "data": [{by: line.key, **_told(line)} for line in found.lines],
        "total": _told(found.total),
    }
    down.reply(200, [JSON], orjson.dumps(told))


async def priced_again(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Price settled rows since `since_us` again; `missing`: only those without a cost."""
    try:
        asked = orjson.loads(await down.body(64 * 1024, timeout=10) or b"{}")
    except ValueError:
        asked = None
    begin, missing = (asked.get("since_us", 0), asked.get("missing", False)) if isinstance(asked, dict) else (None, None)
    if not isinstance(begin, int) or not isinstance(missing, bool):
        raise ProxyError("invalid_request", "Send {since_us: microseconds since the epoch, missing: true or false}.")
    mine = str(runtime.database.path.resolve())
    if asked.get("database", mine) != mine:
        raise ProxyError("conflict", f"The proxyd at this port writes {mine}.", param="database")
    snapshot = runtime.snapshot
    prices = Prices(snapshot.routes, snapshot.prices, runtime.price_list, snapshot.config.upstreams)
    try:
        looked, changed = await reprice(runtime.database, prices, begin, missing=missing)
    except StoreError as error:
        raise ProxyError("ledger_unavailable", str(error)) from error
    down.reply(200, [JSON], orjson.dumps({"looked_at": looked, "changed": changed}))


def _told(line: Line) -> dict[str, object]:
    """A line, its cost also as people write it."""
    return {**document(line), "cost": {currency: written_cost(nano) for currency, nano in line.cost_nano.items()}}
