"""Prices: exact integers, every part at its own rate, and unknown is not free."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config import schema
from proxyd.model import Usage
from proxyd.rules.price import Parts, Price, Rates, cost, nano_per_million, parts, price_of, quoted

MINI = Price(Rates(input=nano_per_million("0.15"), output=nano_per_million("0.60"), cached_input=nano_per_million("0.075")))


@pytest.mark.parametrize(
    ("amount", "per", "rate"),
    [
        ("0.15", 10**6, 150_000_000),
        (0.1, 10**6, 100_000_000),
        (0.075, 10**6, 75_000_000),
        (Decimal("0.0375"), 10**6, 37_500_000),
        (15, 10**6, 15_000_000_000),
        ("0.002", 1000, 2_000_000_000),
        ("0.00000015", 1, 150_000_000),
        (0, 10**6, 0),
    ],
)
def test_prices_are_read_as_they_are_written(amount: object, per: int, rate: int) -> None:
    assert nano_per_million(amount, per) == rate


@pytest.mark.parametrize("amount", ["", "free", "-1", -0.5, float("nan"), float("inf"), "1e-12"])
def test_what_is_no_price_is_refused(amount: object) -> None:
    with pytest.raises(ValueError, match="no price"):
        nano_per_million(amount)


@pytest.mark.parametrize(
    ("tokens", "nano"),
    [
        (Parts(1000, 500), 1000 * 150 + 500 * 600),
        (Parts(1000, 500, cached=400), 600 * 150 + 400 * 75 + 500 * 600),
        (Parts(1000, 500, cached=5000), 1000 * 75 + 500 * 600),  # a part is no more than its whole
        (Parts(1000, 500, reasoning=300), 1000 * 150 + 500 * 600),  # no rate of its own
        (Parts(0, 0), 0),
        (Parts(1, 0, cached=1), 75),
    ],
)
def test_each_part_has_its_rate(tokens: Parts, nano: int) -> None:
    assert cost(MINI, tokens) == nano


def test_reasoning_audio_and_cache_writes_are_priced_apart_where_a_rate_is_known() -> None:
    rates = Rates(
        10**6, 20 * 10**6, cached_input=2 * 10**6, cache_write=3 * 10**6, audio_input=4 * 10**6, reasoning=5 * 10**6, audio_output=6 * 10**6
    )
    tokens = Parts(100, 50, cached=10, cache_write=20, audio_input=30, reasoning=5, audio_output=45)
    assert cost(Price(rates), tokens) == 40 * 1 + 10 * 2 + 20 * 3 + 30 * 4 + 0 + 5 * 5 + 45 * 6


def test_a_half_is_rounded_up_once_at_the_end() -> None:
    assert cost(Price(Rates(input=500_000, output=0)), Parts(1, 0)) == 1
    assert cost(Price(Rates(input=499_999, output=0)), Parts(1, 0)) == 0
    assert cost(Price(Rates(input=400_000, output=400_000)), Parts(1, 1)) == 1


@pytest.mark.parametrize(
    ("price", "tokens"),
    [
        (None, Parts(1, 1)),
        (MINI, Parts()),
        (MINI, Parts(1, None)),
        (MINI, Parts(None, 1)),
        (Price(Rates(input=1)), Parts(1, 1)),
        (Price(Rates(output=1)), Parts(1, 1)),
        (Price(Rates()), Parts(1, 1)),
    ],
)
def test_what_is_not_known_has_no_cost_rather_than_none_at_all(price: Price | None, tokens: Parts) -> None:
    assert cost(price, tokens) is None


def test_a_rate_that_is_not_needed_need_not_be_known() -> None:
    assert cost(Price(Rates(input=10**6)), Parts(7, 0)) == 7


def test_beyond_its_bound_a_tier_holds_for_the_whole_request() -> None:
    price = Price(Rates(10**6, 10**6), above=((200, Rates(2 * 10**6, 3 * 10**6)), (500, Rates(4 * 10**6, 4 * 10**6))))
    assert [cost(price, Parts(prompt, 10)) for prompt in (200, 201, 500, 501)] == [210, 432, 1030, 2044]


def test_the_service_tier_of_the_answer_comes_before_all() -> None:
    price = Price(Rates(10**6, 10**6), above=((1, Rates(9 * 10**6, 9 * 10**6)),), services={"flex": Rates(500_000, 500_000)})
    assert cost(price, Parts(10, 10), "flex") == 10
    assert cost(price, Parts(10, 10), "default") == 180


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(10, 5, 15, 4, 2), Parts(10, 5, cached=4, reasoning=2)),
        (Usage(7, 19_693, 20_309), Parts(7, 20_302)),  # Gemini: thinking is in the total alone
        (Usage(10, None, 10), Parts(10, 0)),  # embeddings
        (Usage(10, 5, 3), Parts(10, 5)),
        (Usage(10, 5), Parts(10, 5)),
        (Usage(10), Parts(10, None)),
        (Usage(), Parts()),
    ],
)
def test_the_parts_are_found_in_what_upstreams_report(usage: Usage, expected: Parts) -> None:
    assert parts(usage) == expected


counts = st.integers(0, 10**7)
rate = st.none() | st.integers(0, 10**11)


@given(
    tokens=st.builds(Parts, counts, counts, counts, counts, counts, counts, counts),
    rates=st.builds(Rates, st.integers(0, 10**11), st.integers(0, 10**11), rate, rate, rate, rate, rate),
)
def test_a_cost_lies_between_all_at_the_lowest_and_all_at_the_highest_rate(tokens: Parts, rates: Rates) -> None:
    known = [value for value in (getattr(rates, name) for name in Rates.__slots__) if value is not None]
    total = tokens.prompt + tokens.completion
    result = cost(Price(rates), tokens)
    assert isinstance(result, int)
    assert min(known) * total - 10**6 < result * 10**6 <= max(known) * total + 10**6


def test_a_written_price_becomes_exact_and_what_a_tier_leaves_out_is_as_in_the_base() -> None:
    written = schema.Price(
        input=0.15,
        output=0.6,
        cached_input=0.075,
        per=1000,
        currency="EUR",
        tiers=(schema.Tier(above=10, input=0.3),),
        services={"flex": schema.Rates(output=0.1)},
    )
    rates = Rates(input=150_000_000_000, output=600_000_000_000, cached_input=75_000_000_000)
    assert price_of(written) == Price(
        rates, ((10, replace(rates, input=300_000_000_000)),), {"flex": replace(rates, output=100_000_000_000)}, "EUR"
    )


def test_a_version_tells_whether_any_rate_differs() -> None:
    rates = Rates(input=1, output=2)
    prices = [
        Price(rates),
        Price(rates, currency="EUR"),
        Price(replace(rates, cached_input=1)),
        Price(rates, ((5, rates),)),
        Price(rates, ((6, rates),)),
        Price(rates, services={"flex": rates}),
        Price(Rates(output=2)),
    ]
    assert len({quoted(price, "config").version for price in prices}) == len(prices)
    assert quoted(Price(Rates(1, 2)), "config") == quoted(Price(rates), "config")


def test_all_parts_of_a_report_are_priced() -> None:
    assert parts(Usage(9, 4, 13, 1, 2, 3, 4, 5)) == Parts(9, 4, cached=1, cache_write=3, audio_input=4, reasoning=2, audio_output=5)
