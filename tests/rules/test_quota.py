"""Budgets: days and months where the caller lives, and never more than was allowed."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.rules.quota import Exhausted, Per, Period, Reserved, Spent, period, reserve, settle

DAY = 86_400 * 10**6
TODAY, TOMORROW = Period("2026-11-21", 0, DAY), Period("2026-11-22", DAY, 2 * DAY)


def micros(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 10**6


@pytest.mark.parametrize(
    ("per", "zone", "now", "expected"),
    [
        (Per.DAY, "UTC", "2026-11-21T12:00+00:00", ("2026-11-21", "2026-11-21T00:00+00:00", "2026-11-22T00:00+00:00")),
        (Per.DAY, "Europe/Berlin", "2026-11-21T23:30+00:00", ("2026-11-22", "2026-11-21T23:00+00:00", "2026-11-22T23:00+00:00")),
        (Per.DAY, "America/New_York", "2026-11-21T03:00+00:00", ("2026-11-20", "2026-11-20T05:00+00:00", "2026-11-21T05:00+00:00")),
        (Per.DAY, "Europe/Berlin", "2026-03-29T12:00+02:00", ("2026-03-29", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00")),  # 23 h
        (Per.DAY, "Europe/Berlin", "2026-10-25T12:00+01:00", ("2026-10-25", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00")),  # 25 h
        (Per.DAY, "UTC", "2026-12-31T23:59:59+00:00", ("2026-12-31", "2026-12-31T00:00+00:00", "2027-01-01T00:00+00:00")),
        (Per.MONTH, "UTC", "2026-11-21T12:00+00:00", ("2026-11", "2026-11-01T00:00+00:00", "2026-12-01T00:00+00:00")),
        (Per.MONTH, "UTC", "2028-02-29T12:00+00:00", ("2028-02", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00")),
        (Per.MONTH, "Asia/Tokyo", "2026-12-31T15:00+00:00", ("2027-01", "2026-12-31T15:00+00:00", "2027-01-31T15:00+00:00")),
    ],
)
def test_a_period_begins_and_ends_at_local_midnight(per: Per, zone: str, now: str, expected: tuple[str, str, str]) -> None:
    name, begins, ends = expected
    assert period(per, ZoneInfo(zone), micros(now)) == Period(name, micros(begins), micros(ends))


@given(
    at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - made UTC below
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kolkata", "Pacific/Apia", "Africa/Cairo"]),
    per=st.sampled_from(Per),
)
def test_every_moment_lies_in_its_period_and_the_next_one_begins_where_it_ends(at: datetime, zone: str, per: Per) -> None:
    now = micros(at.replace(tzinfo=UTC).isoformat())
    current = period(per, ZoneInfo(zone), now)
    assert current.begins <= now < current.ends
    following = period(per, ZoneInfo(zone), current.ends)
    assert following.name > current.name
    assert following.begins == current.ends


def test_what_is_held_back_counts_until_it_is_trued_up() -> None:
    held = reserve(Spent(), 100, 60, TODAY, 0)
    assert held == Reserved(Spent("2026-11-21", 0, 60))
    assert reserve(held.spent, 100, 41, TODAY, DAY - 10**6) == Exhausted(40, 1.0)
    settled = settle(held.spent, 60, 15, TODAY)
    assert settled == Spent("2026-11-21", 15, 0)
    assert isinstance(reserve(settled, 100, 85, TODAY, 0), Reserved)
    assert isinstance(reserve(settled, 100, 86, TODAY, 0), Exhausted)


def test_a_used_up_budget_grants_not_even_what_costs_nothing() -> None:
    assert isinstance(reserve(Spent("2026-11-21", 100), 100, 0, TODAY, 0), Exhausted)
    assert isinstance(reserve(Spent("2026-11-21", 99), 100, 0, TODAY, 0), Reserved)
    assert reserve(Spent("2026-11-21", 120), 100, 1, TODAY, 0) == Exhausted(0, 86_400.0)


def test_more_than_was_held_is_counted_all_the_same() -> None:
    held = reserve(Spent(), 100, 10, TODAY, 0).spent
    assert settle(held, 10, 130, TODAY) == Spent("2026-11-21", 130, 0)


def test_a_new_period_begins_with_nothing_spent_but_what_still_runs() -> None:
    running = Spent("2026-11-21", 90, 10)
    assert isinstance(reserve(running, 100, 1, TODAY, 0), Exhausted)
    assert reserve(running, 100, 90, TOMORROW, DAY) == Reserved(Spent("2026-11-22", 0, 100))
    assert isinstance(reserve(running, 100, 91, TOMORROW, DAY), Exhausted)
    assert settle(running, 10, 7, TOMORROW) == Spent("2026-11-22", 7, 0)


moves = st.lists(
    st.tuples(st.sampled_from(["reserve", "reserve", "settle", "midnight"]), st.integers(0, 60), st.integers(0, 9), st.integers(0, 100)),
    max_size=60,
)


@given(moves, st.integers(1, 200))
def test_under_any_interleaving_no_period_spends_more_than_the_budget(moves: list, budget: int) -> None:
    spent, day, running, used = Spent(), 0, [], {}
    for what, amount, which, share in moves:
        day += what == "midnight"
        today = Period(f"day {day:03d}", day * DAY, (day + 1) * DAY)
        if what == "reserve":
            verdict = reserve(spent, budget, amount, today, day * DAY)
            if isinstance(verdict, Reserved):
                spent = verdict.spent
                running.append(amount)
            else:
                assert amount > verdict.left or verdict.left == 0
        elif what == "settle" and running:
            held = running.pop(which % len(running))
            spent = settle(spent, held, held * share // 100, today)
            used[day] = used.get(day, 0) + held * share // 100
        assert spent.held == sum(running)
    assert all(total <= budget for total in used.values())


@given(st.lists(st.integers(0, 50), max_size=10))
def test_refunds_are_exact(amounts: list[int]) -> None:
    spent = Spent(TODAY.name, 3)
    granted = []
    for amount in amounts:
        verdict = reserve(spent, 100, amount, TODAY, 0)
        if isinstance(verdict, Reserved):
            spent = verdict.spent
            granted.append(amount)
    for amount in granted:
        spent = settle(spent, amount, 0, TODAY)
    assert spent == Spent(TODAY.name, 3)
