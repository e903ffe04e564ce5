"""Who calls in protobuf, over Connect or gRPC-Web, is under the same keys, limits and budgets, and is told so in kind."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import pytest
from google.protobuf import any_pb2

from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.connect import EnvelopeReader, envelope
from tests.e2e.client import Answer, Visit, ask, becomes, request
from tests.e2e.conftest import at, rigged
from tests.e2e.test_keys import free, made
from tests.e2e.test_protobuf import frames
from tests.issuer import Key, claims, key_set
from tests.origin import DONE, Gate, completion, delta, stream, usage_event, whole
from tests.process import KEY

CHAT = "/proxyd.v1.ChatService/"
SIGNER = Key("k")


@dataclass(frozen=True)
class Way:
    """One way to ask, and how its answers are read."""

    name: str
    path: str
    kind: str
    streamed: bool = False

    def body(self, model: str, **more: object) -> bytes:
        message = pb.ChatCompletionRequest(model=model, messages=[pb.Message(content="Say something.")], **more)
        message.stream = self.streamed and self.path.startswith("/v1")
        data = message.SerializeToString()
        return envelope(data) if self.enveloped else data

    @property
    def enveloped(self) -> bool:
        return "connect+" in self.kind or "grpc" in self.kind

    def error(self, answer: Answer) -> pb.Error | None:
        """What an answer says to be wrong; it must be said in its own protocol."""
        if self.name in ("protobuf", "frames"):
            return None if answer.status == 200 else pb.Error.FromString(answer.body)
        if self.name == "connect":
            assert (answer.status == 200) == (answer.headers["content-type"] == self.kind)
            return None if answer.status == 200 else _detail(answer.json())
        assert (answer.status, answer.headers["content-type"]) == (200, self.kind)
        *_, (_, last) = EnvelopeReader().feed(answer.body)
        if self.name == "connect-stream":
            error = json.loads(last).get("error")
            return None if error is None else _detail(error)
        trailers = dict(line.split(":", 1) for line in last.decode().split("\r\n") if line)
        if trailers["grpc-status"] == "0":
            return None
        status = base64.b64decode(trailers["grpc-status-details-bin"] + "==")
        return pb.Error.FromString(any_pb2.Any.FromString(status[status.index(b"type.googleapis.com/") - 2 :]).value)


def _detail(error: dict) -> pb.Error:
    return pb.Error.FromString(base64.b64decode(error["details"][0]["value"] + "=="))


WAYS = (
    Way("protobuf", "/v1/chat/completions", "application/protobuf"),
    Way("frames", "/v1/chat/completions", "application/protobuf", streamed=True),
    Way("connect", CHAT + "CreateChatCompletion", "application/proto"),
    Way("connect-stream", CHAT + "StreamChatCompletion", "application/connect+proto", streamed=True),
    Way("grpc-web", CHAT + "StreamChatCompletion", "application/grpc-web+proto", streamed=True),
)
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


def key_of(way: Way) -> str:
    return f"{way.name}-key-0123456789"


def _config(origin):
    def route(**limits):
        return {"upstream": "origin", "retry": {"attempts": 1}, "limits": limits}

    limits = {"few": {"rpm": 1}, "tokens": {"tpm": 1000}, "one": {"concurrency": 1}}
    keys = [{"name": w.name, "key": key_of(w), "models": ["*"], "budget": {"tokens": 190, "per": "month"}} for w in WAYS]
    keys.append({"name": "tester", "key": KEY, "default_model": "usual", "models": ["usual", "few-*", "tokens-*", "one-*", "default-*"]})
    issuer = {"issuer": origin.root, "audience": "proxyd", "jwks_url": f"{origin.root}/keys", "name": "it"}
    return {
        "upstreams": {"origin": at(origin)},
        "models": {"*": "origin", **{f"{kind}-{way.name}": route(**limits[kind]) for way in WAYS for kind in limits}},
        "ops": {"listen": f"127.0.0.1:{free()}"},
        "auth": {"keys": keys, "jwt": [{**issuer, "limits_claim": "limits", "models_claim": "models"}]},
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with rigged(tmp_path_factory.mktemp("thin"), _config) as found:
        found.origin.on("/keys", whole(key_set(SIGNER)))
        yield found


def scripted(rig, way: Way, model: str, prompt: int = 60, produced: int = 40) -> str:
    said = stream(delta("hi"), delta("", finish="stop"), usage_event(prompt, produced), DONE)
    rig.origin.on(model, said if way.streamed else whole(completion("hi", prompt=prompt, produced=produced)))
    return model


async def call(rig, way: Way, model: str, key: str = KEY, **more: object) -> tuple[Answer, str]:
    """The answer, and its error's code, if it is one."""
    answer = await ask(rig.url, way.path, way.body(model, **more), Content_Type=way.kind, Authorization=f"Bearer {key}")
    error = way.error(answer)
    return answer, "" if error is None else error.code


