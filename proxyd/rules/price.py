"""What tokens cost: prices in, integers out. Costs are in 10⁻⁹ of the currency; unknown is None, never 0.

A price is kept as an integer too, 10⁻⁹ of the currency per million tokens, so that 0.075 dollars a million is exact and
no sum drifts. What the provider counts inside another number (cached input inside the prompt, reasoning and audio inside
the answer) is priced apart where it has a price, else as what it is inside of.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxyd.config import schema
    from proxyd.model import Usage

NANO = 10**9
MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in 10⁻⁹ of the currency per million tokens; None is not known (or not apart)."""

    input: int | None = None
    output: int | None = None
    cached_input: int | None = None
    """Of input that the provider had cached."""
    cache_write: int | None = None
    """Of input that it put into its cache."""
    audio_input: int | None = None
    reasoning: int | None = None
    audio_output: int | None = None


RATES = tuple(one.name for one in fields(Rates))


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one route."""

    rates: Rates
    above: tuple[tuple[int, Rates], ...] = ()
    """(prompt tokens, rates): beyond so many, these hold for the whole request, as providers have it."""
    services: Mapping[str, Rates] = field(default_factory=dict)
    """Rates by the answer's `service_tier` (flex, priority, batch), before any other."""
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class Quote:
    """A price, who says so, and which version of it."""

    price: Price
    source: str
    """`config`, or a list and its version."""
    version: str
    """A digest of all rates: the same rates have the same version, wherever they stand."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Tokens by what they are; the last five are inside the first two."""

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    cache_write: int = 0
    audio_input: int = 0
    reasoning: int = 0
    audio_output: int = 0


def nano_per_million(amount: str | float | Decimal, per: int = MILLION) -> int:
    """Read a price as people write it: `0.075` for `per` tokens.

    A float counts as the shortest decimal that names it, so 0.1 is 0.1. Raises ValueError for what is no price: negative,
    not a number, or finer than 10⁻⁹ per million tokens.
    """
    try:
        exact = (amount if isinstance(amount, Decimal) else Decimal(str(amount))) * NANO * MILLION / per
    except InvalidOperation:
        raise ValueError(f"{amount!r} is no price") from None
    if not exact.is_finite() or exact < 0 or exact != exact.to_integral_value():
        raise ValueError(f"{amount!r} per {per} is no price")
    return int(exact)


def price_of(written: schema.Price) -> Price:
    """Turn a price of the YAML into integers. What a tier or service leaves out is as in the base."""
    base = {name: None if (amount := getattr(written, name)) is None else nano_per_million(amount, written.per) for name in RATES}

    def over(rates: schema.Rates) -> Rates:
        own = {name: nano_per_million(amount, written.per) for name in RATES if (amount := getattr(rates, name)) is not None}
        return Rates(**{**base, **own})

    return Price(
        Rates(**base),
        tuple((tier.above, over(tier)) for tier in written.tiers),
        {name: over(rates) for name, rates in written.services.items()},
        written.currency,
    )


def quoted(price: Price, source: str) -> Quote:
    """Put a price under its version."""
    text = " ".join([price.currency, *_said("", price.rates), *_tiers_said(price)])
    return Quote(price, source, hashlib.sha256(text.encode()).hexdigest()[:12])


def written_cost(nano: int) -> str:
    """Write an amount exactly, with two to nine decimals: 1500000 is `0.0015`."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{decimals}"


def written(nano: int) -> str:
    """Write an amount as people do: 20 and 0.5, without zeros at the end."""
    return written_cost(nano).rstrip("0").removesuffix(".")


def parts(usage: Usage) -> Parts:
    """Take the parts out of a usage report.

    The answer is what lies between prompt and total, if that is more than was reported as the answer: Gemini and xAI count
    reasoning in the total alone.
    """
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    if prompt is not None and total is not None:
        completion = max(completion or 0, total - prompt)
    return Parts(
        prompt,
        completion,
        cached=usage.cached_tokens or 0,
        cache_write=usage.cache_write_tokens or 0,
        audio_input=usage.audio_input_tokens or 0,
        reasoning=usage.reasoning_tokens or 0,
        audio_output=usage.audio_output_tokens or 0,
    )


def cost(price: Price | None, tokens: Parts, service_tier: str | None = None) -> int | None:
    """Compute what the tokens cost, in 10⁻⁹ of the currency, rounded half up, once; None where any part has no known price.

    A number of tokens that is not known makes the cost unknown.
    """
    if price is None or tokens.prompt is None or tokens.completion is None:
        return None
    rates = _rates(price, tokens.prompt, service_tier)
    inside = ((tokens.cached, rates.cached_input), (tokens.cache_write, rates.cache_write), (tokens.audio_input, rates.audio_input))
    of_input = _side(tokens.prompt, rates.input, inside)
    of_output = _side(tokens.completion, rates.output, ((tokens.audio_output, rates.audio_output), (tokens.reasoning, rates.reasoning)))
    if of_input is None or of_output is None:
        return None
    return (of_input + of_output + MILLION // 2) // MILLION


def _said(prefix: str, rates: Rates) -> Iterator[str]:
    for name in RATES:
        if (rate := getattr(rates, name)) is not None:
            yield f"{prefix}{name}={rate}"


def _tiers_said(price: Price) -> Iterator[str]:
    for above, rates in sorted(price.above, key=lambda tier: tier[0]):
        yield from _said(f"{above}:", rates)
    for service, rates in sorted(price.services.items()):
        yield from _said(f"{service}:", rates)


def _rates(price: Price, prompt: int, service_tier: str | None) -> Rates:
    if service_tier is not None and service_tier in price.services:
        return price.services[service_tier]
    beyond = [tier for tier in price.above if prompt > tier[0]]
    return max(beyond, key=lambda tier: tier[0])[1] if beyond else price.rates


def _side(count: int, rate: int | None, inside: tuple[tuple[int, int | None], ...]) -> int | None:
    """Price one side in 10⁻⁹ per million times tokens; parts are never more than the whole that they are inside of."""
    total, rest = 0, max(0, count)
    for tokens, own in inside:
        if own is not None:
            apart = min(max(0, tokens), rest)
            total, rest = total + apart * own, rest - apart
    if rest == 0:
        return total
    return None if rate is None else total + rest * rate
