"""A client's connection, of which several are lost in one moment."""

import asyncio
import socket
import struct

import pytest

from proxyd.config.schema import Limits
from proxyd.flow.claims import key_in, wants_resumable
from proxyd.web.connection import Listener
from proxyd.wire import headers
from tests.e2e.client import becomes


class Waits:
    """A handler whose requests wait for ever, and that notes what it is told of its clients, in order."""

    def __init__(self):
        self.heard = []
        self.running = 0

    async def __call__(self, request):
        request.protocol.on_leaving = lambda: self.heard.append("leaves")
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.heard.append("cancelled")

    def new_id(self):
        return "req"


@pytest.mark.parametrize("reset", [False, True])
async def test_of_all_who_leave_in_one_moment_is_heard_before_any_handler_is_cancelled(reset):
    handler = Waits()
    server = await asyncio.get_running_loop().create_server(Listener(handler, Limits), "127.0.0.1", 0)
    crowd = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(20)]
    for client in crowd:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await becomes(lambda: handler.running == len(crowd))
    for client in crowd:  # without giving the loop a turn in between
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    await becomes(lambda: len(handler.heard) == 2 * len(crowd))
    assert handler.heard == ["leaves"] * len(crowd) + ["cancelled"] * len(crowd)
    server.close()


async def test_what_was_read_of_headers_is_remembered_though_their_keys_differ():
    port = Listener(Waits(), Limits)
    common = ((b"Authorization", b"Bearer secret-key"), (b"User-Agent", b"sdk/1"))
    first = port.fields((*common, (b"Content-Length", b"12"), (b"Idempotency-Key", b"one")))
    second = port.fields((*common, (b"Content-Length", b"345"), (b"Idempotency-Key", b"two"), (b"Prefer", b"resumable")))
    assert headers.credential(first) == b"secret-key"
    assert second.memo is first.memo
    assert (key_in(first), key_in(second)) == ("one", "two")
    assert wants_resumable(second)
    assert not wants_resumable(first)


async def test_headers_that_differ_in_what_is_remembered_are_kept_apart():
    port = Listener(Waits(), Limits)
    ours, theirs = (port.fields(((b"Authorization", b"Bearer " + key), (b"Idempotency-Key", b"one"))) for key in (b"ours", b"theirs"))
    assert headers.credential(ours) == b"ours"
    assert headers.credential(theirs) == b"theirs"


async def test_traces_are_not_remembered():
    port = Listener(Waits(), Limits)
    trace = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"
    assert port.fields(((b"traceparent", trace),)) is not port.fields(((b"traceparent", trace),))
