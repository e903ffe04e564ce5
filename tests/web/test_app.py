"""An answer that breaks because we are wrong: whatever had begun looks broken, and nothing else is said on its connection."""

import asyncio
from types import SimpleNamespace

import pytest

from proxyd.clock import Clock
from proxyd.config.schema import Limits
from proxyd.errors import ProxyError
from proxyd.web.app import App, Row
from proxyd.web.connection import Listener
from tests.e2e.client import Visit, request

JSON = [(b"Content-Type", b"application/json")]


def streamed(_runtime, down, _argument):
    down.begin(200, [(b"Content-Type", b"text/event-stream")], b"data: a\n\n")
    raise RuntimeError("a bug")


def whole(_runtime, down, _argument):
    down.reply(200, JSON, b"{}" * 500_000)
    raise RuntimeError("a bug")


def early(_runtime, _down, _argument):
    raise RuntimeError("a bug")


async def lines(_runtime, down, _argument):
    down.begin(200, [(b"Content-Type", b"application/jsonl")], b"{}\n")
    raise ProxyError("ledger_unavailable", "The disk fails.")


@pytest.fixture
async def url():
    snapshot = SimpleNamespace(config=SimpleNamespace(cors=None))
    runtime = SimpleNamespace(clock=Clock(), stopping=False, new_id=lambda: "req", snapshot=snapshot)
    app = App(runtime, tuple(Row("GET", f"/{serve.__name__}", serve, "") for serve in (streamed, whole, early, lines)))
    server = await asyncio.get_running_loop().create_server(Listener(app, Limits), "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def everything(url, path, version=b"HTTP/1.1"):
    visit = await Visit.open(url)
    await visit.say(request("GET", path).replace(b"HTTP/1.1", version))
    data = b""
    try:
        async with asyncio.timeout(10):
            while piece := await visit._reader.read(65536):
                data += piece
    except ConnectionResetError:
        data += b"<reset>"
    await visit.leave()
    return data


@pytest.mark.parametrize(("version", "end"), [(b"HTTP/1.1", b'"code":"internal"}}\n\n\r\n'), (b"HTTP/1.0", b"<reset>")])
async def test_an_answer_that_has_begun_is_broken_off_and_no_other_one_follows(url, version, end, caplog):
    data = await everything(url, "/streamed", version)
    assert data.count(b"HTTP/1.1") == 1
    assert data.endswith(end)
    assert "a bug" in caplog.text


async def test_an_answer_that_was_said_whole_stays_whole(url):
    data = await everything(url, "/whole")
    assert data.count(b"HTTP/1.1") == 1
    assert data.endswith(b"\r\n\r\n" + b"{}" * 500_000)


async def test_before_it_has_begun_it_is_an_error_of_ours(url):
    data = await everything(url, "/early")
    assert data.startswith(b"HTTP/1.1 500 ")
    assert b'"code":"internal"' in data


@pytest.mark.parametrize(("version", "end"), [(b"HTTP/1.1", b"3\r\n{}\n\r\n"), (b"HTTP/1.0", b"<reset>")])
async def test_what_fails_in_the_middle_is_broken_off_too(url, version, end):
    data = await everything(url, "/lines", version)
    assert data.count(b"HTTP/1.1") == 1
    assert data.endswith(end)
