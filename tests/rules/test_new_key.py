"""What owners write about keys, read or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.flow.keyring import written
from proxyd.model import TOKENS, Budget, Caller, DeliveryDefaults, Limits, Per
from proxyd.rules.new_key import WishError, budget, caller, expiry

NOW = 1_800_000_000_000_000


def test_a_name_alone_is_a_key_for_everything() -> None:
    assert caller({"name": "laptop"}, NOW) == Caller("laptop")


def test_all_that_can_be_wished_for() -> None:
    wish = {"name": "a@b.c", "models": ["x", "y*"], "rpm": 3, "tpm": "100k", "concurrency": "2", "admin": True}
    wish |= {"delivery": {"max_delay_ms": 500, "max_bytes": 4096, "compress": False}}
    assert caller({**wish, "expires": "30d", "default_model": "x", "budget": "20/month"}, NOW) == Caller(
        "a@b.c",
        ("x", "y*"),
        admin=True,
        limits=Limits(3, 100_000, 2),
        budget=Budget(20 * 10**9, "USD", Per.MONTH),
        default_model="x",
        expires_at=NOW + 30 * 86_400 * 10**6,
        delivery=DeliveryDefaults(500, 4096, compress=False),
    )


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"name": ""},
        {"name": "a b"},
        {"name": "-a"},
        {"name": "a" * 65},
        {"name": "a\n"},
        {"name": 3},
        {"name": "a", "models": []},
        {"name": "a", "models": "x"},
        {"name": "a", "models": ["a*b"]},
        {"name": "a", "models": [1]},
        {"name": "a", "rpm": 0},
        {"name": "a", "rpm": 1.5},
        {"name": "a", "rpm": True},
        {"name": "a", "tpm": "lots"},
        {"name": "a", "admin": "yes"},
        {"name": "a", "expires": 3},
        {"name": "a", "expires": "0s"},
        {"name": "a", "default_model": "x*"},
        {"name": "a", "colour": "red"},
        {"name": "a", "delivery": "fast"},
        {"name": "a", "delivery": {"speed": 1}},
        {"name": "a", "delivery": {"max_delay_ms": 10_001}},
        {"name": "a", "delivery": {"max_delay_ms": "100"}},
        {"name": "a", "delivery": {"max_bytes": 0}},
        {"name": "a", "delivery": {"compress": 1}},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(wish: dict[str, object]) -> None:
    with pytest.raises(WishError):
        caller(wish, NOW)


def test_a_delivery_that_cannot_be_is_told_by_its_key() -> None:
    with pytest.raises(WishError, match=r"^'max_delay_ms': expected int >= 0$"):
        caller({"name": "a", "delivery": {"max_delay_ms": -1}}, NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20/month", Budget(20 * 10**9, "USD", Per.MONTH)),
        ("0.5eur/day", Budget(5 * 10**8, "EUR", Per.DAY)),
        ("1M tokens/day", Budget(10**6, TOKENS, Per.DAY)),
        ("1.5k tokens/month", Budget(1500, TOKENS, Per.MONTH)),
    ],
)
def test_budgets_are_written_as_people_do(text: str, expected: Budget) -> None:
    assert budget(text) == expected


@pytest.mark.parametrize("text", ["", "20", "20/year", "0/day", "-1/day", "1.5 tokens/day", "5 dollars/day", "0.0000000001/day", "x/day"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(WishError):
        budget(text)


@given(st.integers(1, 10**15), st.sampled_from(["USD", "EUR", TOKENS]), st.sampled_from(Per))
def test_a_budget_that_is_written_reads_the_same(amount: int, unit: str, per: Per) -> None:
    given_ = Budget(amount, unit, per)
    assert budget(written(given_)) == given_


def test_an_end_is_a_time_from_now_or_a_moment() -> None:
    assert expiry("90m", NOW) == NOW + 5400 * 10**6
    assert expiry("2030-01-01", NOW) > NOW
    for text in ("2020-01-01", "soon", "0", "2030-01-01T00:00:00"):
        with pytest.raises(WishError):
            expiry(text, NOW)
