"""Which upstream is asked, and how often: strategies, the breaker and the retry budget over the real daemon."""

import asyncio

import pytest

from tests.e2e.client import PATH, ask, becomes, chat, happens
from tests.e2e.conftest import at, rigged
from tests.origin import Gate, Origin, completion, whole

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    """Routes over two upstreams by each strategy, and lone ones to break."""

    def config(origin: Origin) -> dict[str, object]:
        names = ["slow", "quick", "one", "two", "broken", "budget", "starved"]
        routes = {
            "by-latency": {
                "upstreams": [{"upstream": "slow", "model": "slow"}, {"upstream": "quick", "model": "quick"}],
                "strategy": "lowest_latency",
            },
            "by-load": {"upstreams": [{"upstream": "one", "model": "one"}, {"upstream": "two", "model": "two"}], "strategy": "least_busy"},
            "broken": {"upstream": "broken", "retry": {"attempts": 1}},
            "budget": {"upstream": "budget", "retry": {"attempts": 10}},
            "starved": {"upstream": "starved", "retry": {"attempts": 1}},
        }
        return {"upstreams": {name: at(origin) for name in names}, "models": routes}

    with rigged(tmp_path_factory.mktemp("choice"), config) as found:
        yield found


async def test_the_quicker_upstream_gets_the_requests(choice):
    choice.origin.on("slow", [0.08, *whole(completion("hi"))])
    choice.origin.on("quick", whole(completion("hi")))
    for _ in range(40):
        await ask(choice.url, PATH, chat("by-latency"))
    slow, quick = len(choice.origin.asked("slow")), len(choice.origin.asked("quick"))
    assert slow + quick == 40
    assert 1 <= slow <= 12  # measured once; after that one request in twenty looks whether it is still slow


async def test_the_less_busy_upstream_gets_the_next_request(choice):
    gate = Gate()
    for name in ("one", "two"):
        choice.origin.on(name, [gate, *whole(completion("hi"))])
    asking = []
    for number in range(6):
        asking.append(asyncio.create_task(ask(choice.url, PATH, chat("by-load"))))
        await becomes(lambda: len(choice.origin.asked("one")) + len(choice.origin.asked("two")) == number + 1)  # noqa: B023
    assert (len(choice.origin.asked("one")), len(choice.origin.asked("two"))) == (3, 3)
    gate.open()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {200}


async def test_a_breaker_opens_says_when_and_closes_again_behind_one_probe(choice):
    """While it rests nobody asks; after that exactly one request does, and the others wait for what it says."""
    gate = Gate()
    failing = whole(b'{"error":"out of memory"}', status=500)
    choice.origin.on("broken", *[failing] * 10, [gate, *whole(completion("well"))], whole(completion("well")))
    for _ in range(10):
        assert (await ask(choice.url, PATH, chat("broken"))).status == 500
    resting = await ask(choice.url, PATH, chat("broken"))
    assert (resting.status, resting.error()["code"]) == (503, "upstream_overloaded")
    assert int(resting.headers["retry-after"]) >= 1
    assert len(choice.origin.asked("broken")) == 10

    async def probed() -> asyncio.Task:
        while True:
            task = asyncio.create_task(ask(choice.url, PATH, chat("broken")))
            await asyncio.wait({task}, timeout=0.2)
            if not task.done():
                return task
            assert task.result().status == 503

    probe = await probed()
    await happens(gate.reached)
    assert {(await ask(choice.url, PATH, chat("broken"))).status for _ in range(5)} == {503}
    assert len(choice.origin.asked("broken")) == 11
    gate.open()
    assert (await probe).status == 200
    assert {(await ask(choice.url, PATH, chat("broken"))).status for _ in range(5)} == {200}


async def test_a_429_says_nothing_against_the_upstreams_health(choice):
    choice.origin.on("starved", *[whole(b'{"error":"slow down"}', status=429)] * 30, whole(completion("hi")))
    for _ in range(30):
        assert (await ask(choice.url, PATH, chat("starved"))).status == 429
    assert (await ask(choice.url, PATH, chat("starved"))).status == 200


async def test_retries_have_a_budget_so_that_an_upstream_in_trouble_is_not_hammered(choice):
    """Two hundred requests may call ten times each; the budget and the breaker let a few more calls than requests through."""
    choice.origin.on("budget", whole(b'{"error":"try again"}', status=500))
    answers = await asyncio.gather(*(ask(choice.url, PATH, chat("budget")) for _ in range(200)))
    assert {answer.status for answer in answers} <= {500, 503}
    assert len(choice.origin.asked("budget")) < 320
