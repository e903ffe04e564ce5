"""Waiting for a place instead of being refused: callers take turns, and nobody waits for ever."""

import asyncio
import contextlib

import pytest

from tests.e2e.client import Visit, ask, becomes, chat
from tests.e2e.conftest import at, rigged
from tests.origin import Gate, completion, whole
from tests.process import KEY

PATH = "/v1/chat/completions"
OTHER = "other-key-0123456789"


def _route(wait="10s", **limits):
    return {"upstream": "origin", "retry": {"attempts": 1}, "limits": limits, "queue": {"max": 4, "wait": wait}}


def _config(origin):
    return {
        "upstreams": {"origin": at(origin)},
        "models": {
            "fair": _route(concurrency=1),
            "short": _route(concurrency=1),
            "late": _route("50ms", concurrency=1),
            "left": _route(concurrency=1),
            "own": _route(concurrency=2, per_caller={"concurrency": 1}),
            "few": _route(concurrency=1, rpm=2),
            "once": _route(concurrency=1),
            "busy": _route("30s", concurrency=3),
        },
        "auth": {"keys": [{"name": "tester", "key": KEY}, {"name": "other", "key": OTHER}]},
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with rigged(tmp_path_factory.mktemp("queue"), _config) as found:
        yield found


class Turns:
    """An origin that keeps each request until it is let go, and remembers who came in which order."""

    def __init__(self, rig, model):
        self.rig, self.model = rig, model
        self.gates = []
        rig.origin.on(model, self._script)

    def _script(self, _request):
        gate = Gate()
        self.gates.append(gate)
        return [gate, *whole(completion("hi"))]

    @property
    def order(self):
        return [request.json()["user"] for request in self.rig.origin.asked(self.model)]

    def ask(self, user, key=KEY, **headers):
        return asyncio.create_task(ask(self.rig.url, PATH, chat(self.model, user=user), authorization=f"Bearer {key}", **headers))

    async def waiting(self, count):
        """Until so many wait."""
        for _ in range(1000):
            text = (await ask(self.rig.daemon.ops, "/metrics", method="GET")).body.decode()
            if f"\nproxyd_queue_waiting {float(count)}\n" in text:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never {count} waited")


async def test_callers_take_turns_and_each_ones_own_come_in_order(rig):
    turns = Turns(rig, "fair")
    tasks = []
    for number, (user, key) in enumerate([("a1", KEY), ("a2", KEY), ("a3", KEY), ("b1", OTHER), ("b2", OTHER)]):
        tasks.append(turns.ask(user, key))
        if number:
            await turns.waiting(number)
        else:
            await becomes(lambda: turns.order == ["a1"])
    for number in range(5):
        await becomes(lambda number=number: len(turns.gates) == number + 1)
        turns.gates[number].open()
    answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * 5
    assert turns.order == ["a1", "a2", "b1", "a3", "b2"]


async def test_a_full_queue_refuses(rig):
    turns = Turns(rig, "short")
    tasks = [turns.ask("first")]
    await becomes(lambda: len(turns.gates) == 1)
    tasks += [turns.ask(str(number)) for number in range(4)]
    await turns.waiting(4)
    answer = await turns.ask("too many")
    assert answer.status == 429
    assert answer.error()["code"] == "rate_limit_exceeded"
    for number in range(5):
        await becomes(lambda number=number: len(turns.gates) == number + 1)
        turns.gates[number].open()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}


async def test_who_has_waited_long_enough_is_refused(rig):
    turns = Turns(rig, "late")
    first = turns.ask("first")
    await becomes(lambda: len(turns.gates) == 1)
    answer = await turns.ask("second")
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    turns.gates[0].open()
    assert (await first).status == 200
    assert turns.order == ["first"]


async def test_who_leaves_leaves_the_queue(rig):
    turns = Turns(rig, "left")
    first = turns.ask("first")
    await becomes(lambda: len(turns.gates) == 1)
    visit = await Visit.open(rig.url)
    await visit.post(PATH, chat("left", user="gone"))
    await turns.waiting(1)
    last = turns.ask("last")
    await turns.waiting(2)
    await visit.leave()
    await turns.waiting(1)
    turns.gates[0].open()
    await becomes(lambda: len(turns.gates) == 2)
    turns.gates[1].open()
    assert [(await first).status, (await last).status] == [200, 200]
    assert turns.order == ["first", "last"]


async def test_who_waits_for_his_own_place_holds_nobody_up(rig):
    turns = Turns(rig, "own")
    tasks = [turns.ask("a1")]
    await becomes(lambda: len(turns.gates) == 1)
    tasks.append(turns.ask("a2"))
    await turns.waiting(1)
    tasks.append(turns.ask("b1", OTHER))
    await becomes(lambda: turns.order == ["a1", "b1"])
    turns.gates[1].open()
    assert (await tasks[2]).status == 200
    assert turns.order == ["a1", "b1"]  # a2 waits for a1
    turns.gates[0].open()
    await becomes(lambda: len(turns.gates) == 3)
    turns.gates[2].open()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}


async def test_only_concurrency_is_waited_for(rig):
    turns = Turns(rig, "few")
    tasks = [turns.ask("1")]
    await becomes(lambda: len(turns.gates) == 1)
    tasks += [turns.ask("2"), turns.ask("3")]
    await turns.waiting(2)
    turns.gates[0].open()
    await becomes(lambda: len(turns.gates) == 2)
    turns.gates[1].open()
    statuses = sorted([(await task).status for task in tasks])
    assert statuses == [200, 200, 429]  # the third had its turn, and found the minute used up


async def test_a_claimed_exchange_waits_on_when_its_client_leaves(rig):
    turns = Turns(rig, "once")
    first = turns.ask("first")
    await becomes(lambda: len(turns.gates) == 1)
    visit = await Visit.open(rig.url)
    await visit.post(PATH, chat("once", user="second"), idempotency_key="k")
    await turns.waiting(1)
    await visit.leave()
    turns.gates[0].open()
    await becomes(lambda: len(turns.gates) == 2)
    turns.gates[1].open()
    assert (await first).status == 200
    again = await turns.ask("second", idempotency_key="k")
    assert again.status == 200
    assert turns.order == ["first", "second"]


async def test_no_place_is_lost_whoever_comes_and_goes(rig):
    """Places are given to who has left meanwhile, too; in the end all are free again."""
    model = "busy"
    rig.origin.on(model, lambda _: [0.002, *whole(completion("hi"))])

    async def one(number):
        if number % 3 == 0:
            return (await ask(rig.url, PATH, chat(model))).status
        visit = await Visit.open(rig.url)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001 * (number % 17)):
                await visit.post(PATH, chat(model))
                await visit.rest()
        await visit.leave(reset=True)
        return None

    statuses = [status for status in await asyncio.gather(*(one(number) for number in range(90))) if status is not None]
    assert set(statuses) <= {200, 429}
    rig.origin.on(model, lambda _: whole(completion("hi")))
    await becomes(lambda: all(row["state"] != "open" for row in rig.daemon.rows(model)))
    assert [answer.status for answer in await asyncio.gather(*(ask(rig.url, PATH, chat(model)) for _ in range(3)))] == [200] * 3
