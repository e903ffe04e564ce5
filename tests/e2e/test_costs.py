"""What exchanges cost: in the ledger, in the answer, and unknown where no price is known."""

import json
import textwrap

import pytest

from tests.e2e.client import Visit, ask, becomes, chat
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, Ending, Gate, completion, delta, event, stream, usage_event, whole
from tests.process import KEY, ROOT, Daemon, settings

PATH = "/v1/chat/completions"
TIERS = {"tiers": [{"above": "1k", "input": 0.30}], "services": {"flex": {"input": 0}}}
PRICE = {"input": 0.15, "output": 0.60, "cached_input": 0.075, **TIERS}


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    models = {
        "priced": {"upstream": "origin", "price": PRICE},
        "euro": {"upstream": "origin", "price": {"input": 1000, "output": 1000, "per": 1, "currency": "EUR"}},
        "free": {"upstream": "origin", "price": {"input": 0, "output": 0}},
        "*": "origin",
    }
    config = {"models": models, "aliases": {"nickname": "priced"}}
    with rigged(tmp_path_factory.mktemp("costs"), lambda origin: {"upstreams": {"origin": at(origin)}, **config}) as found:
        yield found


def costs(rig, model):
    return [(row["cost_nano"], row["currency"], row["price_source"]) for row in rig.daemon.rows(model)]


@pytest.mark.parametrize(("model", "asked"), [("priced", "priced"), ("priced", "nickname")])
async def test_a_unary_answer_says_what_it_cost_and_the_ledger_too(rig, model, asked):
    rig.origin.on(model, whole(completion("hi", prompt=1000, produced=500)))
    answer = await ask(rig.url, PATH, chat(asked))
    assert answer.headers["x-proxyd-cost"] == "0.00045 USD"
    assert costs(rig, asked)[-1] == (450_000, "USD", "config")
    assert len(rig.daemon.rows(asked)[-1]["price_version"]) == 12


async def test_cached_tokens_a_long_prompt_and_the_service_tier_have_their_own_rates(rig):
    report = {"prompt_tokens": 1001, "completion_tokens": 0, "total_tokens": 1001, "prompt_tokens_details": {"cached_tokens": 1000}}
    document = json.loads(completion("hi"))
    rig.origin.on(
        "priced",
        whole(json.dumps({**document, "usage": report}).encode()),
        whole(json.dumps({**document, "usage": {**report, "prompt_tokens": 10, "total_tokens": 10}, "service_tier": "flex"}).encode()),
    )
    assert (await ask(rig.url, PATH, chat("priced"))).headers["x-proxyd-cost"] == "0.0000753 USD"
    assert (await ask(rig.url, PATH, chat("priced"))).headers["x-proxyd-cost"] == "0.00000075 USD"
    row = rig.daemon.rows("priced")[-1]
    assert (row["service_tier"], row["cached_tokens"]) == ("flex", 1000)


async def test_what_is_free_costs_nothing_and_what_has_no_price_is_unknown(rig):
    rig.origin.on("free", whole(completion("hi")))
    rig.origin.on("other", whole(completion("hi")))
    assert (await ask(rig.url, PATH, chat("free"))).headers["x-proxyd-cost"] == "0.00 USD"
    assert "x-proxyd-cost" not in (await ask(rig.url, PATH, chat("other"))).headers
    assert costs(rig, "free") == [(0, "USD", "config")]
    assert costs(rig, "other") == [(None, None, None)]


async def test_a_stream_is_priced_by_its_last_chunk(rig):
    last = {"choices": [], "service_tier": "flex", "usage": {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}}
    rig.origin.on("priced", stream(delta("a"), delta("", finish="stop"), event(last), DONE))
    await ask(rig.url, PATH, chat("priced", stream=True))
    assert costs(rig, "priced")[-1] == (6_000, "USD", "config")


async def test_a_stream_that_breaks_is_priced_by_what_passed(rig):
    rig.origin.on("euro", stream(delta("Some words"), delta(" more"), 0.05, ending=Ending.CLOSE))
    visit = await (await Visit.open(rig.url)).post(PATH, chat("euro", stream=True))
    await visit.head()
    await visit.until(b'"error"')
    await visit.leave()
    (row,) = rig.daemon.rows("euro")
    assert row["state"] == "failed"
    assert row["cost_nano"] == row["total_tokens"] * 1000 * 10**9
    assert row["currency"] == "EUR"


