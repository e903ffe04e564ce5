"""The clients that people have: OpenAI's SDKs for Python and Node, LangChain and curl, each unchanged."""

import json
import re
import shutil
import struct
import subprocess
from base64 import b64encode
from pathlib import Path

import openai
import pytest

from tests.node import installed
from tests.origin import DONE, Ending, completion, delta, event, stream, usage_event, whole
from tests.process import KEY

ASK = [{"role": "user", "content": "Say something."}]
WORDS = [delta("Hello"), delta(" there"), delta("", finish="stop")]


@pytest.fixture
def client(rig):
    """The sync SDK; without retries, so that each test sees its own failure."""
    with openai.OpenAI(base_url=rig.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as found:
        yield found


def test_a_chat(rig, client):
    rig.origin.on("sync", whole(completion("Hello there")))
    answer = client.chat.completions.create(model="sync", messages=ASK)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.usage.total_tokens == 14
    assert answer._request_id == rig.daemon.settled("sync")[0]["request_id"]


def test_a_streamed_chat_never_shows_a_chunk_without_choices(rig, client):
    """The loop that everybody writes, `chunk.choices[0]`, must not meet the usage chunk that nobody asked for."""
    rig.origin.on("streamed", stream(*WORDS, usage_event(3, 2), DONE))
    chunks = list(client.chat.completions.create(model="streamed", messages=ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there"
    (row,) = rig.daemon.settled("streamed")
    assert (row["state"], row["total_tokens"]) == ("done", 5)


def test_a_streamed_chat_with_usage(rig, client):
    rig.origin.on("with-usage", stream(*WORDS, usage_event(3, 2), DONE))
    chunks = list(client.chat.completions.create(model="with-usage", messages=ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens == 5
    assert chunks[-1].choices == []


def test_the_stream_helper(rig, client):
    rig.origin.on("helper", stream(*WORDS, DONE))
    with client.chat.completions.stream(model="helper", messages=ASK) as run:
        assert run.get_final_completion().choices[0].message.content == "Hello there"


def test_the_raw_response_and_its_headers(rig, client):
    rig.origin.on("raw", whole(completion("Hello"), headers={"openai-processing-ms": "5", "x-request-id": "req_7"}))
    raw = client.chat.completions.with_raw_response.create(model="raw", messages=ASK)
    assert raw.headers["openai-processing-ms"] == "5"
    assert raw.headers["upstream-request-id"] == "req_7"
    assert raw.parse().choices[0].message.content == "Hello"
    assert raw.http_response.content == completion("Hello")


async def test_the_async_client(rig):
    rig.origin.on("async", whole(completion("Hello there")))
    rig.origin.on("async-stream", stream(*WORDS, usage_event(3, 2), DONE))
    async with openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        assert (await client.chat.completions.create(model="async", messages=ASK)).choices[0].message.content == "Hello there"
        run = await client.chat.completions.create(model="async-stream", messages=ASK, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in run]) == "Hello there"
    assert rig.daemon.settled("async-stream")[0]["state"] == "done"


async def test_breaking_out_of_an_async_stream_cancels_it(rig):
    rig.origin.on("break", stream(delta("Hello"), ending=Ending.HANG))
    async with (
        openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as client,
        await client.chat.completions.create(model="break", messages=ASK, stream=True) as run,
    ):
        async for _ in run:
            break
    (row,) = rig.daemon.settled("break")
    assert row["state"] == "cancelled"
    assert row["completion_tokens"] > 0


def test_completions(rig, client):
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": "hi", "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    rig.origin.on("cmpl", whole(json.dumps(body).encode()))
    assert client.completions.create(model="cmpl", prompt="x").choices[0].text == "hi"
    assert rig.origin.asked("cmpl")[0].target == "/v1/completions"


def test_embeddings_in_the_sdks_default_base64(rig, client):
    packed = b64encode(struct.pack("<3f", 0.5, -1.0, 2.0)).decode()
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": packed}],
        "model": "e",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    rig.origin.on("emb", whole(json.dumps(body).encode()))
    assert client.embeddings.create(model="emb", input="x").data[0].embedding == [0.5, -1.0, 2.0]
    assert rig.origin.asked("emb")[0].json()["encoding_format"] == "base64"
    (row,) = rig.daemon.settled("emb")
    assert (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]) == (4, 0, 4)


def test_models_are_listed_and_found(launch, origin):
    daemon = launch(
        upstreams={"origin": {"kind": "openai", "base_url": origin.url}},
        models={"org/name:prov": "origin", "plain": "origin"},
        aliases={"other": "plain"},
    )
    with openai.OpenAI(base_url=daemon.url + "/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        assert [model.id for model in client.models.list()] == ["org/name:prov", "plain", "other"]
        assert client.models.retrieve("org/name:prov").id == "org/name:prov"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("none/such")


ERRORS = {
    400: openai.BadRequestError,
    404: openai.NotFoundError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}


@pytest.mark.parametrize("status", ERRORS)
def test_errors_raise_the_classes_that_they_would_without_proxyd(rig, client, status):
    document = {"error": {"message": "No, because.", "type": "some_type", "param": "messages", "code": "some_code"}}
    rig.origin.on(f"error-{status}", whole(json.dumps(document).encode(), status=status))
    with pytest.raises(ERRORS[status]) as caught:
        client.chat.completions.create(model=f"error-{status}", messages=ASK)
    error = caught.value
    assert (error.status_code, error.code, error.type, error.param) == (status, "some_code", "some_type", "messages")
    assert "No, because." in error.message
    assert error.request_id


def test_the_upstreams_bad_key_is_not_the_clients(rig, client):
    rig.origin.on("auth", whole(b'{"error":{"message":"Incorrect API key provided: upstream-sec*ret"}}', status=401))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="auth", messages=ASK)
    assert "upstream-sec" not in str(caught.value)


def test_a_wrong_key_of_the_client_is(rig):
    with (
        openai.OpenAI(base_url=rig.url + "/v1", api_key="wrong", max_retries=0, timeout=20) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="x", messages=ASK)


def test_a_cut_stream_raises(rig, client):
    rig.origin.on("cut", stream(delta("Hello"), 0.05, ending=Ending.CLOSE))
    seen = []
    with pytest.raises(openai.APIError):
        seen.extend(client.chat.completions.create(model="cut", messages=ASK, stream=True))


def test_an_error_inside_a_stream_raises(rig, client):
    document = {"error": {"message": "Mid-way.", "type": "server_error", "param": None, "code": None}}
    rig.origin.on("mid", stream(delta("Hello"), event(document)))
    with pytest.raises(openai.APIError, match=r"Mid-way\."):
        list(client.chat.completions.create(model="mid", messages=ASK, stream=True))


def test_the_sdks_own_retry_gets_through(rig):
    document = {"error": {"message": "busy", "type": "server_error", "param": None, "code": None}}
    rig.origin.on("again", whole(json.dumps(document).encode(), status=503, headers={"retry-after-ms": "10"}), whole(completion("Hello")))
    with openai.OpenAI(base_url=rig.url + "/v1", api_key=KEY, max_retries=1, timeout=20) as client:
        assert client.chat.completions.create(model="again", messages=ASK).choices[0].message.content == "Hello"
    assert [row["state"] for row in rig.daemon.settled("again", 2)] == ["failed", "done"]


# LangChain


def test_langchain(rig):
    langchain = pytest.importorskip("langchain_openai")
    rig.origin.on("lc", whole(completion("Hello there")))
    rig.origin.on("lc-stream", stream(*WORDS, usage_event(3, 2), DONE))
    options = {"base_url": rig.url + "/v1", "api_key": KEY, "max_retries": 0, "timeout": 20}
    answer = langchain.ChatOpenAI(model="lc", **options).invoke("Say something.")
    assert (answer.content, answer.usage_metadata["total_tokens"]) == ("Hello there", 14)
    chunks = list(langchain.ChatOpenAI(model="lc-stream", **options).stream("Say something."))
    assert "".join(chunk.content for chunk in chunks) == "Hello there"
    assert rig.daemon.settled("lc-stream")[0]["total_tokens"] == 5


# Node

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: "Say something." }];
const seen = {};
const unary = await client.chat.completions.create({ model: "node", messages });
seen.unary = unary.choices[0].message.content;
seen.requestId = unary._request_id;
seen.streamed = "";
for await (const chunk of await client.chat.completions.create({ model: "node-stream", messages, stream: true }))
  seen.streamed += chunk.choices[0].delta.content ?? "";
seen.models = (await client.models.list()).data.length;
seen.vector = (await client.embeddings.create({ model: "node-emb", input: "x" })).data[0].embedding;
try { await client.chat.completions.create({ model: "node-error", messages }); }
catch (error) { seen.error = [error.constructor.name, error.status, error.code, error.message]; }
seen.cut = "";
try {
  for await (const chunk of await client.chat.completions.create({ model: "node-cut", messages, stream: true }))
    seen.cut += chunk.choices[0].delta.content ?? "";
  seen.cutError = null;
} catch (error) { seen.cutError = error.constructor.name; }
console.log(JSON.stringify(seen));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Path:
    """A folder with the Node SDK in it."""
    folder = installed(tmp_path_factory.mktemp("node"), "openai")
    (folder / "client.mjs").write_text(SCRIPT)
    return folder


def test_the_node_sdk(rig, node):
    packed = b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    vector = {
        "object": "list",
        "data": [{"index": 0, "object": "embedding", "embedding": packed}],
        "model": "e",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    failure = {"error": {"message": "No, because.", "type": "t", "param": None, "code": "some_code"}}
    rig.origin.on("node", whole(completion("Hello there")))
    rig.origin.on("node-stream", stream(*WORDS, usage_event(3, 2), DONE))
    rig.origin.on("node-emb", whole(json.dumps(vector).encode()))
    rig.origin.on("node-error", whole(json.dumps(failure).encode(), status=404))
    rig.origin.on("node-cut", stream(delta("Hello"), 0.05, ending=Ending.CLOSE))
    command = ["node", "client.mjs", rig.url, KEY]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["unary"] == seen["streamed"] == "Hello there"
    assert seen["vector"] == [0.5, -1.0]
    assert seen["requestId"] == rig.daemon.settled("node")[0]["request_id"]
    assert seen["error"][:3] == ["NotFoundError", 404, "some_code"]
    assert seen["cut"] == "Hello"
    assert seen["cutError"] == "APIError"
    assert rig.daemon.settled("node-stream")[0]["total_tokens"] == 5


# curl


def _curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    return subprocess.run(["curl", "-sS", "--max-time", "20", *arguments], capture_output=True, check=False)


def test_curl(rig):
    rig.origin.on("curl", stream(*WORDS, DONE))
    rig.origin.on("curl-cut", stream(delta("Hello"), 0.05, ending=Ending.CLOSE))
    url, key, kind = rig.url + "/v1/chat/completions", f"Authorization: Bearer {KEY}", "Content-Type: application/json"
    done = _curl("-N", url, "-H", key, "-H", kind, "-d", json.dumps({"model": "curl", "stream": True, "messages": ASK}))
    assert (done.returncode, done.stdout) == (0, b"".join(WORDS) + DONE)
    cut = _curl("-N", url, "-H", key, "-H", kind, "-d", json.dumps({"model": "curl-cut", "stream": True, "messages": ASK}))
    assert cut.returncode == 18  # CURLE_PARTIAL_FILE: the transfer closed with outstanding read data remaining
    assert cut.stdout.startswith(delta("Hello"))
    listed = _curl(rig.url + "/v1/models", "-H", key, "-i")
    assert re.match(rb"HTTP/1\.1 200 ", listed.stdout)


def test_curl_with_a_large_body_waits_for_leave_to_send(rig):
    """Curl sends `Expect: 100-continue` with bodies over a megabyte."""
    rig.origin.on("curl-big", whole(completion("hi")))
    body = json.dumps({"model": "curl-big", "messages": [{"role": "user", "content": "x" * 3_000_000}]})
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--max-time",
            "20",
            rig.url + "/v1/chat/completions",
            "-H",
            f"api-key: {KEY}",
            "-H",
            "Content-Type: application/json",
            "-d",
            "@-",
        ],
        input=body.encode(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, completion("hi"))
