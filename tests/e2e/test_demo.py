"""`proxyd demo` and its echo upstream: no file, no key, no network."""

import json
import re
import socket

import pytest

from tests.e2e.client import ask, chat
from tests.process import Child, Daemon, settings

PATH = "/v1/chat/completions"
URL = re.compile(r"http://127\.0\.0\.1:\d+")
PRINTED_KEY = re.compile(r"\b(?:dev_|pxd_)[A-Za-z0-9]{16,}")


@pytest.fixture
def demo(tmp_path):
    child = Child(["demo", "--port", "0"], tmp_path)
    yield child
    child.end()


async def test_the_demo_shows_a_streamed_answer_by_itself_and_then_serves(demo, tmp_path):
    """Whoever copies the curl line that it prints gets an answer."""
    url = demo.expect(URL)[0]
    demo.expect(re.compile(r"completion tokens, one row in the ledger"))
    demo.expect(re.compile(rf"curl -N {re.escape(url)}{PATH}"))
    key = demo.expect(PRINTED_KEY)[0]
    answer = await ask(url, PATH, chat("echo", stream=True), authorization=f"Bearer {key}")
    assert (answer.status, answer.whole) == (200, True)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert (await ask(url, "/v1/models", method="GET", authorization=f"Bearer {key}")).json()["data"][0]["id"] == "echo"
    demo.process.terminate()
    assert demo.wait() == 0
    assert "Traceback" not in demo.log
    assert list(tmp_path.iterdir()) == []


def test_the_demo_can_stop_after_its_first_chat(tmp_path):
    """The set-up command of the README: it ends by itself, having answered."""
    child = Child(["demo", "--port", "0", "--once"], tmp_path)
    try:
        assert child.wait() == 0, child.log
        assert "completion tokens, one row in the ledger" in child.log
        assert "Traceback" not in child.log
    finally:
        child.end()


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("echo"), settings(upstreams={"e": {"kind": "echo"}}, models={"*": "e"}))
    try:
        yield daemon.start()
        daemon.stop()
    finally:
        if daemon.child is not None:
            daemon.child.end()


async def test_echo_streams_as_an_openai_model_would(echo):
    """Role first, then a token an event, then the reason, then the usage that was asked for, then DONE."""
    answer = await ask(echo.url, PATH, chat("s", stream=True, stream_options={"include_usage": True}))
    events = [block[6:] for block in answer.body.split(b"\n\n") if block]
    assert events[-1] == b"[DONE]"
    documents = [json.loads(event) for event in events[:-1]]
    assert documents[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(document["choices"][0]["delta"].get("content") or "" for document in documents[:-1]) == "Say something."
    assert documents[-2]["choices"][0]["finish_reason"] == "stop"
    assert documents[-1]["choices"] == []
    (row,) = echo.settled("s")
    assert (row["state"], row["total_tokens"], row["tokens_source"]) == ("done", documents[-1]["usage"]["total_tokens"], "upstream")


async def test_echo_answers_whole_stops_at_the_limit_and_embeds(echo):
    assert (await ask(echo.url, PATH, chat("u"))).json()["choices"][0]["message"]["content"] == "Say something."
    short = (await ask(echo.url, PATH, chat("l", max_tokens=1))).json()
    assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 1)
    text = (await ask(echo.url, "/v1/completions", {"model": "c", "prompt": "abc"})).json()
    assert text["choices"][0]["text"] == "abc"
    vectors = (await ask(echo.url, "/v1/embeddings", {"model": "v", "input": ["a", "b", "a"]})).json()["data"]
    assert vectors[0]["embedding"] == vectors[2]["embedding"] != vectors[1]["embedding"]
    assert {row["state"] for row in echo.rows()} == {"done"}


async def test_echo_tells_what_it_cannot_read(echo):
    answer = await ask(echo.url, PATH, {"model": "bad", "messages": 7})
    assert (answer.status, answer.error()["type"]) == (400, "invalid_request_error")
    (row,) = echo.settled("bad")
    assert (row["state"], row["status"]) == ("failed", 400)
    for more in ({"n": 10**9}, {"messages": [7]}):
        told = (await ask(echo.url, PATH, chat("bad", **more))).error()
        assert told["message"] == "echo cannot read this request: it needs `messages` and numbers as OpenAI has them."
    for more in ({"input": "x", "dimensions": 10**9}, {"input": "x", "dimensions": -1}, {"input": ["x"] * 2049}, {}):
        assert (await ask(echo.url, "/v1/embeddings", {"model": "bad", **more})).status == 400


def test_a_port_that_is_taken_and_a_socket_without_a_folder_are_told_with_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = Child(["demo", "--port", str(port)], tmp_path)
        told = f"proxyd: 127.0.0.1:{port} cannot be listened on: another program listens there: find it with `ss -ltnp 'sport = :{port}'`"
        demo.expect(re.compile(re.escape(told)))
        assert demo.wait() == 1
        demo.end()
    address = f"unix:{tmp_path}/none/x.sock"
    (tmp_path / "config.yaml").write_text(json.dumps(settings(listen=address, upstreams={"e": {"kind": "echo"}}, models={"m": "e"})))
    serve = Child(["serve"], tmp_path)
    serve.expect(re.compile(re.escape(f"proxyd: {address} cannot be listened on: No such file or directory: the folder must be there")))
    assert serve.wait() == 1
    serve.end()
