"""The price list of the extra: found by address and model, exact, and never a guess."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest

from proxyd.rules import pricelist
from proxyd.rules.price import Parts, Price, Rates, cost
from proxyd.rules.pricelist import PriceList, _price

pytest.importorskip("genai_prices")

NOW = 1_795_000_000_000_000
OPENAI = "https://api.openai.com/v1"


@pytest.fixture(scope="module")
def prices() -> PriceList:
    return PriceList()


def test_a_model_is_found_by_the_address_of_its_provider(prices: PriceList) -> None:
    quote = prices.find(OPENAI, "gpt-4o-mini-2024-07-18", None, NOW)
    assert quote is not None
    assert quote.source.startswith("genai-prices 0.")
    assert quote.price.currency == "USD"
    assert cost(quote.price, Parts(1_000_000, 1_000_000)) == 750_000_000
    assert cost(quote.price, Parts(1_000_000, 0, cached=1_000_000)) == 75_000_000


@pytest.mark.parametrize(
    ("address", "model"),
    [
        ("http://127.0.0.1:8000/v1", "gpt-4o-mini"),  # a model of one's own that is called like a famous one
        ("https://router.huggingface.co/v1", "gpt-4o-mini"),
        (OPENAI, "a-model-that-is-not"),
        (OPENAI, "x" * 257),
        (None, "gpt-4o-mini"),
    ],
)
def test_what_the_list_does_not_know_is_unknown(prices: PriceList, address: str | None, model: str) -> None:
    assert prices.find(address, model, None, NOW) is None


def test_azure_has_the_prices_of_openai(prices: PriceList) -> None:
    there = prices.find("https://x.openai.azure.com", "gpt-4o-mini", None, NOW)
    assert there is not None
    assert cost(there.price, Parts(1_000_000, 0)) == 150_000_000


def test_a_service_tier_has_its_own_price(prices: PriceList) -> None:
    usual, flex = (prices.find(OPENAI, "gpt-5-mini", tier, NOW) for tier in ("default", "flex"))
    assert usual is not None
    assert flex is not None
    assert cost(flex.price, Parts(10**6, 0), "flex") == cost(usual.price, Parts(10**6, 0)) // 2  # type: ignore[operator]
    assert usual.version != flex.version


def test_answers_are_at_hand_once_asked_and_memory_is_bounded() -> None:
    own = PriceList()
    assert own.remembered(OPENAI, "gpt-4o", None, NOW) == (False, None)
    quote = own.find(OPENAI, "gpt-4o", None, NOW)
    assert own.remembered(OPENAI, "gpt-4o", None, NOW) == (True, quote)
    for number in range(pricelist.REMEMBERED + 10):
        own.find(OPENAI, f"nothing-{number}", None, NOW)
    assert len(own._quotes) == pricelist.REMEMBERED
    assert own.remembered(OPENAI, "gpt-4o", None, NOW) == (False, None)


def test_every_price_of_the_list_can_be_kept(prices: PriceList) -> None:
    prices.load()
    assert prices._providers is not None
    kept = 0
    for provider in prices._providers:
        for model in provider.models:
            dated = model.prices if isinstance(model.prices, list) else [model]
            for one in dated:
                kept += _price(vars(one.prices)) is not None
    assert kept > 1000


def test_tiers_are_a_cliff_for_each_key() -> None:
    class Tier:
        start, price = 200_000, Decimal("2.5")

    class Tiered:
        base, tiers = Decimal("1.25"), (Tier(),)

    price = _price({"input_mtok": Tiered(), "output_mtok": Decimal(10), "cache_read_mtok": None})
    assert price == Price(
        Rates(input=1_250_000_000, output=10_000_000_000), ((200_000, Rates(input=2_500_000_000, output=10_000_000_000)),)
    )
    assert cost(price, Parts(200_000, 0)) == 250_000_000
    assert cost(price, Parts(200_001, 0)) == 500_002_500


@pytest.mark.parametrize("listed", [{}, {"input_mtok": Decimal(1), "requests_kcount": Decimal(5)}, {"audio_hours": Decimal(1)}])
def test_a_price_that_tokens_alone_do_not_tell_is_unknown(listed: dict[str, Decimal]) -> None:
    assert _price(listed) is None


def test_nothing_is_imported_before_it_is_needed_and_nothing_reaches_for_the_network() -> None:
    program = """
import socket, sys, threading
def refuse(*_): raise AssertionError("reached for the network")
socket.socket.connect = refuse
from proxyd.rules.pricelist import PriceList
prices = PriceList()
assert "genai_prices" not in sys.modules
assert prices.find("https://api.openai.com/v1", "gpt-4o", None, 1_795_000_000_000_000) is not None
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_nothing_is_known_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricelist, "installed", lambda: False)
    own = PriceList()
    assert own.remembered(OPENAI, "gpt-4o", None, NOW) == (True, None)
    assert own.find(OPENAI, "gpt-4o", None, NOW) is None


def test_for_machines_of_ones_own_the_list_is_not_even_read() -> None:
    """Whoever has only an Ollama needs neither its 25 MB nor the third of a second that reading takes before the first call."""
    own = PriceList()
    for address in (
        "http://127.0.0.1:11434/v1",
        "http://localhost:11434",
        "http://ollama:11434",
        "http://192.168.0.7:8000/v1",
        "http://[fd00::1]:80",
    ):
        assert own.remembered(address, "gpt-4o", None, NOW) == (True, None)
    assert own.remembered("https://api.openai.com/v1", "gpt-4o", None, NOW) == (False, None)
