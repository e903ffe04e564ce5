"""How much a caller may use up in a day or a month: never more, known again after a restart, and told in time."""

import asyncio
import contextlib
import re
import sqlite3
import time

import openai
import pytest

from tests.e2e.client import Visit, ask, chat
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, Gate, Origin, completion, delta, stream, usage_event, whole
from tests.process import Daemon, settings

PATH = "/v1/chat/completions"
CALLERS = {
    "tokens": {"tokens": 1000, "per": "day"},
    "kept": {"tokens": 500, "per": "month", "warn_at": "50%"},
    "parallel": {"tokens": 5000, "per": "day"},
    "streaming": {"tokens": 300, "per": "day"},
    "open": {"tokens": 30, "per": "day"},
    "sdk": {"tokens": 10, "per": "day"},
    "money": {"amount": 1, "per": "month"},
    "failing": {"tokens": 1000, "per": "day"},
    "euros": {"amount": 0.001, "currency": "EUR", "per": "month"},
}

FAILING = ("failing", "failing-tpm")


def key_of(name):
    return f"{name}-key-0123456789"


def _pair(name):
    return [{"upstream": f"{name}-{end}", "model": f"{name}-{end}"} for end in ("one", "two")]


def _config(origin):
    price = {"input": 10_000, "output": 10_000}  # dollars for a million: a cent a token
    return {
        "upstreams": {"origin": at(origin), **{f"{name}-{end}": at(origin) for name in FAILING for end in ("one", "two")}},
        "models": {
            "*": {"upstream": "origin", "retry": {"attempts": 1}, "price": price},
            **{name: {"upstreams": _pair(name), "retry": {"attempts": 2}} for name in FAILING},
        },
        "auth": {
            "keys": [
                *({"name": name, "key": key_of(name), "budget": budget} for name, budget in CALLERS.items()),
                {"name": "failing-tpm", "key": key_of("failing-tpm"), "limits": {"tpm": 1000}},
            ]
        },
        "timezone": "UTC",
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with rigged(tmp_path_factory.mktemp("budgets"), _config) as found:
        found.origin.on("*", whole(completion("hi", prompt=60, produced=40)))
        yield found


def bearer(name):
    return {"authorization": f"Bearer {key_of(name)}"}


async def spend(rig, name, model="m", **more):
    return await ask(rig.url, PATH, chat(model, **more), **bearer(name))


def exhausted(answer):
    assert answer.status == 429, answer
    error = answer.error()
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    return error["message"]


async def test_a_budget_of_tokens_ends(rig):
    for _ in range(9):
        assert (await spend(rig, "tokens", max_tokens=60)).status == 200
    message = exhausted(await spend(rig, "tokens", max_tokens=500))
    assert "1000 tokens a day" in message
    assert "does not reach" in message
    assert (await spend(rig, "tokens", max_tokens=60)).status == 200
    assert "is used up" in exhausted(await spend(rig, "tokens", max_tokens=1))


async def test_a_budget_of_money_counts_what_its_price_says(rig):
    assert (await spend(rig, "money", max_tokens=20)).headers["x-proxyd-cost"] == "1.00 USD"
    assert "1 USD a month" in exhausted(await spend(rig, "money", max_tokens=1))
    for _ in range(3):  # what is priced in another currency is not counted
        assert (await spend(rig, "euros", max_tokens=1)).status == 200


async def test_parallel_requests_never_pass_a_budget(rig):
    given = []

    def count(request):
        used = 20 + request.json()["max_tokens"] * 2 // 3
        given.append(used)
        return whole(completion("x", prompt=20, produced=used - 20))

    rig.origin.on("counted", count)
    seen = []

    async def one(number):
        for _ in range(3):  # what was refused while others held it fits when they gave back
            answer = await spend(rig, "parallel", "counted", max_tokens=30 + number % 60)
            seen.append(answer.status)

    await asyncio.gather(*(one(number) for number in range(100)))
    assert set(seen) == {200, 429}
    assert sum(given) <= 5000
    assert sum(given) > 4500


@pytest.mark.parametrize("name", FAILING)
async def test_parallel_requests_whose_attempts_fail_and_cost_never_pass_a_budget_or_a_limit(rig, name):
    told = b'{"error": {"message": "no"}, "usage": {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100}}'
    rig.origin.on(f"{name}-one", [0.05, *whole(told, status=503)])
    rig.origin.on(f"{name}-two", [0.05, *whole(completion("hi", prompt=60, produced=40))])
    text = "w" * 200  # 60 tokens, as they are guessed
    body = {"model": name, "max_tokens": 40, "messages": [{"role": "user", "content": text}]}
    began = time.monotonic()
    assert (await ask(rig.url, PATH, body, **bearer(name))).status == 200
    assert [row["total_tokens"] for row in await asyncio.to_thread(rig.daemon.settled, name)] == [100, 100]
    answers = await asyncio.gather(*(ask(rig.url, PATH, body, **bearer(name)) for _ in range(30)))
    assert {answer.status for answer in answers} >= {429}
    rows = await asyncio.to_thread(rig.daemon.settled, name)
    decayed = 0 if name == "failing" else (time.monotonic() - began) * 1000 / 60  # a rate's room comes back
    assert 500 <= sum(row["total_tokens"] or 0 for row in rows) <= 1000 + decayed


async def test_what_runs_is_held_and_what_it_did_not_use_is_given_back(rig):
    gate = Gate()
    rig.origin.on("held", stream(delta("a"), gate, delta("", finish="stop"), usage_event(10, 2), DONE))
    visit = await Visit.open(rig.url)
    await visit.post(PATH, chat("held", stream=True, max_tokens=250), **bearer("streaming"))
    await visit.head()
    exhausted(await spend(rig, "streaming", max_tokens=200))
    gate.open()
    await visit.rest()
    await visit.leave()
    assert (await spend(rig, "streaming", max_tokens=200)).status == 200


async def test_a_guess_refuses_nobody_while_anything_is_left(rig):
    assert (await spend(rig, "open")).status == 200
    exhausted(await spend(rig, "open"))


async def test_the_sdk_gives_up_at_once(rig):
    before = len(rig.origin.requests)
    async with openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key=key_of("sdk"), max_retries=2, timeout=20) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**chat("m", max_tokens=100))
    assert caught.value.code == "insufficient_quota"
    assert len(rig.origin.requests) == before


