"""What the first exchanges would wait for, loaded behind the listening, off the event loop, and only what is sure to be needed."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING

from proxyd.rules.pricelist import may_ask
from proxyd.upstream.kinds import may_ask_usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxyd.config.schema import Config
    from proxyd.flow.runtime import Runtime

log = logging.getLogger(__name__)


async def warm(runtime: Runtime) -> None:
    """Load the list of prices where a route has none of its own, and vocabularies where an upstream does not count. At start and reload."""
    config, prices, tokenizers = runtime.snapshot.config, runtime.price_list, runtime.tokenizers
    loaded = False
    if may_ask(config):
        try:
            loaded = await asyncio.to_thread(prices.load)
        except ImportError as error:
            log.warning("the list of prices cannot be loaded, and costs stay unknown: %s", error)
    for model in uncounted(config):
        loaded = await asyncio.to_thread(tokenizers.load, model) or loaded
    if loaded:
        gc.freeze()  # it stays: no collection needs to look at it


def uncounted(config: Config) -> Iterator[str]:
    """Name the models, as their upstreams know them, of which no usage is reported: their tokens are counted here."""
    for label, route in config.models.items():
        for target in route.upstreams:
            if not may_ask_usage(config.upstreams[target.upstream]):
                yield target.model or label
