"""Rooms where exchanges wait: who can go is let in, whoever comes and leaves meanwhile."""

import asyncio
import random

import pytest

from proxyd.flow.waiting import WaitingRooms
from proxyd.rules.ratelimit import Refused

FULL = Refused("model:busy", "concurrency", None)


class Visitor:
    """One that holds a place at a route, or waits for it."""

    def __init__(self, places, caller="one"):
        self.places, self.caller = places, caller
        self.inside = False

    def try_once(self):
        if not self.places.free:
            return FULL
        self.places.free -= 1
        self.inside = True
        return None

    async def enter(self):
        if self.try_once() is not None:
            self.places.line[self] = asyncio.current_task()
            try:
                assert await self.places.rooms.wait("busy", self.caller, self.try_once, 60) is None
            finally:
                del self.places.line[self]

    def leave(self):
        """Give back what it holds, which may be a place given in the moment of its going."""
        if self.inside:
            self.inside = False
            self.places.free += 1
            self.places.rooms.call()


class Places:
    def __init__(self, free):
        self.free = free
        self.rooms = WaitingRooms()
        self.line = {}

    def forgotten(self):
        """Who waits though nothing keeps them from going in, and nobody has stopped them."""
        return [one for one, task in self.line.items() if self.free and not one.inside and not task.cancelling()]


async def test_who_comes_while_others_go_is_not_forgotten():
    """Two are let in at once; the first is gone and back in line before the second has left the room."""
    places = Places(2)
    here = [Visitor(places), Visitor(places)]
    for visitor in here:
        await visitor.enter()
    again = Visitor(places)

    async def twice():
        await Visitor(places).enter()
        await again.enter()

    first, second = asyncio.create_task(twice()), asyncio.create_task(Visitor(places).enter())
    await asyncio.sleep(0)
    assert places.rooms.size == 2
    for visitor in here:
        visitor.leave()
    await second
    assert places.rooms.size == 1
    places.free += 1
    places.rooms.call()
    async with asyncio.timeout(10):
        await first
    assert again.inside
    assert places.rooms.size == 0


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_waits_while_a_place_is_free(seed):
    """Some come, stay and go, and some come again at once; some are stopped, in line or just as their turn came."""
    chance = random.Random(seed)
    places = Places(2)

    async def pause(most):
        for _ in range(chance.randrange(most)):
            await asyncio.sleep(0)

    async def visits(number):
        for _ in range(100):
            await pause(4)
            visitor = Visitor(places, f"caller {number % 4}")
            try:
                await visitor.enter()
                await pause(4)
            finally:
                visitor.leave()

    callers = [asyncio.create_task(visits(number)) for number in range(8)]
    while not all(task.done() for task in callers):
        if not chance.randrange(100):
            chance.choice(callers).cancel()
        await asyncio.sleep(0)
        assert places.forgotten() == []
    await asyncio.gather(*callers, return_exceptions=True)
    assert places.free == 2
    assert places.rooms.size == 0
