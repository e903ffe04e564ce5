"""The ledger through kill -9 and through power cuts, the real daemon under load. `bench/crash.py` runs it for longer."""

import random

import pytest

from tests.crash import Crashes, library
from tests.powercuts import Session


async def test_what_a_client_saw_whole_is_in_the_ledger_once_through_kill_9(tmp_path, origin):
    crashes = Crashes(tmp_path, origin, random.Random(7))
    for _ in range(4):
        await crashes.killed()
    tally = crashes.finish()
    assert tally.sound, (tally.line(), tally.details)
    assert tally.acked > 40


@pytest.mark.parametrize("keep", [50, 0])
async def test_what_a_client_saw_whole_is_in_the_ledger_once_through_power_cuts(tmp_path, origin, keep):
    """`keep` percent of the sectors that were written and not synced survive."""
    if (preload := library(tmp_path)) is None:
        pytest.skip("no C compiler")
    crashes = Crashes(tmp_path, origin, random.Random(keep))
    for _ in range(2):
        await crashes.cut(preload, keep)
    tally = crashes.finish()
    assert tally.sound, (tally.line(), tally.details)
    assert tally.acked > 40


async def test_the_power_cut_can_be_seen_to_bite(tmp_path, origin):
    """With `durability: relaxed` a commit is not synced, and the same cuts do lose what clients were told: the test is no dummy."""
    if (preload := library(tmp_path)) is None:
        pytest.skip("no C compiler")
    crashes = Crashes(tmp_path, origin, random.Random(3), storage={"durability": "relaxed"})
    for _ in range(3):
        await crashes.cut(preload, 0)
    tally = crashes.finish()
    assert tally.missing > 0, tally.line()
    assert not tally.corrupt


@pytest.mark.parametrize("place", [60, 125, 150, 175])
async def test_wherever_the_power_goes_what_was_told_is_there_once(tmp_path, origin, place):
    """The making of the database, a claim, a stream, a replay; `bench/crash.py --places` leaves out none."""
    if (preload := library(tmp_path)) is None:
        pytest.skip("no C compiler")
    found = await Session(tmp_path, origin, preload).cut(place)
    assert found.struck
    assert found.wrong == []
