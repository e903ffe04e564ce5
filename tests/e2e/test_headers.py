"""What of a head passes: a short list both ways, and nothing of ours is told to either side."""

import pytest

from tests.e2e.client import ask, chat, request, send
from tests.origin import completion, delta, stream, whole
from tests.process import KEY

PATH = "/v1/chat/completions"
SECRETS = {
    "Cookie": "session=planted-cookie",
    "Proxy-Authorization": "Basic planted-proxy",
    "X-Goog-Api-Key": "planted-goog",
    "OpenAI-Organization": "planted-org",
    "OpenAI-Project": "planted-project",
    "Idempotency-Key": "planted-idempotency",
    "Forwarded": "for=203.0.113.9",
    "X-Forwarded-For": "203.0.113.10",
    "X-Real-IP": "203.0.113.11",
    "Origin": "https://planted.example",
    "Referer": "https://planted.example/page",
    "Sec-Fetch-Mode": "planted-sec",
    "TE": "trailers",
    "Keep-Alive": "timeout=77",
    "Connection": "keep-alive, X-Planted-Hop",
    "X-Planted-Hop": "planted-hop",
    "X-Unknown": "planted-unknown",
    "X_Stainless_Lang": "planted-underscore",
    "Content_Length": "0",
    "Transfer_Encoding": "chunked",
    "Open_AI_Beta": "planted-twin",
}
WELCOME = {
    "User-Agent": "tester/1.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Retry-Count": "1",
    "OpenAI-Beta": "assistants=v2",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


async def test_only_listed_headers_reach_the_upstream(rig):
    rig.origin.on("up", whole(completion("hi")))
    answer = await send(rig.url, request("POST", PATH, b'{"model":"up","messages":[]}', {**SECRETS, **WELCOME}))
    assert answer.status == 200
    (seen,) = rig.origin.asked("up")
    told = dict(seen.headers)
    for name, value in WELCOME.items():
        assert told[name.lower()] == value
    for name in SECRETS:
        if name != "Connection":
            assert name.lower() not in told
    assert b"planted" not in seen.raw_head
    assert b"203.0.113" not in seen.raw_head
    assert KEY.encode() not in seen.raw_head
    assert told["authorization"] == "Bearer upstream-secret-0123456789"
    assert told["host"] == f"127.0.0.1:{rig.origin.port}"
    assert told["content-type"] == "application/json"
    assert told["accept-encoding"] == "identity"
    assert int(told["content-length"]) == len(seen.body)
    assert seen.target == "/v1/chat/completions"


@pytest.mark.parametrize("name", ["X-Api-Key", "api-key"])
async def test_the_clients_key_never_reaches_the_upstream_in_any_header(rig, name):
    rig.origin.on(name, whole(completion("hi")))
    body = b'{"model":"%b","messages":[]}' % name.encode()
    answer = await send(rig.url, request("POST", PATH, body, {"authorization": "", name: KEY}))
    assert answer.status == 200
    (seen,) = rig.origin.asked(name)
    assert KEY.encode() not in seen.raw_head + seen.body


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "streamed"])
async def test_only_listed_headers_reach_the_client(rig, streamed):
    planted = {
        "set-cookie": "__cf_bm=planted",
        "server": "planted",
        "alt-svc": 'h3=":443"; ma=1; planted',
        "strict-transport-security": "max-age=1; planted",
        "cf-ray": "planted",
        "access-control-allow-origin": "https://planted.example",
        "www-authenticate": "planted",
        "x-ratelimit-limit-requests": "424242",
        "x-planted": "planted",
        "keep-alive": "timeout=424242",
        "connection": "x-planted-hop",
        "x-planted-hop": "planted",
        "x_request_id": "planted",
        "x-request-id": "req_of_the_upstream",
        "openai-processing-ms": "17",
        "openai-version": "2020-10-01",
    }
    model = f"down-{streamed}"
    rig.origin.on(model, stream(delta("a"), b"data: [DONE]\n\n", headers=planted) if streamed else whole(completion("hi"), headers=planted))
    answer = await ask(rig.url, PATH, chat(model, stream=streamed))
    assert answer.status == 200
    assert "planted" not in str(answer.headers)
    assert "424242" not in str(answer.headers)
    assert answer.headers["openai-processing-ms"] == "17"
    assert answer.headers["openai-version"] == "2020-10-01"
    assert answer.headers["upstream-request-id"] == "req_of_the_upstream"
    assert answer.headers["x-request-id"] != "req_of_the_upstream"
    (row,) = rig.daemon.settled(model)
    assert row["upstream_request_id"] == "req_of_the_upstream"
    assert row["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_an_upstreams_error_brings_its_id_too(rig, status):
    """It is what the provider's support asks for, and never more than now."""
    model = f"failing-{status}"
    rig.origin.on(model, whole(b"{}", status=status, headers={"x-request-id": "req_of_the_upstream"}))
    for key in ({}, {"idempotency_key": model}):
        answer = await ask(rig.url, PATH, chat(model), **key)
        assert answer.headers["upstream-request-id"] == "req_of_the_upstream"
        assert answer.headers["x-request-id"].startswith("req_1")


async def test_a_request_id_of_the_client_does_not_become_ours(rig):
    rig.origin.on("id", whole(completion("hi")))
    answers = [await ask(rig.url, PATH, chat("id"), x_request_id="mine") for _ in range(2)]
    assert len({answer.headers["x-request-id"] for answer in answers} | {"mine"}) == 3


async def test_redirects_are_not_followed(rig):
    """A redirect would carry the upstream's key to wherever it points."""
    rig.origin.on("redirect", whole(b"", status=307, headers={"location": rig.origin.root + "/elsewhere"}))
    answer = await ask(rig.url, PATH, chat("redirect"))
    assert answer.status == 502
    answer.error()
    assert "location" not in answer.headers
    assert [seen.target for seen in rig.origin.asked("redirect")] == ["/v1/chat/completions"]


async def test_an_upstreams_wait_is_told_to_the_client(rig):
    body = b'{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
    rig.origin.on("wait", whole(body, status=429, headers={"retry-after": "20", "retry-after-ms": "20000"}))
    answer = await ask(rig.url, PATH, chat("wait"))
    assert (answer.status, answer.error()["code"]) == (429, "rate_limit_exceeded")
    assert float(answer.headers["retry-after"]) == 20
    assert 0 < float(answer.headers["retry-after"]) <= 60


async def test_a_spent_quota_is_not_worth_trying_again(rig):
    body = b'{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}'
    rig.origin.on("quota", whole(body, status=429))
    answer = await ask(rig.url, PATH, chat("quota"))
    assert (answer.status, answer.error()["code"]) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
