"""The breaker: when it opens, how long it rests, and how it heals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import TABLE, ProxyError
from proxyd.rules.breaker import _TABLE, Breaker, Event, Report, Settings, State, admit, event_of, ready_in, report

SETTINGS = Settings(failures=3, rest=5.0, longest=40.0, patience=30.0)


def run(breaker: Breaker, event: Event, now: float, retry_after: float = 0.0) -> Breaker:
    """One call that is let through and ends at once."""
    admitted = admit(breaker, SETTINGS, now)
    assert admitted is not None
    return report(admitted, SETTINGS, Report(event, now, admitted.epoch, retry_after))


def opened(now: float = 0.0, retry_after: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(3):
        breaker = run(breaker, Event.FAILED, now, retry_after)
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_on_failures_in_a_row_and_not_before() -> None:
    breaker = run(run(Breaker(), Event.FAILED, 0), Event.FAILED, 0)
    assert breaker.state is State.CLOSED
    assert admit(breaker, SETTINGS, 0) is not None
    assert run(breaker, Event.FAILED, 0).state is State.OPEN


@pytest.mark.parametrize(("between", "state"), [(Event.SUCCEEDED, State.CLOSED), (Event.ABANDONED, State.OPEN)])
def test_a_success_begins_the_row_anew_and_an_abandoned_call_says_nothing(between: Event, state: State) -> None:
    breaker = Breaker()
    for event in (Event.FAILED, Event.FAILED, between, Event.FAILED):
        breaker = run(breaker, event, 0)
    assert breaker.state is state


def test_while_it_rests_nothing_passes_and_then_one_probe_does() -> None:
    breaker = opened()
    assert admit(breaker, SETTINGS, 4.9) is None
    assert ready_in(breaker, 4.0) == 1.0
    probing = admit(breaker, SETTINGS, 5.0)
    assert probing.state is State.HALF_OPEN
    assert admit(probing, SETTINGS, 5.0) is None


def test_a_good_probe_closes_it_and_all_is_forgotten() -> None:
    closed = run(opened(), Event.SUCCEEDED, 5.0)
    assert replace(closed, epoch=0) == Breaker()


def test_each_bad_probe_doubles_the_rest_up_to_the_longest() -> None:
    breaker, rests, now = opened(), [], 0.0
    for _ in range(6):
        rests.append(breaker.until - now)
        now = breaker.until
        breaker = run(breaker, Event.FAILED, now)
    assert rests == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]


def test_retry_after_is_a_floor_of_the_rest_and_no_ceiling() -> None:
    assert opened(retry_after=100.0).until == 100.0
    assert opened(retry_after=1.0).until == 5.0


def test_a_probe_that_nobody_reports_on_gives_its_place_to_the_next() -> None:
    probing = admit(opened(), SETTINGS, 5.0)
    assert admit(probing, SETTINGS, 34.9) is None
    another = admit(probing, SETTINGS, 35.0)
    assert another.state is State.HALF_OPEN
    assert admit(another, SETTINGS, 64.9) is None
    # The slow one may still be the one that tells: a model that takes a minute to load must not keep it open.
    assert report(another, SETTINGS, Report(Event.SUCCEEDED, 60.0, probing.epoch)).state is State.CLOSED


def test_an_abandoned_probe_lets_the_next_one_pass_at_once() -> None:
    breaker = run(opened(), Event.ABANDONED, 6.0)
    assert breaker.state is State.HALF_OPEN
    assert admit(breaker, SETTINGS, 6.0) is not None


@pytest.mark.parametrize("event", [Event.SUCCEEDED, Event.FAILED, Event.ABANDONED])
def test_what_began_before_it_opened_says_nothing_about_after(event: Event) -> None:
    early = admit(Breaker(), SETTINGS, 0.0)
    rests = opened()
    assert report(rests, SETTINGS, Report(event, 1.0, early.epoch)) == rests
    probing = admit(rests, SETTINGS, 5.0)
    assert report(probing, SETTINGS, Report(event, 6.0, early.epoch)) == probing


def test_settings_may_change_under_it() -> None:
    breaker = run(run(Breaker(), Event.FAILED, 0), Event.FAILED, 0)
    strict = replace(SETTINGS, failures=2)
    assert report(breaker, strict, Report(Event.FAILED, 0, breaker.epoch)).state is State.OPEN


@pytest.mark.parametrize("code", sorted(TABLE))
def test_only_what_is_the_upstreams_own_fault_counts(code: str) -> None:
    event = event_of(ProxyError(code, "m"))
    fault = code.startswith("upstream_") and code not in {"upstream_refused", "upstream_stale"}
    assert (event is Event.FAILED) is fault
    assert (event is Event.SUCCEEDED) is (code == "upstream_refused")
    assert event_of(None) is Event.SUCCEEDED


@pytest.mark.parametrize("status", [501, 505])
def test_what_an_upstream_cannot_do_is_not_held_against_it(status: int) -> None:
    assert event_of(ProxyError("upstream_error", "m", status=status)) is Event.SUCCEEDED


def test_the_table_has_a_row_for_every_state_and_event() -> None:
    assert set(_TABLE) == {(state, event) for state in State for event in Event}


steps = st.tuples(st.sampled_from(["admit", "good", "bad", "lost"]), st.floats(0, 20), st.floats(0, 100), st.integers(0, 5))


@given(st.lists(steps, max_size=60))
def test_whatever_happens_it_heals_by_itself_and_probes_one_at_a_time(plan: list) -> None:
    breaker, now, tickets, probes = Breaker(), 0.0, [], []
    for what, passed, retry_after, which in plan:
        now += passed
        before = breaker
        if what == "admit":
            admitted = admit(breaker, SETTINGS, now)
            if admitted is not None:
                if admitted.state is State.HALF_OPEN:
                    assert not [start for start, epoch in probes if epoch == admitted.epoch and now < start + SETTINGS.patience]
                    probes.append((now, admitted.epoch))
                tickets.append(admitted.epoch)
                breaker = admitted
        elif tickets:
            ticket = tickets.pop(which % len(tickets))
            event = {"good": Event.SUCCEEDED, "bad": Event.FAILED, "lost": Event.ABANDONED}[what]
            breaker = report(breaker, SETTINGS, Report(event, now, ticket, retry_after))
            if event is Event.ABANDONED:
                probes = [probe for probe in probes if probe[1] != ticket]
        assert breaker.epoch - before.epoch == (breaker.state is not before.state)
    # However it stands: by the clock alone it lets a request pass again, and one success closes it.
    later = now + ready_in(breaker, now) + 1e-6
    assert ready_in(breaker, now) <= 100.0
    admitted = admit(breaker, SETTINGS, later)
    assert admitted is not None
    assert report(admitted, SETTINGS, Report(Event.SUCCEEDED, later, admitted.epoch)).state is State.CLOSED
