"""Retries: whom to try next, after which wait, and when to stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import Retry
from proxyd.errors import ProxyError
from proxyd.rules import retry
from proxyd.rules.retry import LONGEST_WAIT, Attempt, Budget, GiveUp, Plan, Try, deposit, may_retry, next_step, withdraw
from proxyd.rules.routes import Facts, Target

A, B, C = Target("a", "m"), Target("b", "m"), Target("c", "m")
A2 = Target("a", "other")


def plan(*targets: Target, attempts: int = 3, deadline: float | None = None, on: tuple = Retry().on) -> Plan:
    return Plan(Retry(attempts=attempts, on=on), targets, deadline)


def failed(target: Target, code: str = "upstream_connect", at: float = 0.0, **more: object) -> Attempt:
    return Attempt(target, ProxyError(code, "m", **more), at)


def step(plan_: Plan, *history: Attempt, facts: dict | None = None, now: float = 0.0, chance: float = 0.5) -> Try | GiveUp:
    return next_step(plan_, history, facts or {}, now, chance)


def test_the_first_try_is_the_first_target_at_once() -> None:
    assert step(plan(A, B)) == Try(A)


@pytest.mark.parametrize(
    "failure",
    [
        failed(A, "upstream_connect"),
        failed(A, "upstream_dns"),
        failed(A, "upstream_tls"),
        failed(A, "upstream_timeout"),
        failed(A, "upstream_cut"),
        failed(A, "upstream_bad_response"),
        failed(A, "upstream_incomplete"),
        failed(A, "upstream_error", status=500),
        failed(A, "upstream_overloaded", status=429, retry_after=50.0),
        failed(A, "upstream_error", status=501),
        failed(A, "upstream_overloaded", status=529),
        failed(A, "upstream_auth"),
        failed(A, "upstream_error", status=429, retry=False),
    ],
    ids=lambda failure: f"{failure.error.code}-{failure.error.status}",
)
def test_after_a_failure_of_the_upstream_the_next_one_is_tried_at_once(failure: Attempt) -> None:
    assert step(plan(A, B), failure) == Try(B)


@pytest.mark.parametrize(
    "failure",
    [
        failed(A, "upstream_refused", status=400),
        failed(A, "upstream_refused", status=404),
        failed(A, "upstream_error", status=409),
        failed(A, "client_gone"),
        failed(A, "internal"),
        failed(A, "draining"),
    ],
    ids=lambda failure: f"{failure.error.code}-{failure.error.status}",
)
def test_what_the_route_does_not_name_is_final(failure: Attempt) -> None:
    assert step(plan(A, B), failure) == GiveUp("final")


@pytest.mark.parametrize(
    ("on", "failure", "again"),
    [
        ((), failed(A, "upstream_connect"), False),
        (("timeout",), failed(A, "upstream_timeout"), True),
        (("connect",), failed(A, "upstream_timeout"), False),
        ((504,), failed(A, "upstream_timeout"), False),
        ((502,), failed(A, "upstream_connect"), False),
        ((502,), failed(A, "upstream_cut"), True),
        ((404,), failed(A, "upstream_refused", status=404), True),
        ((429,), failed(A, "upstream_overloaded", status=503), False),
        ((500, 502), failed(A, "upstream_error", status=501), False),
        (("5xx",), failed(A, "upstream_error", status=520), True),
        (("5xx",), failed(A, "upstream_error", status=429), False),
    ],
)
def test_the_route_says_what_is_worth_another_try(on: tuple, failure: Attempt, *, again: bool) -> None:
    assert isinstance(step(plan(A, B, on=on), failure), Try) is again


def test_attempts_are_counted_in_all() -> None:
    history = [failed(A), failed(B)]
    assert isinstance(step(plan(A, B, attempts=3), *history), Try)
    assert step(plan(A, B, attempts=2), *history) == GiveUp("attempts")
    assert step(plan(A, B, attempts=1), failed(A)) == GiveUp("attempts")


def test_only_when_all_were_tried_one_is_tried_again_with_a_jittered_wait() -> None:
    again = step(plan(A, B, attempts=9), failed(A), failed(B), chance=0.5)
    assert again == Try(A, wait=0.125, fresh=True, spends=True)
    assert step(plan(A, attempts=9), failed(A), failed(A), chance=0.5).wait == 0.25
    assert step(plan(A, attempts=9), *[failed(A)] * 8, chance=0.999).wait == pytest.approx(7.992)
    assert step(plan(A, attempts=9), failed(A), chance=0.0).wait == 0.0


def test_another_upstream_comes_before_another_model_of_the_same_one() -> None:
    assert step(plan(A, A2, B), failed(A)) == Try(B)
    assert step(plan(A, A2), failed(A)).target == A2


def test_retry_after_is_obeyed_where_there_is_no_other_upstream() -> None:
    limited = failed(A, "upstream_overloaded", at=10.0, status=429, retry_after=4.0)
    assert step(plan(A), limited, now=11.0, chance=0.0).wait == 3.0
    assert 3.0 < step(plan(A), limited, now=11.0, chance=0.9).wait <= 3.3
    assert step(plan(A, B), limited, now=11.0) == Try(B)


def test_what_one_model_was_told_to_wait_does_not_bind_another_at_the_same_account() -> None:
    limited = failed(A, "upstream_overloaded", status=429, retry_after=9.0)
    assert step(plan(A, A2), limited, chance=0.0) == Try(A2, spends=True)


def test_a_wait_too_long_is_told_to_the_client_instead() -> None:
    assert step(plan(A), failed(A, "upstream_overloaded", status=429, retry_after=30.0), now=10.0) == GiveUp("wait", 20.0)


def test_a_wait_of_the_longest_that_is_bearable_is_waited_for() -> None:
    limited = failed(A, "upstream_overloaded", status=429, retry_after=LONGEST_WAIT)
    assert step(plan(A), limited, chance=0.0) == Try(A, wait=LONGEST_WAIT, spends=True)


def test_nothing_begins_after_the_deadline() -> None:
    assert step(plan(A, attempts=1, deadline=5.0), failed(A, "upstream_stale"), now=4.5) == Try(A, fresh=True)
    limited = failed(A, "upstream_overloaded", status=429, retry_after=5.0)
    assert step(plan(A, deadline=5.0), limited, chance=0.0) == GiveUp("wait", 5.0)
    assert isinstance(step(plan(A, deadline=5.1), limited, chance=0.0), Try)
    assert step(plan(A, B, deadline=5.0), failed(A), now=5.0) == GiveUp("wait")
    assert isinstance(step(plan(A, deadline=5.0), failed(A, "upstream_stale"), now=6.0), GiveUp)


def test_a_used_up_quota_and_a_refused_credential_are_not_asked_again_but_others_are() -> None:
    quota = failed(A, "upstream_error", status=429, retry=False)
    assert step(plan(A), quota) == GiveUp("exhausted")
    assert step(plan(A, A2), quota) == GiveUp("exhausted")
    assert step(plan(A, B, attempts=9), quota, failed(B)).target == B


def test_a_dead_pooled_connection_is_replaced_once_and_costs_no_attempt() -> None:
    stale = failed(A, "upstream_stale")
    assert step(plan(A, B, attempts=1), stale) == Try(A, fresh=True)
    assert step(plan(A, B, attempts=2), stale, failed(A, "upstream_connect")) == Try(B)
    assert step(plan(A, B, attempts=1), stale, failed(A, "upstream_connect")) == GiveUp("attempts")


def test_a_second_dead_connection_is_a_failure_like_others() -> None:
    stale = failed(A, "upstream_stale")
    assert step(plan(A, B, attempts=2), stale, stale) == Try(B)
    assert step(plan(A, B, attempts=1), stale, stale) == GiveUp("attempts")
    assert step(plan(A, B, attempts=3, on=(429,)), stale, stale) == GiveUp("final")


def test_each_upstream_has_its_own_dead_connection_forgiven() -> None:
    stale_a, stale_b = failed(A, "upstream_stale"), failed(B, "upstream_stale")
    assert step(plan(A, B, attempts=2), stale_a, failed(A), stale_b) == Try(B, fresh=True)
    assert step(plan(A, B, attempts=2), stale_a, failed(A), stale_b, failed(B)) == GiveUp("attempts")


def test_an_upstream_that_rests_is_passed_over() -> None:
    assert step(plan(A, B), facts={"a": Facts(ready_in=3.0)}) == Try(B)
    assert step(plan(A, B), failed(B), facts={"a": Facts(ready_in=3.0)}).target == B
    assert step(plan(A, B), facts={"a": Facts(ready_in=3.0), "b": Facts(ready_in=2.0)}) == GiveUp("resting", 2.0)


def test_an_upstream_whose_retries_are_used_up_is_not_hammered_but_first_tries_are_free() -> None:
    broke = {"a": Facts(may_retry=False), "b": Facts(may_retry=False)}
    assert step(plan(A, B), facts=broke) == Try(A)
    assert step(plan(A, B), failed(A), facts=broke) == Try(B)
    assert step(plan(A, B, attempts=9), failed(A), failed(B), facts=broke) == GiveUp("budget")


def test_a_route_without_upstreams_gives_up() -> None:
    assert step(plan()) == GiveUp("exhausted")


CODES = [
    "upstream_connect",
    "upstream_stale",
    "upstream_timeout",
    "upstream_cut",
    "upstream_overloaded",
    "upstream_auth",
    "upstream_refused",
]


@given(
    st.lists(st.sampled_from([A, A2, B, C]), min_size=1, max_size=4, unique=True),
    st.integers(1, 10),
    st.none() | st.floats(0, 60),
    st.lists(st.tuples(st.sampled_from(CODES), st.none() | st.floats(0, 40), st.floats(0, 1, exclude_max=True)), min_size=30, max_size=30),
    st.sets(st.sampled_from("abc"), max_size=2),
)
def test_however_upstreams_fail_an_exchange_ends_in_bounds(
    targets: list, attempts: int, deadline: float | None, fates: list, resting: set
) -> None:
    facts = {name: Facts(ready_in=1.0) for name in resting}
    history, now = [], 0.0
    for code, retry_after, chance in fates:
        verdict = next_step(plan(*targets, attempts=attempts, deadline=deadline), history, facts, now, chance)
        if isinstance(verdict, GiveUp):
            assert verdict.retry_after is None or verdict.retry_after >= 0
            break
        assert 0.0 <= verdict.wait <= LONGEST_WAIT
        assert verdict.target.upstream not in resting
        assert not [old for old in history if old.target.upstream == verdict.target.upstream and not old.error.retry]
        now += verdict.wait
        assert deadline is None or now < deadline
        history.append(failed(verdict.target, code, now, retry_after=retry_after))
    else:
        pytest.fail("it never gave up")
    assert len(history) <= attempts + len({target.upstream for target in targets})


def test_a_budget_lets_a_share_of_requests_be_retried_and_no_more() -> None:
    budget, retried = Budget(level=0.0), 0
    for _ in range(1000):
        budget = deposit(budget, 0.0)
        if may_retry(budget, 0.0):
            budget, retried = withdraw(budget, 0.0), retried + 1
    assert 199 <= retried <= 200


def test_small_traffic_has_a_few_retries_a_second_and_savings_are_bounded() -> None:
    assert may_retry(Budget(level=0.0), 0.1)
    assert not may_retry(Budget(level=0.0), 0.05)
    full = deposit(Budget(), 1e6)
    assert full.level == retry.MOST
    late = Budget(level=0.0, stamp=100.0)
    assert not may_retry(late, 100.05)
    assert not may_retry(late, 90.0)
    assert withdraw(Budget(level=3.0, stamp=100.0), 100.0) == Budget(2.0, 100.0)
    assert withdraw(Budget(level=3.0, stamp=100.0), 100.5) == Budget(7.0, 100.5)


@given(st.lists(st.tuples(st.floats(-1, 5), st.booleans()), max_size=50))
def test_a_budget_never_goes_below_nothing_or_back_in_time(moves: list) -> None:
    budget, now = Budget(), 0.0
    for passed, spend in moves:
        now += passed
        before = budget.stamp
        if not spend:
            budget = deposit(budget, now)
        elif may_retry(budget, now):
            budget = withdraw(budget, now)
        assert 0.0 <= budget.level <= retry.MOST
        assert budget.stamp >= before
