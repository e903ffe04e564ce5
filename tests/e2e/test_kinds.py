"""Each kind of upstream is called at its own path with its own credential."""

import pytest

from tests.e2e.client import ask, chat
from tests.origin import completion, delta, stream, usage_event, whole

PATH = "/v1/chat/completions"
WAYS = {
    "openai": ({"base_url": "{root}/v1"}, "/v1/chat/completions", "authorization", "Bearer the-key"),
    "openai-elsewhere": ({"kind": "openai", "base_url": "{root}/api/v1/"}, "/api/v1/chat/completions", "authorization", "Bearer the-key"),
    "ollama": ({"base_url": "{root}"}, "/v1/chat/completions", "authorization", "Bearer the-key"),
    "huggingface": ({"base_url": "{root}/v1"}, "/v1/chat/completions", "authorization", "Bearer the-key"),
    "azure": ({"base_url": "{root}"}, "/openai/v1/chat/completions", "api-key", "the-key"),
    "azure-dated": (
        {"kind": "azure", "base_url": "{root}", "api_version": "2024-10-21"},
        "/openai/deployments/there/chat/completions?api-version=2024-10-21",
        "api-key",
        "the-key",
    ),
}


@pytest.fixture
def daemon(launch, origin):
    """One upstream of each kind, and a model of the same name at each."""
    upstreams = {
        way: {"kind": way, "api_key": "the-key", **{key: value.format(root=origin.root) for key, value in options.items()}}
        for way, (options, *_) in WAYS.items()
    }
    models = {way: {"upstream": way, "model": "there", "retry": {"attempts": 1}} for way in WAYS}
    return launch(upstreams=upstreams, models=models)


async def test_every_kind_is_called_in_its_own_way(daemon, origin):
    origin.on("*", whole(completion("hi")))
    for way, (_, path, header, value) in WAYS.items():
        answer = await ask(daemon.url, PATH, chat(way))
        assert answer.body == completion("hi"), way
        seen = origin.requests[-1]
        assert (seen.target, seen.header(header)) == (path, value), way
        assert (header == "authorization") == (seen.header("authorization") is not None), way
        assert seen.model == "there"
        (row,) = daemon.settled(way)
        assert (row["upstream"], row["upstream_model"]) == (way, "origin-model")


async def test_a_kind_that_may_not_know_stream_options_can_be_spared_them(launch, origin):
    daemon = launch(
        upstreams={"origin": {"kind": "openai", "base_url": origin.url, "include_usage": False}}, models={"*": {"upstream": "origin"}}
    )
    origin.on("m", stream(delta("some words here"), delta("", finish="stop"), b"data: [DONE]\n\n"))
    await ask(daemon.url, PATH, chat("m", stream=True))
    assert "stream_options" not in origin.asked("m")[0].json()
    (row,) = daemon.settled("m")
    assert row["tokens_source"] in ("counted", "estimated")
    assert row["completion_tokens"] >= 3


USAGE_ROUTES = {
    # route: what it changes; what its upstream is told by a client that asks for usage, and by one that does not
    "dropped": ({"drop": ["stream_options"]}, None, None),
    "never": ({"force": {"stream_options": {"include_usage": False}}}, {"include_usage": False}, {"include_usage": False}),
    "always": ({"force": {"stream_options": {"include_usage": True}}}, {"include_usage": True}, {"include_usage": True}),
    "other": (
        {"force": {"stream_options": {"include_obfuscation": False}}},
        {"include_obfuscation": False, "include_usage": True},
        {"include_obfuscation": False, "include_usage": True},
    ),
}


@pytest.mark.parametrize("way", USAGE_ROUTES)
async def test_what_a_route_says_of_stream_options_holds_and_each_client_gets_what_it_asked_for(launch, origin, way):
    """It is proxyd's own word that gives way, and what the client did not ask for is taken out, whoever asked."""
    route, asked, silent = USAGE_ROUTES[way]
    daemon = launch(upstreams={"origin": {"kind": "openai", "base_url": origin.url}}, models={"m": {"upstream": "origin", **route}})

    def answer(request):
        told = (request.json().get("stream_options") or {}).get("include_usage")
        return stream(delta("Hi"), delta("", finish="stop"), *([usage_event(3, 1)] if told else []), b"data: [DONE]\n\n")

    origin.on("m", answer)
    for wants, expected in ((True, asked), (False, silent)):
        wish = {"stream_options": {"include_usage": True}} if wants else {}
        got = await ask(daemon.url, PATH, chat("m", stream=True, **wish))
        assert got.whole
        assert origin.requests[-1].json().get("stream_options") == expected
        assert (b'"usage"' in got.body) == (wants and bool(expected and expected.get("include_usage"))), got.body


async def test_ollama_is_told_the_limit_by_the_name_that_it_reads(daemon, origin):
    """Ollama's /v1 reads max_tokens but not max_completion_tokens: without the copy an answer has no bound."""
    origin.on("*", whole(completion("hi")))
    await ask(daemon.url, PATH, chat("ollama", max_completion_tokens=17))
    assert origin.requests[-1].json()["max_tokens"] == 17


async def test_a_route_sets_forces_drops_and_renames(launch, origin):
    daemon = launch(
        upstreams={"origin": {"kind": "openai", "base_url": origin.url}},
        models={
            "m": {
                "upstream": "origin",
                "model": "org/renamed:tag",
                "set": {"temperature": 0.2, "top_p": 0.5},
                "force": {"user": "proxyd"},
                "drop": ["logit_bias"],
            },
            "hf/*": {"upstream": "origin", "strip_prefix": "hf/"},
        },
        aliases={"gpt-3.5-turbo": "m"},
    )
    origin.on("*", whole(completion("hi")))
    await ask(daemon.url, PATH, chat("gpt-3.5-turbo", temperature=1, user="me", logit_bias={"1": 2}))
    sent = origin.requests[-1].json()
    assert {key: sent.get(key) for key in ("model", "temperature", "top_p", "user", "logit_bias")} == {
        "model": "org/renamed:tag",
        "temperature": 1,
        "top_p": 0.5,
        "user": "proxyd",
        "logit_bias": None,
    }
    await ask(daemon.url, PATH, chat("hf/org/name:prov"))
    assert origin.requests[-1].model == "org/name:prov"
    assert [row["model"] for row in daemon.rows()] == ["gpt-3.5-turbo", "hf/org/name:prov"]
