"""How much a caller, a model, or one at the other may do, over the real daemon: never more, and nothing for what was not used."""

import asyncio
import json
import time

import openai
import pytest

from tests.e2e.client import Visit, ask, becomes, chat
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, Gate, completion, delta, event, stream, usage_event, whole
from tests.process import KEY

PATH = "/v1/chat/completions"
SECOND = "second-key-0123456789"


def _route(**limits):
    return {"upstream": "origin", "retry": {"attempts": 1}, "limits": limits}


def _config(origin):
    return {
        "upstreams": {"origin": at(origin), "dead": at(origin, base_url="http://127.0.0.1:9/v1")},
        "models": {
            "few": _route(rpm=2),
            "few-each": _route(per_caller={"rpm": 1}),
            "tokens": _route(tpm=1000),
            "told": _route(rpm=600, tpm=1200),
            "uncounted": _route(tpm=300),
            "counted": _route(tpm=5000),
            "one": _route(concurrency=1),
            "one-at-once": _route(concurrency=1),
            "claimed": _route(concurrency=1),
            "joined": _route(rpm=1),
            "kept": _route(rpm=2),
            "sdk": _route(rpm=30),
            "dead": {"upstream": "dead", "retry": {"attempts": 1}, "limits": {"rpm": 5, "tpm": 5000}},
            "free": {"upstream": "origin"},
            "own": {"upstream": "origin"},
        },
        "auth": {"keys": [{"name": "tester", "key": KEY}, {"name": "second", "key": SECOND, "limits": {"rpm": 1}}]},
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with rigged(tmp_path_factory.mktemp("limits"), _config) as found:
        found.origin.on("*", whole(completion("hi")))
        yield found


def refused(answer, kind):
    assert answer.status == 429, answer
    error = answer.error()
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", kind)
    return error


async def test_a_route_takes_so_many_requests_a_minute_and_says_when_there_is_room(rig):
    for _ in range(2):
        assert (await ask(rig.url, PATH, chat("few"))).status == 200
    answer = await ask(rig.url, PATH, chat("few"))
    assert "2 requests a minute" in refused(answer, "requests")["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert 0 < int(answer.headers["retry-after-ms"]) <= 30_000
    assert "x-should-retry" not in answer.headers
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(rig.origin.asked("few")) == 2
    rows = rig.daemon.rows("few")
    assert len(rows) == 2  # a refusal is no attempt


async def test_a_refusal_is_a_metric(rig):
    await ask(rig.url, PATH, chat("tokens", max_tokens=5000))
    text = (await ask(rig.daemon.ops, "/metrics", method="GET")).body.decode()
    found = [float(line.split()[-1]) for line in text.splitlines() if line.startswith('proxyd_ratelimited_total{reason="tokens"}')]
    assert found[0] >= 1


async def test_each_caller_has_its_own_share_of_a_route(rig):
    assert (await ask(rig.url, PATH, chat("few-each"))).status == 200
    refused(await ask(rig.url, PATH, chat("few-each")), "requests")
    assert (await ask(rig.url, PATH, chat("few-each"), authorization=f"Bearer {SECOND}")).status == 200


async def test_a_callers_own_limit_holds_on_all_routes(rig):
    key = {"authorization": f"Bearer {SECOND}"}
    await ask(rig.url, PATH, chat("own"), **key)
    error = refused(await ask(rig.url, PATH, chat("free"), **key), "requests")
    assert "this key" in error["message"]


async def test_every_answer_tells_what_is_left_as_openai_does(rig):
    answer = await ask(rig.url, PATH, chat("told", max_tokens=100))
    assert answer.headers["x-ratelimit-limit-requests"] == "600"
    assert answer.headers["x-ratelimit-remaining-requests"] == "599"
    assert answer.headers["x-ratelimit-reset-requests"].endswith("ms")
    assert answer.headers["x-ratelimit-limit-tokens"] == "1200"
    assert 1200 - 14 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 1200  # what was used, not what was reserved
    rig.origin.on("told", stream(delta("hi"), delta("", finish="stop"), usage_event(11, 3), DONE))
    streamed = await ask(rig.url, PATH, chat("told", stream=True, max_tokens=100))
    assert int(streamed.headers["x-ratelimit-remaining-tokens"]) <= 1100  # held while it runs
    assert "x-ratelimit-limit-tokens" not in (await ask(rig.url, PATH, chat("free"))).headers
    missing = await ask(rig.url, PATH, chat("nothing-of-that-name"), authorization=f"Bearer {SECOND}")
    assert (missing.status, missing.headers["x-ratelimit-limit-requests"]) == (404, "1")


async def test_tokens_that_were_not_used_are_given_back(rig):
    for _ in range(5):  # 900 are held each time, and 14 used
        assert (await ask(rig.url, PATH, chat("tokens", max_tokens=900))).status == 200
    error = refused(await ask(rig.url, PATH, chat("tokens", max_tokens=995)), "tokens")
    assert "1000 a minute" in error["message"]


async def test_what_can_never_fit_is_not_to_be_tried_again(rig):
    answer = await ask(rig.url, PATH, chat("tokens", max_tokens=5000))
    assert "too large" in refused(answer, "tokens")["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


async def test_an_answer_that_nothing_bounds_is_guessed_and_never_refused_for_the_guess(rig):
    answer = await ask(rig.url, PATH, chat("tokens"))
    assert answer.status == 200


async def test_what_reached_no_upstream_costs_its_request_and_no_tokens(rig):
    answer = await ask(rig.url, PATH, chat("dead", max_tokens=4900))
    assert answer.status == 502
    assert answer.headers["x-ratelimit-remaining-tokens"] == "5000"


async def test_hundreds_of_parallel_requests_never_pass_the_tokens_of_a_minute(rig):
    """The origin counts what it gives: what passed in the time is at most what was there at rest and what flowed in since."""
    given = []

    def count(request):
        used = 20 + request.json()["max_tokens"] * 3 // 4
        given.append(used)
        return whole(completion("x", prompt=20, produced=used - 20))

    rig.origin.on("counted", count)
    began = time.monotonic()

    async def one(number):
        answer = await ask(rig.url, PATH, chat("counted", max_tokens=40 + number % 90))
        return answer.status

    statuses = await asyncio.gather(*(one(number) for number in range(300)))
    passed = time.monotonic() - began
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == len(given)
    assert sum(given) <= 5000 * (1 + passed / 60)
    assert sum(given) > 2500  # and not much less: what one did not use, another one had


async def test_so_many_at_once_and_no_more(rig):
    gate = Gate()
    rig.origin.on("one", stream(delta("a"), gate, delta("", finish="stop"), DONE))
    first = await Visit.open(rig.url)
    await first.post(PATH, chat("one", stream=True))
    await first.head()
    answer = await ask(rig.url, PATH, chat("one", stream=True))
    assert "at once" in refused(answer, "requests")["message"]
    assert answer.headers["retry-after"] == "1"
    gate.open()
    assert (await first.rest()).whole
    await first.leave()
    assert (await ask(rig.url, PATH, chat("one", stream=True))).status == 200


async def test_a_client_that_leaves_gives_its_place_back(rig):
    rig.origin.on("one-at-once", stream(delta("a"), Gate(), DONE), whole(completion("hi")))
    first = await Visit.open(rig.url)
    await first.post(PATH, chat("one-at-once", stream=True))
    await first.head()
    refused(await ask(rig.url, PATH, chat("one-at-once")), "requests")
    await first.leave()
    await becomes(lambda: [row["state"] for row in rig.daemon.rows("one-at-once")] == ["cancelled"])
    assert (await ask(rig.url, PATH, chat("one-at-once"))).status == 200


async def test_a_refused_request_gives_its_idempotency_key_back(rig):
    gate = Gate()
    rig.origin.on("claimed", stream(delta("a"), gate, delta("", finish="stop"), DONE), whole(completion("second")))
    first = await Visit.open(rig.url)
    await first.post(PATH, chat("claimed", stream=True))
    await first.head()
    refused(await ask(rig.url, PATH, chat("claimed"), idempotency_key="k"), "requests")
    gate.open()
    await first.rest()
    await first.leave()
    again = await ask(rig.url, PATH, chat("claimed"), idempotency_key="k")
    assert again.status == 200
    assert "idempotent-replayed" not in again.headers


async def test_an_answer_from_the_tape_uses_up_nothing(rig):
    for expected in (None, "true", "true"):
        answer = await ask(rig.url, PATH, chat("joined"), idempotency_key="same")
        assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, expected)
    refused(await ask(rig.url, PATH, chat("joined")), "requests")


async def test_a_bad_request_uses_up_nothing(rig):
    for _ in range(3):
        assert (await ask(rig.url, PATH, {"model": "kept", "n": "x"})).status == 400
    assert (await ask(rig.url, PATH, chat("kept"))).headers["x-ratelimit-remaining-requests"] == "1"


async def test_the_python_sdk_waits_and_gets_through(rig):
    for _ in range(100):
        if (await ask(rig.url, PATH, chat("sdk"))).status == 429:
            break
    async with openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key=KEY, max_retries=2, timeout=20) as client:
        found = await client.chat.completions.with_raw_response.create(**chat("sdk"))
    assert found.retries_taken >= 1
    assert found.headers["x-ratelimit-limit-requests"] == "30"


async def test_the_python_sdk_does_not_try_again_what_can_never_fit(rig):
    before = len(rig.origin.asked("tokens"))
    async with openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key=KEY, max_retries=2, timeout=20) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**chat("tokens", max_tokens=5000))
    assert caught.value.type == "tokens"
    assert json.loads(caught.value.response.content)["error"]["code"] == "rate_limit_exceeded"
    assert len(rig.origin.asked("tokens")) == before


async def test_a_request_without_a_count_is_counted_for_its_limit(rig):
    words = event({"choices": [{"index": 0, "delta": {"content": "word " * 250}, "finish_reason": "stop"}]})
    rig.origin.on("uncounted", stream(words, DONE))
    assert (await ask(rig.url, PATH, chat("uncounted", stream=True))).status == 200
    refused(await ask(rig.url, PATH, chat("uncounted", stream=True, max_tokens=200)), "tokens")
