"""What is held back for an answer that nobody knows yet."""

from __future__ import annotations

import pytest

from proxyd.config.schema import Model
from proxyd.model import Ask, Endpoint
from proxyd.rules.reservation import choices, likely_answer, longest_answer, smoothed


def ask(max_tokens: int | None = None, n: int = 1, endpoint: Endpoint = Endpoint.CHAT) -> Ask:
    return Ask(endpoint, "m", stream=False, wants_usage=False, max_tokens=max_tokens, choices=n, fields={"n": b"1"} if n > 1 else {})


@pytest.mark.parametrize(
    ("request_", "route", "expected"),
    [
        (ask(), {}, None),
        (ask(100), {}, 100),
        (ask(100, n=3), {}, 300),
        (ask(100), {"drop": ("max_tokens",)}, None),
        (ask(), {"set": {"max_tokens": 50}}, 50),
        (ask(100), {"set": {"max_tokens": 50}}, 100),
        (ask(), {"force": {"max_tokens": 70}}, 70),
        (ask(900), {"force": {"max_tokens": 70}}, 70),  # by whichever of the two names the client asked
        (ask(900), {"force": {"max_tokens": 70, "max_completion_tokens": 80}}, 80),
        (ask(10), {"force": {"n": 4}}, 40),
        (ask(10, n=4), {"drop": ("n",)}, 10),
        (ask(10), {"set": {"n": 2}}, 20),
        (ask(10, endpoint=Endpoint.EMBEDDINGS), {}, 0),
    ],
)
def test_the_longest_answer_is_what_route_and_request_bound_it_to(request_: Ask, route: dict, expected: int | None) -> None:
    assert longest_answer(request_, Model(**route)) == expected


def test_a_guess_refuses_nobody_and_is_never_nothing() -> None:
    assert likely_answer(ask(), Model(), 512.0, None) == 512
    assert likely_answer(ask(n=2), Model(), 512.0, None) == 1024
    assert likely_answer(ask(), Model(), 512.0, 100) == 100
    assert likely_answer(ask(), Model(), 512.0, -5) == 1


def test_a_mean_follows_what_comes() -> None:
    mean = smoothed(None, 100)
    assert mean == 100
    for _ in range(100):
        mean = smoothed(mean, 10)
    assert mean == pytest.approx(10, abs=0.1)


def test_what_is_no_number_counts_as_one_answer() -> None:
    assert choices(ask(), Model(force={"n": True})) == 1