async def test_a_repeat_under_the_same_key_is_billed_once_and_says_what_it_has_cost(rig):
    rig.origin.on("priced", whole(completion("hi", prompt=2000, produced=0)))
    before = len(rig.daemon.rows("priced"))
    answers = [await ask(rig.url, PATH, chat("priced"), **{"idempotency-key": "k1"}) for _ in range(2)]
    assert answers[0].headers["x-proxyd-cost"] == "0.0006 USD"
    assert answers[0].body == answers[1].body
    assert answers[1].headers["x-proxyd-cost"] == "0.0006 USD"  # the same head as the first time, and the mark of a replay
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(rig.daemon.rows("priced")) == before + 1


async def test_a_kill_in_mid_stream_leaves_what_it_had_cost_by_then(launch, origin):
    daemon = launch(upstreams={"origin": at(origin)}, models={"priced": {"upstream": "origin", "price": PRICE}})
    gate = Gate()
    first = usage_event(10, 10).replace(b'"choices":[]', b'"choices":[{"index":0,"delta":{"content":"a"}}]')
    origin.on("priced", stream(first, gate, DONE))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("priced", stream=True))
    await visit.head()
    await becomes(lambda: any(row["total_tokens"] for row in daemon.rows("priced")))
    assert [row["cost_nano"] for row in daemon.rows("priced")] == [7_500]
    gate.open()
    await visit.leave()


@pytest.fixture
def listed(tmp_path, origin):
    """Daemons whose routes are priced by the list. It goes by the address, so they are made to find an Azure account at the origin."""
    pytest.importorskip("genai_prices")
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import socket
        found = socket.getaddrinfo
        socket.getaddrinfo = lambda host, *more, **named: found("127.0.0.1" if host == "x.openai.azure.com" else host, *more, **named)
        """)
    )
    upstreams = {"azure": at(origin, base_url=f"http://x.openai.azure.com:{origin.port}/v1")}
    started = []

    def start(**more: object) -> Daemon:
        config = settings(upstreams=upstreams, models={"gpt-4o-mini": "azure", "nobody-knows": "azure"}, **more)
        started.append(Daemon(tmp_path, config, {"PYTHONPATH": f"{folder}:{ROOT}", "PROXYD_LOOP": "asyncio"}).start())
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()


async def test_a_route_without_a_price_has_that_of_the_list(listed, origin):
    daemon = listed()
    body = completion("hi", prompt=1000, produced=500).replace(b"origin-model", b"gpt-4o-mini-2024-07-18")
    origin.on("gpt-4o-mini", whole(body))
    origin.on("nobody-knows", whole(completion("hi")))
    for _ in range(2):  # from the list itself, then from memory
        answer = await ask(daemon.url, PATH, chat("gpt-4o-mini"))
        assert answer.headers["x-proxyd-cost"] == "0.00045 USD"
    assert "x-proxyd-cost" not in (await ask(daemon.url, PATH, chat("nobody-knows"))).headers
    rows = daemon.rows("gpt-4o-mini")
    assert [row["cost_nano"] for row in rows] == [450_000, 450_000]
    assert rows[0]["price_source"].startswith("genai-prices ")
    assert [row["cost_nano"] for row in daemon.rows("nobody-knows")] == [None]


async def test_a_price_of_the_list_is_held_against_a_budget_before_the_first_answer(listed, origin):
    daemon = listed(auth={"keys": [{"name": "tester", "key": KEY, "budget": {"amount": 0.001, "per": "month"}}]})
    origin.on("gpt-4o-mini", whole(completion("hi", prompt=10, produced=5)))
    refused = await ask(daemon.url, PATH, chat("gpt-4o-mini", max_tokens=2000))  # 0.6 dollars a million
    assert (refused.status, refused.error()["code"]) == (429, "insufficient_quota")
    assert origin.asked("gpt-4o-mini") == []
    assert (await ask(daemon.url, PATH, chat("gpt-4o-mini", max_tokens=1000))).status == 200


async def test_what_a_kill_interrupts_is_priced_by_the_list_as_far_as_it_was_known(listed, origin):
    daemon = listed()
    gate = Gate()
    word = delta("Some words of an answer").replace(b"origin-model", b"gpt-4o-mini-2024-07-18")
    origin.on("gpt-4o-mini", stream(word, gate, DONE))
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("gpt-4o-mini", stream=True))
    await visit.head()
    await becomes(lambda: daemon.rows("gpt-4o-mini")[0]["total_tokens"])
    daemon.kill()
    daemon.start()
    (row,) = daemon.rows("gpt-4o-mini")
    assert (row["state"], row["tokens_source"], row["currency"]) == ("interrupted", "estimated", "USD")
    assert row["cost_nano"] == row["prompt_tokens"] * 150 + row["completion_tokens"] * 600 > 0
    assert row["price_source"].startswith("genai-prices ")
    gate.open()
    await visit.leave()
