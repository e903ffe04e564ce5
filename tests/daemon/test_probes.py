"""Upstreams that are asked how they are: one that is down is known before a client asks for it."""

from __future__ import annotations

import json

import pytest

from proxyd.config.load import parse
from proxyd.config.mistakes import ConfigError
from proxyd.config.schema import Kind, Upstream
from proxyd.errors import ProxyError
from proxyd.flow.health import SETTINGS, Health
from proxyd.upstream.kinds import models_path
from tests.config.samples import BASE, secrets
from tests.e2e.client import ask, becomes, chat
from tests.origin import Gate, Origin, completion, whole
from tests.process import Child, settings

PATH = "/v1/chat/completions"


def site(origin, second, *, path="/health", **probe):
    upstreams = {
        "first": {"kind": "openai", "base_url": origin.url, "api_key": "k", "probe": {"every": "50ms", "path": path, **probe}},
        "second": {"kind": "openai", "base_url": second.url},
    }
    return settings(upstreams=upstreams, models={"m": ["first", "second"]})


@pytest.fixture
def second():
    origin = Origin()
    yield origin
    origin.close()


async def state(daemon, name="first"):
    return (await ask(daemon.ops, "/state", method="GET")).json()["upstreams"][name]


async def until(daemon, **facts):
    while (now := await state(daemon)) is not None and any(now[name] != value for name, value in facts.items()):
        pass


async def test_an_upstream_that_fails_its_probes_is_left_alone_until_it_passes_one(start, origin, second):
    origin.on("m", whole(completion("from the first")))
    second.on("m", whole(completion("from the second")))
    origin.on("/health", whole(b"{}"))
    daemon = start(site(origin, second))
    await until(daemon, state="closed", probe="ok")
    assert origin.requests[0].method == "GET"
    assert origin.requests[0].header("authorization") == "Bearer k"
    origin.on("/health", whole(b"", status=503))
    await until(daemon, state="open", probe="it answered with status 503")
    assert b"second" in (await ask(daemon.url, PATH, chat("m"))).body
    assert origin.asked("m") == []
    await becomes(lambda: "the upstream first fails its probe: it answered with status 503" in daemon.log)
    origin.on("/health", whole(b"{}"))
    await until(daemon, state="closed", probe="ok")
    assert b"first" in (await ask(daemon.url, PATH, chat("m"))).body
    await becomes(lambda: "the upstream first answers its probe again" in daemon.log)


async def test_one_that_says_nothing_has_failed_and_one_that_limits_has_not(start, origin, second):
    gate = Gate()
    origin.on("/health", [gate])
    daemon = start(site(origin, second, timeout="50ms"))
    await until(daemon, state="open", probe="it did not answer within 0.05 seconds")
    origin.on("/health", whole(b"", status=429))
    await until(daemon, state="closed", probe="ok")
    gate.open()


async def test_a_good_probe_does_not_make_up_for_calls_that_fail(start, origin, second):
    """A server may list its models and answer nothing: ten failures in a row still open its breaker."""
    origin.on("/v1/models", whole(b"{}"))
    origin.on("m", whole(b"{}", status=500))
    second.on("m", whole(completion("hi")))
    daemon = start(site(origin, second, path=None))
    for _ in range(10):
        seen = len(origin.requests)
        await becomes(lambda seen=seen: len(origin.requests) > seen)  # a good probe between two calls
        assert (await ask(daemon.url, PATH, chat("m"))).status == 200
    await until(daemon, state="open")
    assert len(origin.asked("m")) == 10


async def test_ready_says_no_while_a_required_model_has_no_upstream(start, origin, second):
    upstreams = {
        name: {"kind": "openai", "base_url": each.url, "probe": {"every": "20ms", "path": "/health"}}
        for name, each in (("first", origin), ("second", second))
    }
    models = {"m": ["first", "second"], "only/*": "first", "spare": {"upstream": "first", "required": False}}
    daemon = start(settings(upstreams=upstreams, models=models))

    async def ready(url: str, *reasons: str) -> None:
        while (now := await ask(url, "/ready", method="GET")).json().get("reasons", []) != list(reasons):
            pass
        assert now.status == (503 if reasons else 200)

    for each in (origin, second):
        each.on("/health", whole(b"{}"))
    await ready(daemon.ops)
    origin.on("/health", whole(b"", status=500))
    await ready(daemon.ops, "no upstream takes calls for 1 model: only/*")
    second.on("/health", whole(b"", status=500))
    await ready(daemon.ops, "no upstream takes calls for 2 models: m, only/*")
    await ready(daemon.url, "no upstream takes calls for 2 models")  # which ones is for the operator alone
    assert (await ask(daemon.url, "/health", method="GET")).status == 200
    origin.on("/health", whole(b"{}"))
    await ready(daemon.ops)
    await ready(daemon.url)


def test_an_open_breaker_whose_rest_is_over_takes_calls_unless_a_probe_says_otherwise():
    down = ProxyError("upstream_connect", "no")

    def failed(health: Health) -> Health:
        for _ in range(SETTINGS.failures):
            assert health.answers(0.0)
            health.ended(health.begin(0.0, spends=False), 0.0, down)
        return health

    alone, probed = failed(Health()), failed(Health())
    assert not alone.answers(0.0)
    rest = alone.facts(0.0).ready_in
    assert alone.answers(rest)  # else no call would come any more, and it would stay open
    probed.probed(probed.begin_probe(rest), rest, "no")
    assert not probed.answers(rest + 1000.0)
    probed.probed(probed.begin_probe(rest + 1000.0), rest + 1000.0, None)
    assert probed.answers(rest + 1000.0)


async def test_models_shows_what_the_probe_said(start, origin, second):
    origin.on("/health", whole(b"{}"))
    config = site(origin, second)
    daemon = start(config)
    await until(daemon, probe="ok")
    (daemon.folder / "ask.yaml").write_text(json.dumps({**config, "ops": {"listen": daemon.ops.removeprefix("http://")}}))
    child = Child(["models", "-c", "ask.yaml", "--format", "json"], daemon.folder)
    assert child.wait() == 0
    assert [row["state"] for row in json.loads(child.log)] == ["closed, probe ok", "closed"]
    child.end()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (Upstream(kind=Kind.OPENAI, base_url="https://x/v1"), "/v1/models"),
        (Upstream(kind=Kind.OLLAMA), "/v1/models"),
        (Upstream(kind=Kind.OLLAMA, base_url="http://x/v1"), "/v1/models"),
        (Upstream(kind=Kind.HUGGINGFACE), "/v1/models"),
        (Upstream(kind=Kind.AZURE, base_url="https://x"), "/openai/v1/models"),
        (Upstream(kind=Kind.AZURE, base_url="https://x", api_version="2024-10-21"), "/openai/models?api-version=2024-10-21"),
    ],
)
def test_each_kind_lists_its_models_somewhere(spec, path):
    assert models_path(spec) == path


@pytest.mark.parametrize("path", ["health", "/a b", "/é", "http://x/health"])
def test_a_path_that_is_none_is_a_mistake(path):
    text = BASE.replace("{kind: ollama}", "{kind: ollama, probe: {path: " + json.dumps(path) + "}}")
    with pytest.raises(ConfigError, match="'path' must begin with /"):
        parse(text, filename="c.yaml", secrets=secrets())
