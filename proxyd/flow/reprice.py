"""History priced again: tokens are stored, so every row can be given the cost that today's prices make of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.rules.price import cost, parts
from proxyd.store.reprice import Cost, read_priced, write_costs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxyd.config.schema import Upstream
    from proxyd.rules.price import Quote
    from proxyd.rules.pricelist import PriceList
    from proxyd.rules.routes import RouteTable
    from proxyd.store.db import Database
    from proxyd.store.reprice import Priced


@dataclass(frozen=True, slots=True)
class Prices:
    """All that prices come from."""

    routes: RouteTable
    quotes: Mapping[str, Quote]
    """By label of a route."""
    price_list: PriceList
    upstreams: Mapping[str, Upstream]

    def find(self, row: Priced) -> Quote | None:
        """What a row's tokens cost now. May read the list: off the event loop."""
        route = self.routes.resolve(row.model)
        if route is not None and (quote := self.quotes.get(route.label)) is not None:
            return quote
        spec = self.upstreams.get(row.upstream)
        address = None if spec is None else spec.base_url
        return self.price_list.find(address, row.upstream_model, row.service_tier, row.created_at)


async def reprice(database: Database, prices: Prices, since_us: int, *, missing: bool) -> tuple[int, int]:
    """Price all settled rows since a moment again; with `missing`, only those without a cost. Raises StoreError.

    A cost that is known is never made unknown: what has left the configuration keeps the price of its day. Returns how many
    rows were looked at, and how many have another cost now.
    """
    looked = changed = after = 0
    while rows := await read_priced(database, after, since_us, missing=missing):
        after = rows[-1].id
        looked += len(rows)
        costs = await asyncio.to_thread(_costs, prices, rows)
        if costs:
            await write_costs(database, costs)
        changed += len(costs)
    return looked, changed


def _costs(prices: Prices, rows: list[Priced]) -> list[tuple[int, Cost]]:
    """The rows whose cost is another now."""
    found = []
    for row in rows:
        quote = prices.find(row)
        nano = None if quote is None else cost(quote.price, parts(row.usage), row.service_tier)
        if quote is None or nano is None:
            continue
        fresh = Cost(nano, quote.price.currency, quote.source, quote.version)
        if fresh != row.cost:
            found.append((row.id, fresh))
    return found
