"""A client's connection, of which several are lost in one moment."""

import asyncio
import socket
import struct

import pytest

from proxyd.config.schema import Limits
from proxyd.web.connection import Listener
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
