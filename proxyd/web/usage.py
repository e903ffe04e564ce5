"""What a caller has used, for the caller itself."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING

from proxyd.config.units import since
from proxyd.errors import ProxyError
from proxyd.flow.admit import authenticate
from proxyd.rules.price import written_cost
from proxyd.store.file import StoreError
from proxyd.store.usage import By, Period, document, report
from proxyd.web.document import tell

if TYPE_CHECKING:
    from proxyd.flow.runtime import Runtime
    from proxyd.store.usage import Line, Report
    from proxyd.web.downstream import Downstream

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
        found = await _reported(runtime, By(by), Period(begin), caller.name)
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
    tell(down, told)


async def _reported(runtime: Runtime, by: By, period: Period, caller: str) -> Report:
    """Read a report when it is its turn. A thread whose client has left reads on, and counts until it is done. Raises StoreError."""
    await runtime.reports.acquire()
    work = asyncio.get_running_loop().run_in_executor(None, report, runtime.database.path, by, period, caller)
    work.add_done_callback(lambda _: runtime.reports.release())
    return await asyncio.shield(work)


def _told(line: Line) -> dict[str, object]:
    """A line, its cost also as people write it."""
    return {**document(line), "cost": {currency: written_cost(nano) for currency, nano in line.cost_nano.items()}}
