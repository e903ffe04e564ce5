"""Who guesses keys has to wait; who got in before does not."""

import asyncio

import pytest

from tests.e2e.client import ask, chat, request, send
from tests.e2e.conftest import at, rigged
from tests.origin import completion, whole
from tests.process import KEY

PATH = "/v1/chat/completions"
OTHER = "other-key-0123456789"


def _config(origin):
    return {
        "upstreams": {"origin": at(origin)},
        "models": {"*": "origin"},
        "auth": {"keys": [{"name": "tester", "key": KEY}, {"name": "other", "key": OTHER}]},
        "limits": {"auth_failures": 5},
    }


@pytest.fixture
def rig(tmp_path):
    with rigged(tmp_path, _config) as found:
        found.origin.on("*", whole(completion("hi")))
        yield found


async def knock(rig, key):
    return await ask(rig.url, PATH, chat("m"), authorization=f"Bearer {key}")


async def test_a_guesser_is_slowed_down_and_those_who_got_in_are_not(rig):
    assert (await knock(rig, KEY)).status == 200
    statuses = [(await knock(rig, f"guess-{number}")).status for number in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    braked = await knock(rig, "guess")
    assert braked.error()["code"] == "rate_limit_exceeded"
    assert 1 <= int(braked.headers["retry-after"]) <= 12
    assert (await knock(rig, KEY)).status == 200
    # Whether this one is right is not even looked at: else guessing would go on at full speed.
    assert (await knock(rig, OTHER)).status == 429
    assert (await ask(rig.url, PATH, chat("m"), authorization="")).status == 429
    assert (await ask(rig.url, "/v1/models", method="GET", authorization="Bearer x")).status == 429
    assert (await ask(rig.url, "/health", method="GET", authorization="")).status == 200


async def test_failures_at_once_count_one_by_one(rig):
    statuses = await asyncio.gather(*(knock(rig, f"guess-{number}") for number in range(40)))
    assert sorted(answer.status for answer in statuses) == [401] * 5 + [429] * 35


async def test_requests_that_are_wrong_otherwise_are_no_failures(rig):
    for _ in range(8):
        assert (await send(rig.url, request("POST", PATH, b"{}"))).status == 400
    assert (await knock(rig, "guess")).status == 401