async def test_a_refusal_is_a_metric(rig):
    await spend(rig, "sdk", max_tokens=100)
    text = (await ask(rig.daemon.ops, "/metrics", method="GET")).body.decode()
    assert any(line.startswith('proxyd_ratelimited_total{reason="budget"}') and float(line.split()[-1]) for line in text.splitlines())


async def test_a_restart_forgets_nothing_and_the_owner_is_told_once(tmp_path):
    origin = Origin()
    origin.on("*", whole(completion("hi", prompt=60, produced=40)))
    daemon = Daemon(tmp_path, settings(**_config(origin)))
    with contextlib.closing(origin):
        daemon.start()
        for _ in range(2):
            assert (await ask(daemon.url, PATH, chat("m", max_tokens=60), **bearer("kept"))).status == 200
        assert "of its budget" not in daemon.log
        for _ in range(2):
            assert (await ask(daemon.url, PATH, chat("m", max_tokens=60), **bearer("kept"))).status == 200
        daemon.child.expect(re.compile("kept has used 60 % of its budget of 500 tokens a month"))  # the log is written behind the answers
        daemon.child.expect(re.compile('("caller":"kept"(.|\n)*){4}'))
        assert daemon.log.count("of its budget") == 1
        daemon.kill()
        daemon.start()
        assert (await ask(daemon.url, PATH, chat("m", max_tokens=60), **bearer("kept"))).status == 200
        answer = await ask(daemon.url, PATH, chat("m", max_tokens=60), **bearer("kept"))
        assert "is used up" in exhausted(answer)
        daemon.stop()


async def test_what_ended_before_this_period_does_not_count(tmp_path):
    origin = Origin()
    origin.on("*", whole(completion("hi", prompt=60, produced=40)))
    daemon = Daemon(tmp_path, settings(**_config(origin)))
    with contextlib.closing(origin):
        daemon.start()
        for _ in range(5):
            assert (await ask(daemon.url, PATH, chat("m", max_tokens=60), **bearer("kept"))).status == 200
        daemon.stop()
        link = sqlite3.connect(daemon.database)
        with link:
            link.execute("UPDATE usage_events SET created_at = created_at - 40 * 86400000000, settled_at = settled_at - 40 * 86400000000")
        link.close()
        daemon.start()
        assert (await ask(daemon.url, PATH, chat("m", max_tokens=60), **bearer("kept"))).status == 200
        daemon.stop()


@pytest.mark.parametrize("lines", [{}, {"amount": 1, "tokens": 1}])
def test_a_budget_is_either_money_or_tokens(tmp_path, lines):
    budget = {**lines, "per": "day"}
    keys = [{"name": "a", "key": key_of("a"), "budget": budget}]
    tokens = [{"issuer": "https://a.example.com", "audience": "a", "budget": budget}]
    daemon = Daemon(tmp_path, settings(upstreams={"e": {"kind": "echo"}}, models={"*": "e"}, auth={"keys": keys, "jwt": tokens}))
    with pytest.raises(AssertionError, match=r"(either 'amount' or 'tokens'(.|\n)*){2}"):
        daemon.start()
