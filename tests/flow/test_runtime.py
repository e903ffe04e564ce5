"""Work that outlives exchanges, and the end that waits for it."""

from __future__ import annotations

import asyncio

import pytest

from proxyd.flow.runtime import Runtime


@pytest.fixture
def runtime():
    made = Runtime.__new__(Runtime)  # nothing of the house is needed here
    made._tasks = set()
    return made


async def test_work_that_work_leaves_behind_is_waited_for_too(runtime):
    told = []

    async def work(left):
        await asyncio.sleep(0.01)
        told.append(left)
        if left:
            runtime.spawn(work(left - 1))

    runtime.spawn(work(3))
    await runtime.settled(10)
    assert told == [3, 2, 1, 0]


async def test_what_takes_too_long_is_cancelled_and_may_tidy_up(runtime):
    told = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            told.append("tidy")

    runtime.spawn(work())
    await asyncio.sleep(0)
    await runtime.settled(0.01)
    assert told == ["tidy"]
