"""What an attempt costs: its route's price, else the list's, put into its row."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxyd.rules.price import cost, parts

if TYPE_CHECKING:
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.runtime import Runtime
    from proxyd.model import LedgerRow
    from proxyd.rules.price import Quote
    from proxyd.rules.pricelist import PriceList


def price_now(ex: Exchange, row: LedgerRow, address: str | None, runtime: Runtime) -> bool:
    """Price a row whose tokens are known. False if the list must be asked first, which `price_later` does.

    `address` is the base URL of the attempt's upstream: the exchange may be at another one by now.
    """
    if row.usage.prompt_tokens is None:
        return True
    quote = ex.snapshot.prices.get(ex.label)
    if quote is None:
        known, quote = runtime.price_list.remembered(address, row.upstream_model, row.service_tier, row.created_at)
        if not known:
            return False
    charge(row, quote)
    return True


async def price_later(row: LedgerRow, address: str | None, runtime: Runtime) -> None:
    """Price a row by the list, off the loop."""
    charge(row, await asyncio.to_thread(runtime.price_list.find, address, row.upstream_model, row.service_tier, row.created_at))


async def quotes(ex: Exchange, prices: PriceList, at_us: int) -> list[Quote]:
    """What an exchange may be charged by: its route's price, else the list's for each upstream that it may go to."""
    own = ex.snapshot.prices.get(ex.label)
    if own is not None or ex.route is None:
        return [] if own is None else [own]
    found = []
    for target in ex.route.targets:
        address = ex.snapshot.config.upstreams[target.upstream].base_url
        known, quote = prices.remembered(address, target.model, None, at_us)
        if not known:
            quote = await asyncio.to_thread(prices.find, address, target.model, None, at_us)
        if quote is not None:
            found.append(quote)
    return found


def charge(row: LedgerRow, quote: Quote | None) -> None:
    """Put into a row what its tokens cost, and by which price. Without a price, or with unknown counts, it stays unknown."""
    if quote is None:
        return
    row.cost_nano = cost(quote.price, parts(row.usage), row.service_tier)
    if row.cost_nano is not None:
        row.currency, row.price_source, row.price_version = quote.price.currency, quote.source, quote.version
