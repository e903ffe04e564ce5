"""What providers charge, out of the list that the extra `prices` brings: looked up when a route has no price of its own.

The list is data of a package: nothing is fetched, ever. It is found by the upstream's address, so that a model of one's own
that is called like a famous one costs nothing; what the list does not know is unknown, not free.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import re
import threading
from decimal import Decimal
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from proxyd.config.schema import Kind
from proxyd.rules.price import Price, Quote, Rates, nano_per_million, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxyd.config.schema import Config

PACKAGE = "genai_prices"
REMEMBERED = 1024
"""Quotes kept; names of models come from clients where a route is a pattern."""
PERIOD = 900
"""Seconds that a quote is good for: some prices depend on the time of day."""
MAX_NAME = 256
_PUBLIC = re.compile(r"[a-z]+://[^/:]+\.[a-z]", re.IGNORECASE)
"""An address that a provider may have: a name with a dot. At `localhost`, `ollama` or 192.168.0.7 the list is not even read."""
_TROUBLE = (ImportError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)

# Which keys of the list are which rates; where the list tells text apart from sound, text is what is not sound.
_KEYS = {
    "input": ("input_mtok", "input_text_mtok"),
    "output": ("output_mtok", "output_text_mtok"),
    "cached_input": ("cache_read_mtok", "cache_text_read_mtok"),
    "cache_write": ("cache_write_mtok", "cache_write_5m_mtok", "cache_text_write_mtok"),
    "audio_input": ("input_audio_mtok",),
    "audio_output": ("output_audio_mtok",),
}
_ALSO = ("requests_kcount",)
"""Charged for every request, beside its tokens: a price that has it cannot be told from tokens alone."""


def installed() -> bool:
    """Whether the extra is there. Cheap: nothing is imported."""
    return util.find_spec(PACKAGE) is not None


class PriceList:
    """Answers from memory once `load` has run; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._providers: list[Any] | None = None
        self._source = ""
        self._quotes: dict[tuple[str, str, str | None, int], Quote | None] = {}
        self.missing = not installed()
        """The extra is not installed: there is nothing to look up."""
        self.trouble = ""
        """Why the list could not be read, where it could not."""

    def load(self) -> bool:
        """Read the list: a third of a second, 25 MB. Off the event loop; again and again does nothing, and says so. Raises ImportError."""
        with self._lock:
            due = self._providers is None and not self.missing
            if due:
                snapshot = importlib.import_module(f"{PACKAGE}.data_snapshot").get_snapshot()
                self._source = f"genai-prices {metadata.version('genai-prices')}"
                self._providers = list(snapshot.providers)
            return due

    def remembered(self, address: str | None, model: str, service_tier: str | None, at_us: int) -> tuple[bool, Quote | None]:
        """Say whether the answer is at hand, and the answer; if not, `find` has it, off the event loop."""
        if self.missing or not address or len(model) > MAX_NAME:
            return True, None
        place = (address, model, service_tier, at_us // (PERIOD * 1_000_000))
        quote = self._quotes.get(place, _UNASKED)
        if quote is not _UNASKED:
            return True, quote
        return _PUBLIC.match(address) is None, None

    def find(self, address: str | None, model: str, service_tier: str | None, at_us: int) -> Quote | None:
        """Look up what a model costs at an address (a base URL) and a moment; None where the list does not know. Never fails."""
        known, quote = self.remembered(address, model, service_tier, at_us)
        if known or address is None:
            return quote
        try:
            self.load()
            quote = self._look_up(address, model, service_tier, at_us)
        except _TROUBLE as error:
            self.trouble, quote = f"{type(error).__name__}: {error}", None  # another version's data: it knows nothing
        with self._lock:
            while len(self._quotes) >= REMEMBERED:
                del self._quotes[next(iter(self._quotes))]
            self._quotes[address, model, service_tier, at_us // (PERIOD * 1_000_000)] = quote
        return quote

    def knows(self, address: str | None) -> bool:
        """Whether the list has prices of whoever is at an address. May read the list."""
        with contextlib.suppress(*_TROUBLE):
            self.load()
        return address is not None and any(re.match(each.api_pattern, address) for each in self._providers or ())

    def _look_up(self, address: str, model: str, service_tier: str | None, at_us: int) -> Quote | None:
        providers = self._providers or []
        # The package's own look-up remembers every name that was ever asked for, without end.
        provider = next((each for each in providers if re.match(each.api_pattern, address)), None)
        found = provider.find_model(model, all_providers=providers) if provider is not None else None
        if found is None:
            return None
        when = dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC)
        prices = found.get_prices(when, {"service_tier": service_tier} if service_tier else None)
        price = _price(vars(prices))
        return None if price is None else quoted(price, self._source)


def may_ask(config: Config) -> bool:
    """Whether a route's cost will have to be looked up."""
    targets = (target for route in config.models.values() if route.price is None for target in route.upstreams)
    addresses = {config.upstreams[target.upstream].base_url for target in targets}
    return any(address is not None and _PUBLIC.match(address) for address in addresses)


def unpriced(config: Config, prices: PriceList, at_us: int) -> Iterator[tuple[str, str]]:
    """Find the routes and upstreams whose use will have no known cost. May read the list.

    What runs on one's own machines is not asked after; of a pattern nobody knows which models it will mean, so it counts only
    where the list does not know the upstream either.
    """
    for label, route in config.models.items():
        for target in route.upstreams if route.price is None else ():
            spec = config.upstreams[target.upstream]
            if spec.kind in (Kind.ECHO, Kind.OLLAMA):
                continue
            known = prices.knows(spec.base_url) if label.endswith("*") else False
            if not known and prices.find(spec.base_url, target.model or label, None, at_us) is None:
                yield label, target.upstream


def _price(listed: dict[str, Any]) -> Price | None:
    """Turn a price of the list (dollars a million tokens, each key flat or in tiers) into ours; None if it is not by tokens alone."""
    if any(listed.get(key) is not None for key in _ALSO):
        return None
    rates = {name: found for name, keys in _KEYS.items() if (found := next(_present(listed, keys), None)) is not None}
    if "input" not in rates and "output" not in rates:
        return None
    borders = sorted({tier.start for rate in rates.values() for tier in getattr(rate, "tiers", ())})
    return Price(_at(rates, 0), tuple((border, _at(rates, border + 1)) for border in borders))


def _present(listed: dict[str, Any], keys: tuple[str, ...]) -> Iterator[Any]:
    return (listed[key] for key in keys if listed.get(key) is not None)


def _at(rates: dict[str, Any], prompt: int) -> Rates:
    """The rates that hold for a prompt of that length."""
    flat: dict[str, int] = {}
    for name, rate in rates.items():
        amount = getattr(rate, "base", rate)
        for tier in getattr(rate, "tiers", ()):
            if prompt > tier.start:
                amount = tier.price
        flat[name] = nano_per_million(amount.quantize(_BILLIONTH))  # some were floats once: 0.18000000000000002
    return Rates(**flat)


_UNASKED: Any = object()
_BILLIONTH = Decimal("1e-9")
