"""The tools of these tests are true: what the origin scripts is what the client sees, and it tells what it was sent."""

import asyncio

import pytest

from tests.e2e.client import Visit, ask, becomes, chat, happens, send
from tests.origin import DONE, Ending, Gate, Origin, delta, head, stream, whole


@pytest.fixture
def server():
    found = Origin()
    yield found
    found.close()


async def test_an_answer_arrives_as_scripted_and_its_request_is_kept_exactly(server):
    server.on("m", whole(b'{"a":1}'))
    answer = await ask(server.root, "/v1/x?y=1", chat("m"), x_test="yes")
    assert (answer.status, answer.json(), answer.whole) == (200, {"a": 1}, True)
    (seen,) = server.asked("m")
    assert (seen.method, seen.target, seen.header("X-Test"), seen.json()) == ("POST", "/v1/x?y=1", "yes", chat("m"))
    assert server.violations == []


@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET])
async def test_a_cut_stream_is_not_whole(server, ending):
    server.on("m", stream(delta("a"), 0.05, ending=ending))
    answer = await ask(server.root, "/", chat("m"))
    assert (answer.body, answer.whole) == (delta("a"), False)


async def test_a_proper_stream_is_whole(server):
    server.on("m", stream(delta("a"), DONE))
    answer = await ask(server.root, "/", chat("m"))
    assert (answer.body, answer.whole) == (delta("a") + DONE, True)


async def test_fewer_bytes_than_promised_are_not_whole(server):
    server.on("m", [head(200, {"content-length": "10"}), b"12345", Ending.CLOSE])
    answer = await ask(server.root, "/", chat("m"))
    assert (answer.body, answer.whole) == (b"12345", False)


async def test_a_gate_holds_the_script_until_it_is_opened(server):
    gate = Gate()
    server.on("m", stream(delta("a"), gate, delta("b")))
    visit = await (await Visit.open(server.root)).post("/", chat("m"))
    await visit.head()
    await visit.until(delta("a"))
    await happens(gate.reached)
    gate.open()
    assert (await visit.rest()).body == delta("a") + delta("b")
    await visit.leave()


@pytest.mark.parametrize("reset", [False, True])
async def test_the_origin_sees_its_peer_leave_while_it_waits(server, reset):
    server.on("m", [Ending.HANG])
    visit = await (await Visit.open(server.root)).post("/", chat("m"))
    await becomes(lambda: server.asked("m"))
    connection = server.asked("m")[0].connection
    assert not connection.closed.is_set()
    await visit.leave(reset=reset)
    await happens(connection.closed)
    assert connection.ended_by == "peer"


async def test_an_idle_connection_is_closed_by_an_impatient_origin():
    server = Origin(idle=0.01)
    server.on("m", whole(b"{}"))
    visit = await (await Visit.open(server.root)).post("/", chat("m"))
    await visit.rest()
    await visit.closed_by_peer()
    assert server.connections[0].ended_by == "origin"
    await visit.leave()
    server.close()


async def test_scripts_are_played_in_turn_and_the_last_one_for_ever(server):
    server.on("m", whole(b"{}", status=500), whole(b"{}"))
    assert [(await ask(server.root, "/", chat("m"))).status for _ in range(3)] == [500, 200, 200]


@pytest.mark.parametrize(
    "bad",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
        b"POST http://x/ HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nauthorization: a\r\nauthorization: b\r\n\r\n",
    ],
)
async def test_what_no_client_may_send_is_noticed(server, bad):
    with pytest.raises(asyncio.IncompleteReadError):
        await send(server.root, bad)
    assert server.violations
