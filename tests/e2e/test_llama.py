"""A real model server behind proxyd: what the ledger counts is what llama.cpp itself counted."""

import asyncio
import json

import pytest

from tests.e2e.client import Visit, ask, becomes, chat
from tests.origin import DONE
from tests.process import Daemon, settings

PATH = "/v1/chat/completions"
LONG = {"max_tokens": 12_000, "ignore_eos": True, "seed": 3}


@pytest.fixture(scope="module")
def daemon(llama, llama_embedding, tmp_path_factory):
    """One proxyd before both servers."""
    found = Daemon(
        tmp_path_factory.mktemp("llama-daemon"),
        settings(
            upstreams={"llama": {"kind": "openai", "base_url": llama.url}, "embed": {"kind": "openai", "base_url": llama_embedding.url}},
            models={"embed": "embed", "*": {"upstream": "llama", "retry": {"attempts": 1}}},
        ),
    )
    try:
        yield found.start()
        found.stop()
    finally:
        if found.child is not None:
            found.child.end()


def payloads(body: bytes) -> list[dict]:
    return [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


async def test_a_unary_chat_is_counted_as_the_server_counted_it(daemon):
    answer = await ask(daemon.url, PATH, chat("unary", max_tokens=25, ignore_eos=True))
    document = answer.json()
    assert answer.status == 200
    (row,) = daemon.settled("unary")
    usage = document["usage"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]) == (usage["prompt_tokens"], 25, usage["total_tokens"])
    assert (row["tokens_source"], row["state"], row["finish_reason"], row["streamed"]) == ("upstream", "done", "length", 0)
    assert row["upstream_model"] == document["model"]


async def test_a_streamed_chat_without_usage_asked_is_counted_all_the_same(daemon):
    answer = await ask(daemon.url, PATH, chat("streamed", stream=True, max_tokens=40, ignore_eos=True))
    assert answer.whole
    assert answer.body.rstrip(b"\n").endswith(DONE.rstrip(b"\n"))
    assert all(payload["choices"] for payload in payloads(answer.body))
    (row,) = daemon.settled("streamed")
    assert (row["completion_tokens"], row["tokens_source"], row["finish_reason"], row["streamed"]) == (40, "upstream", "length", 1)
    timings = payloads(answer.body)[-1].get("timings")
    if timings is not None:
        assert row["prompt_tokens"] == timings["cache_n"] + timings["prompt_n"]


async def test_a_streamed_chat_with_usage_asked_shows_the_ledgers_numbers(daemon):
    body = chat("shown", stream=True, max_tokens=10, ignore_eos=True, stream_options={"include_usage": True})
    answer = await ask(daemon.url, PATH, body)
    usage = payloads(answer.body)[-1]["usage"]
    (row,) = daemon.settled("shown")
    assert {key: row[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")
    }


async def test_an_answer_that_stops_by_itself_says_so(daemon):
    answer = await ask(daemon.url, PATH, chat("stops", max_tokens=50, grammar='root ::= "banana"'))
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("banana", "stop")
    (row,) = daemon.settled("stops")
    assert (row["finish_reason"], row["completion_tokens"]) == ("stop", answer.json()["usage"]["completion_tokens"])


async def test_a_completion_is_counted(daemon):
    answer = await ask(daemon.url, "/v1/completions", {"model": "completed", "prompt": "ba be bi", "max_tokens": 12, "ignore_eos": True})
    (row,) = daemon.settled("completed")
    assert (row["endpoint"], row["completion_tokens"]) == ("/v1/completions", 12)
    assert row["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]


async def test_leaving_half_way_stops_the_model(daemon, llama):
    """llama.cpp stops generating when its connection closes; its slot is free long before 12,000 tokens."""
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("left", stream=True, **LONG))
    await visit.head()
    await visit.until(b'"content":"')
    while len(payloads(visit.answer.body)) < 20:
        assert await visit.some()
    assert any(slot["is_processing"] for slot in llama.get("/slots"))
    await visit.leave()
    await becomes(lambda: not any(slot["is_processing"] for slot in llama.get("/slots")))
    (row,) = daemon.settled("left")
    assert row["state"] == "cancelled"
    assert 10 < row["completion_tokens"] < 11_000
    assert row["tokens_source"] in ("counted", "estimated")


async def test_leaving_a_unary_call_is_billed_for_its_prompt(daemon, llama):
    """llama.cpp itself does not stop an unstreamed answer when its connection closes (seen without proxyd, too)."""
    visit = await (await Visit.open(daemon.url)).post(PATH, chat("left-unary", max_tokens=1000, ignore_eos=True))
    await becomes(lambda: any(slot["is_processing"] for slot in llama.get("/slots")))
    await visit.leave()
    (row,) = daemon.settled("left-unary")
    assert (row["state"], row["error"], row["status"]) == ("cancelled", "client_gone", 499)
    assert row["prompt_tokens"] > 0


async def test_embeddings_are_the_servers_own_bytes_and_counts(daemon, llama_embedding):
    for form in ("float", "base64"):
        answer = await ask(daemon.url, "/v1/embeddings", {"model": "embed", "input": ["ba be bi", "do"], "encoding_format": form})
        assert answer.status == 200
        direct = llama_embedding.post("/v1/embeddings", {"model": "embed", "input": ["ba be bi", "do"], "encoding_format": form})
        assert answer.json()["data"][0]["embedding"] == direct["data"][0]["embedding"]
        row = daemon.settled("embed")[-1]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (direct["usage"]["prompt_tokens"], 0)
        assert (row["endpoint"], row["tokens_source"], row["finish_reason"]) == ("/v1/embeddings", "upstream", None)


async def test_an_error_of_the_server_keeps_its_words_in_openais_shape(daemon, llama):
    answer = await ask(daemon.url, PATH, chat("wrong", grammar="root ::= nonsense("))
    error = answer.error()
    assert answer.status == 400
    assert "grammar" in error["message"].lower()
    (row,) = daemon.settled("wrong")
    assert (row["state"], row["status"]) == ("failed", 400)


async def test_a_prompt_that_is_too_long_is_told(daemon):
    answer = await ask(daemon.url, PATH, chat("long", messages=[{"role": "user", "content": "ba " * 60_000}]))
    assert answer.status == 400
    assert "context" in answer.error()["message"].lower()


async def test_many_streams_at_once_each_get_their_own_counts(daemon):
    answers = await asyncio.gather(
        *(ask(daemon.url, PATH, chat(f"many-{size}", stream=True, max_tokens=size, ignore_eos=True)) for size in range(20, 40))
    )
    assert all(answer.whole for answer in answers)
    for size in range(20, 40):
        (row,) = daemon.settled(f"many-{size}")
        assert row["completion_tokens"] == size
