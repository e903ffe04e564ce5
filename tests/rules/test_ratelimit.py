"""Rate limits: never a request or a token more than allowed, and nothing lost by refunds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.rules.ratelimit import (
    FRESH,
    LONGEST_WAIT,
    MINUTE,
    Granted,
    Level,
    Limits,
    Refused,
    Standing,
    cancel,
    decayed,
    duration,
    headers,
    idle,
    request,
    settle,
    standings,
    tightest,
)


def take(level: Level, limits: Limits, tokens: int = 0, now: float = 0.0) -> Level | Refused:
    verdict = request({"s": level}, {"s": limits}, tokens, now)
    return verdict.levels["s"] if isinstance(verdict, Granted) else verdict


def taken(level: Level, limits: Limits, tokens: int = 0, now: float = 0.0) -> Level:
    result = take(level, limits, tokens, now)
    assert isinstance(result, Level)
    return result


def test_a_minutes_worth_of_requests_passes_at_once_and_then_one_by_one() -> None:
    limits, level = Limits(rpm=6), FRESH
    for _ in range(6):
        level = taken(level, limits)
    assert take(level, limits) == Refused("s", "requests", 10.0)
    assert take(level, limits, now=9.999).retry_after == pytest.approx(0.001)
    level = taken(level, limits, now=10.0)
    assert take(level, limits, now=10.0) == Refused("s", "requests", 10.0)


def test_waiting_as_long_as_was_said_is_enough() -> None:
    limits, level, now = Limits(rpm=7), FRESH, 0.0
    for _ in range(7):
        level = taken(level, limits)
    for _ in range(20):
        now += take(level, limits, now=now).retry_after + 1e-6  # the wait is told in float seconds
        level = taken(level, limits, now=now)


def test_tokens_are_reserved_and_trued_up() -> None:
    limits = Limits(tpm=100)
    level = taken(taken(FRESH, limits, 60), limits, 40)
    assert take(level, limits, 1).reason == "tokens"
    level = settle(level, limits, 60, 10, 0.0)
    assert standings(level, limits, 0.0)["tokens"].remaining == 50
    level = settle(level, limits, 40, 0, 0.0)
    assert standings(level, limits, 0.0)["tokens"].remaining == 90
    taken(level, limits, 90)
    assert take(level, limits, 91) == Refused("s", "tokens", 0.6)


def test_more_used_than_reserved_delays_what_comes_next() -> None:
    limits = Limits(tpm=60)
    level = settle(taken(FRESH, limits, 10), limits, 10, 90, 0.0)
    assert standings(level, limits, 0.0)["tokens"] == Standing(60, 0, 90 * 10**9)
    assert take(level, limits, 10) == Refused("s", "tokens", 40.0)
    assert take(level, limits, 60) == Refused("s", "tokens", LONGEST_WAIT)


def test_what_alone_is_more_than_the_limit_never_fits_and_that_is_said() -> None:
    assert take(FRESH, Limits(tpm=100), 101) == Refused("s", "tokens", None)
    assert take(FRESH, Limits(rpm=0)) == Refused("s", "requests", None)


def test_a_running_exchange_holds_its_tokens_however_long_it_takes() -> None:
    limits = Limits(tpm=100)
    level = taken(FRESH, limits, 80)
    assert take(level, limits, 30, now=3600.0) == Refused("s", "tokens", 1.0)
    taken(level, limits, 20, now=3600.0)


def test_exchanges_at_once_are_bounded() -> None:
    limits = Limits(concurrency=2)
    level = taken(taken(FRESH, limits), limits)
    assert take(level, limits) == Refused("s", "concurrency", 1.0)
    taken(settle(level, limits, 0, 0, 0.0), limits)


def test_all_scopes_grant_or_none_is_touched_and_the_longest_wait_is_told() -> None:
    limits = {"caller:a": Limits(rpm=60), "model:m": Limits(rpm=1), "both": Limits(concurrency=1)}
    granted = request({}, limits, 5, 0.0)
    assert set(granted.levels) == set(limits)
    assert {level.held for level in granted.levels.values()} == {5}
    assert request(granted.levels, limits, 5, 0.0) == Refused("model:m", "requests", 60.0)
    assert request(granted.levels, {**limits, "huge": Limits(tpm=1)}, 5, 0.0) == Refused("huge", "tokens", None)


def test_a_grant_taken_back_at_once_leaves_no_trace() -> None:
    limits = Limits(rpm=60, tpm=100, concurrency=3)
    before = decayed(settle(taken(FRESH, limits, 50), limits, 50, 7, 0.0), limits, 0.1)
    assert cancel(taken(before, limits, 20, 0.1), limits, 20, 0.1, 0.1) == before


def test_limits_can_change_under_a_level() -> None:
    level = FRESH
    for _ in range(10):
        level = taken(level, Limits(rpm=10))
    assert isinstance(take(level, Limits(rpm=20)), Level)
    assert isinstance(take(level, Limits(rpm=5)), Refused)
    assert isinstance(take(level, Limits()), Level)


def test_a_level_at_rest_can_be_forgotten_and_one_in_use_cannot() -> None:
    limits = Limits(rpm=60, tpm=60)
    level = taken(FRESH, limits, 5)
    assert not idle(level, limits, 100.0)
    level = settle(level, limits, 5, 5, 0.0)
    assert not idle(level, limits, 4.9)
    assert idle(level, limits, 5.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    limits = Limits(rpm=1)
    level = taken(FRESH, limits, now=100.0)
    assert isinstance(take(level, limits, now=10.0), Refused)
    assert decayed(level, limits, 10.0) == level


def test_headers_are_openais() -> None:
    limits = Limits(rpm=60, tpm=6000)
    level = settle(taken(FRESH, limits, 100), limits, 100, 12, 0.0)
    assert headers(standings(level, limits, 0.0)) == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-limit-tokens", "6000"),
        ("x-ratelimit-remaining-tokens", "5988"),
        ("x-ratelimit-reset-tokens", "120ms"),
    ]
    assert headers(standings(level, Limits(concurrency=1), 0.0)) == []


def test_of_several_scopes_the_tightest_is_told() -> None:
    wide, narrow = {"requests": Standing(100, 50, 1)}, {"requests": Standing(60, 7, 2), "tokens": Standing(9, 9, 0)}
    assert tightest([wide, narrow]) == narrow
    assert tightest([narrow, wide]) == narrow
    assert tightest([]) == {}


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12 * 10**6, "12ms"),
        (999 * 10**6, "999ms"),
        (10**9, "1s"),
        (1500 * 10**6, "1.5s"),
        (1234567890, "1.235s"),
        (59_999_999_999, "1m0s"),
        (MINUTE, "1m0s"),
        (6 * MINUTE, "6m0s"),
        (90 * MINUTE + 10**9, "1h30m1s"),
        (60 * MINUTE, "1h0m0s"),
    ],
)
def test_spans_are_written_as_go_does(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


moves = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "settle", "cancel"]), st.integers(0, 40), st.integers(0, 30), st.integers(0, 9), st.integers(0, 100)
    ),
    max_size=60,
)


@given(moves=moves, rpm=st.integers(1, 12), tpm=st.integers(1, 100), concurrency=st.integers(1, 5))
def test_under_any_interleaving_no_window_sees_more_than_its_share(moves: list, rpm: int, tpm: int, concurrency: int) -> None:
    limits, level, now = Limits(rpm, tpm, concurrency), FRESH, 0
    running: list[tuple[int, int]] = []  # (reserved, granted at)
    kept: list[int] = []  # when requests that were not taken back were granted
    used: list[tuple[int, int]] = []  # (when, tokens)
    for what, passed, tokens, which, share in moves:
        now += passed
        if what == "ask":
            result = take(level, limits, tokens, float(now))
            if isinstance(result, Level):
                level = result
                running.append((tokens, now))
                kept.append(now)
        elif running:
            reserved, at = running.pop(which % len(running))
            if what == "settle":
                spent = reserved * share // 100
                level = settle(level, limits, reserved, spent, float(now))
                used.append((now, spent))
            else:
                level = cancel(level, limits, reserved, float(at), float(now))
                kept.remove(at)
        assert level.held == sum(reserved for reserved, _ in running)
        assert level.running == len(running) <= concurrency
        assert level.tokens + level.held * MINUTE <= tpm * MINUTE
    for start in {at for at, _ in used}:
        for end in {at for at, _ in used if at >= start}:
            assert 60 * sum(spent for at, spent in used if start <= at <= end) <= tpm * (60 + end - start)
    for start in set(kept):
        for end in {at for at in kept if at >= start}:
            assert 60 * sum(start <= at <= end for at in kept) <= rpm * (60 + end - start)


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(20, 100))
def test_refunds_are_exact(reservations: list[int], tpm: int) -> None:
    limits = Limits(tpm=tpm)
    level, running = FRESH, []
    for tokens in reservations:
        result = take(level, limits, tokens, 1.0)
        if isinstance(result, Level):
            level = result
            running.append(tokens)
    for tokens in reversed(running):
        level = settle(level, limits, tokens, 0, 1.0)
    assert standings(level, limits, 1.0)["tokens"].remaining == tpm
    taken(level, limits, tpm, 1.0)