@each_way
async def test_a_limit_of_requests_holds_and_says_when_to_come_again(rig, way):
    model = scripted(rig, way, f"few-{way.name}")
    assert (await call(rig, way, model))[1] == ""
    answer, code = await call(rig, way, model)
    error = way.error(answer)
    assert code == "rate_limit_exceeded"
    assert 0 < error.retry_after_ms <= 60_000
    if answer.status != 200:
        assert (answer.status, error.type) == (429, "requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 60


@each_way
async def test_tokens_of_each_way_are_held_and_given_back(rig, way):
    model = scripted(rig, way, f"tokens-{way.name}", prompt=11, produced=3)
    for _ in range(3):  # 900 are held each time, and 14 used
        assert (await call(rig, way, model, max_completion_tokens=900))[1] == ""
    assert (await call(rig, way, model, max_completion_tokens=990))[1] == "rate_limit_exceeded"


@each_way
async def test_a_budget_ends_and_is_not_to_be_tried_again(rig, way):
    model = scripted(rig, way, f"spent-{way.name}")
    for _ in range(2):
        assert (await call(rig, way, model, key_of(way)))[1] == ""
    answer, code = await call(rig, way, model, key_of(way))
    assert (code, way.error(answer).retry_after_ms) == ("insufficient_quota", 0)
    assert len(rig.daemon.settled(model, 2)) == 2


@pytest.mark.parametrize("way", [way for way in WAYS if way.streamed], ids=lambda way: way.name)
async def test_a_running_stream_holds_its_place_and_gives_it_back_when_its_client_leaves(rig, way):
    model = f"one-{way.name}"
    rig.origin.on(model, stream(delta("hi"), Gate()), stream(delta("hi"), delta("", finish="stop"), usage_event(4, 1), DONE))
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", way.path, way.body(model), {"content-type": way.kind}))
    await visit.head()
    await visit.some()
    assert (await call(rig, way, model))[1] == "rate_limit_exceeded"
    await visit.leave(reset=True)
    await becomes(lambda: rig.daemon.rows(model)[0]["state"] == "cancelled")
    assert (await call(rig, way, model))[1] == ""


@each_way
async def test_a_key_opens_its_own_models_and_no_others_until_it_is_revoked(rig, way):
    model = scripted(rig, way, f"default-{way.name}")
    assert (await call(rig, way, f"other-{way.name}"))[1] == "model_not_allowed"
    name = f"phone-{way.name}"
    key = await made(rig, "create", name, "--models", "default-*", "--default-model", model)
    assert (await call(rig, way, "", key))[1] == ""  # on thin links a request need not name it
    assert [row["caller"] for row in rig.daemon.rows(model)] == [name]
    await made(rig, "revoke", name)
    assert (await call(rig, way, model, key))[1] == "invalid_api_key"


@each_way
async def test_a_token_lets_its_user_in_under_the_limits_that_it_says(rig, way):
    model = scripted(rig, way, f"signed-{way.name}")
    said = claims(rig.origin.root, sub=way.name, models=["signed-*"], limits={"rpm": 1})
    assert (await call(rig, way, model, SIGNER.sign(said)))[1] == ""
    assert [row["caller"] for row in rig.daemon.rows(model)] == [f"{way.name}@it"]
    assert (await call(rig, way, model, SIGNER.sign(said)))[1] == "rate_limit_exceeded"
    assert (await call(rig, way, f"default-{way.name}", SIGNER.sign({**said, "sub": "b"})))[1] == "model_not_allowed"
    for wrong in ({**said, "limits": {"rpm": 0}}, {**said, "exp": 1000}):
        answer, code = await call(rig, way, model, SIGNER.sign(wrong))
        assert (code, way.error(answer).message[:9]) == ("invalid_api_key", "The token")


async def test_frames_end_with_what_was_counted_against_the_budget(rig):
    way = WAYS[1]
    answer, _ = await call(rig, way, scripted(rig, way, "default-counted", prompt=5, produced=2))
    assert [(frame.usage.prompt_tokens, frame.usage.completion_tokens) for frame in frames(answer.body)[-1:]] == [(5, 2)]
