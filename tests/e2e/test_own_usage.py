"""`GET /v1/usage`: a caller sees its own rows and nobody else's. And history priced again, with and without a daemon."""

import asyncio
import json

import pytest

from bench.children import free_port
from proxyd.cli import main
from tests.e2e.client import ask, chat
from tests.e2e.conftest import at
from tests.origin import completion, whole
from tests.process import KEY

PATH = "/v1/chat/completions"
OTHER = "other-key-0123456789abcdef"
PRICE = {"input": 1, "output": 2}


@pytest.fixture
def house(launch, origin):
    keys = [{"name": "tester", "key": KEY}, {"name": "other", "key": OTHER}]
    origin.on("m", whole(completion("hi", prompt=100, produced=50)))
    origin.on("n", whole(completion("hi", prompt=10, produced=5)))
    models = {"m": {"upstream": "o", "price": PRICE}, "n": "o"}
    return launch(upstreams={"o": at(origin)}, models=models, auth={"keys": keys}, ops={"listen": f"127.0.0.1:{free_port()}"})


async def usage(daemon, query="", **headers):
    return await ask(daemon.url, f"/v1/usage{query}", method="GET", **headers)


async def test_a_caller_sees_its_own_rows_with_their_cost_and_no_others(house):
    for model in ("m", "m", "n"):
        await ask(house.url, PATH, chat(model))
    await ask(house.url, PATH, chat("m"), authorization=f"Bearer {OTHER}")
    answer = await usage(house)
    told = json.loads(answer.body)
    assert (answer.status, told["object"], told["caller"], told["by"]) == (200, "usage", "tester", "model")
    assert [(line["model"], line["requests"], line["total_tokens"], line["cost"]) for line in told["data"]] == [
        ("m", 2, 300, {"USD": "0.0004"}),
        ("n", 1, 15, {}),
    ]
    assert (told["total"]["requests"], told["total"]["cost_nano"], told["total"]["unpriced"]) == (3, {"USD": 400_000}, 1)
    other = json.loads((await usage(house, "?by=day&since=all", authorization=f"Bearer {OTHER}")).body)
    assert (other["caller"], other["total"]["requests"], len(other["data"]), other["since"]) == ("other", 1, 1, None)


WRONG = [("?by=caller", "by"), ("?by=upstream", "by"), ("?by=x'--", "by"), ("?since=yesterday", "since"), ("?since=-1d", "since")]


@pytest.mark.parametrize(("query", "param"), WRONG)
async def test_what_cannot_be_asked_is_told(house, query, param):
    answer = await usage(house, query)
    assert (answer.status, answer.error()["param"]) == (400, param)


async def test_it_needs_a_key(house):
    assert (await usage(house, authorization="Bearer wrong")).status == 401


def change(daemon, **prices):
    config = json.loads(daemon.file.read_text("utf-8"))
    for model, price in prices.items():
        config["models"][model] = {"upstream": "o", "price": price}
    daemon.write(config)


async def call(daemon):
    for model in ("m", "n"):
        await ask(daemon.url, PATH, chat(model))


def costs(daemon):
    return {row["model"]: (row["cost_nano"], row["currency"], row["price_version"]) for row in daemon.rows()}


@pytest.mark.parametrize("running", [True, False])
def test_history_is_priced_again_by_todays_prices(house, capsys, running):
    asyncio.run(call(house))
    before = costs(house)
    assert before["m"][:2] == (200_000, "USD")
    change(house, n={"input": 3, "output": 3, "currency": "EUR"}, m={"input": 10, "output": 20})
    if running:
        assert main(["reload", "-c", str(house.file)]) == 0
    else:
        house.stop()
    capsys.readouterr()
    assert main(["usage", "-c", str(house.file), "--reprice", "missing", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == "1 of 1 attempts have another cost now.\n"
    assert json.loads(out)["total"]["cost_nano"] == {"EUR": 45_000, "USD": 200_000}
    assert costs(house)["m"] == before["m"]
    assert main(["usage", "-c", str(house.file), "--reprice"]) == 0
    assert "1 of 2 attempts have another cost now.\n" in capsys.readouterr().err
    after = costs(house)
    assert after["m"][:2] == (2_000_000, "USD")
    assert after["m"][2] != before["m"][2]
    assert main(["usage", "-c", str(house.file), "--reprice"]) == 0
    assert "0 of 2 attempts have another cost now.\n" in capsys.readouterr().err


def test_a_known_cost_is_never_made_unknown(house, capsys):
    asyncio.run(call(house))
    before = costs(house)
    house.stop()
    config = json.loads(house.file.read_text("utf-8"))
    config["models"] = {"n": "o"}
    house.write(config)
    assert main(["usage", "-c", str(house.file), "--reprice"]) == 0
    assert "0 of 2" in capsys.readouterr().err
    assert costs(house) == before
