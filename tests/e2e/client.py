"""A client that hides nothing: it says whether an answer ended properly or broke, and leaves when a test wants it to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from tests.origin import HANG
from tests.process import KEY

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tests.e2e.conftest import Rig

PATH = "/v1/chat/completions"
T = TypeVar("T")


@dataclass(slots=True)
class Answer:
    """A response head, and, once it was read, the body and whether HTTP said that it is whole."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    whole: bool = False
    chunks: list[bytes] = field(default_factory=list)
    """The body as it came, piece by piece."""

    @property
    def body(self) -> bytes:
        """All of the body that was read."""
        if len(self.chunks) > 1:
            self.chunks[:] = [b"".join(self.chunks)]
        return self.chunks[0] if self.chunks else b""

    def json(self) -> dict:
        """The body, decoded."""
        return json.loads(self.body)

    def error(self) -> dict:
        """The body as OpenAI shapes errors, checked to be that."""
        document = self.json()
        assert set(document) == {"error"}, document
        assert set(document["error"]) >= {"message", "type", "param", "code"}, document
        assert isinstance(document["error"]["message"], str), document
        return document["error"]


class Visit:
    """One TCP connection to the daemon. Use `ask` where nothing special is to happen on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.answer: Answer | None = None
        self._left: int | None = 0

    @classmethod
    async def open(cls, url: str, *, receive_buffer: int | None = None) -> Visit:
        """Connect. A small receive buffer makes a reader slow at once; it also bounds what this side reads ahead."""
        parts = urlsplit(url)
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except OSError:
            sock.close()
            raise
        return cls(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**20))

    async def say(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def post(self, path: str, document: object, **headers: str) -> Visit:
        """Send a JSON request with the tester's key. An underscore in a header's name stands for a hyphen."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        await self.say(request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()}))
        return self

    async def head(self) -> Answer:
        """Read the response head; interim answers are skipped."""
        async with asyncio.timeout(HANG):
            while True:
                raw = await self._reader.readuntil(b"\r\n\r\n")
                first, *lines = raw[:-4].decode("latin-1").split("\r\n")
                version, code, *_ = first.split(" ")
                assert version in ("HTTP/1.1", "HTTP/1.0"), first  # aiohttp speaks 1.0 to whom it could not understand
                if not code.startswith("1"):
                    break
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.lower(): value.strip() for name, value in pairs}
        assert len(headers) == len(pairs), f"a header came twice: {raw!r}"
        self.answer = Answer(int(code), headers)
        self._left = int(headers["content-length"]) if "content-length" in headers else 0 if code == "204" else None
        if self._left is not None:
            assert "transfer-encoding" not in headers
        return self.answer

    async def some(self) -> bytes:
        """The next piece of the body; empty at its end, after which `answer.whole` tells which end it was."""
        assert self.answer is not None
        try:
            async with asyncio.timeout(HANG):
                data = await (self._chunk() if self.answer.headers.get("transfer-encoding") == "chunked" else self._plain())
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        if data:
            self.answer.chunks.append(data)
        return data

    async def rest(self) -> Answer:
        """Read to the end, whichever."""
        if self.answer is None:
            await self.head()
        while await self.some():
            pass
        assert self.answer is not None
        return self.answer

    async def until(self, mark: bytes) -> bytes:
        """Read until the body holds the mark; fails when it ends before."""
        assert self.answer is not None
        while mark not in self.answer.body:
            assert await self.some(), f"the answer ended without {mark!r}: {self.answer.body!r}"
        return self.answer.body

    async def closed_by_peer(self) -> None:
        """Wait until the daemon closes this connection."""
        async with asyncio.timeout(HANG):
            with contextlib.suppress(ConnectionError):
                while await self._reader.read(65536):
                    pass

    async def leave(self, *, reset: bool = False) -> None:
        """Close, as a browser tab does; or with RST, as a lost phone does."""
        if reset:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _plain(self) -> bytes:
        assert self.answer is not None
        if self._left == 0:
            self.answer.whole = True
            return b""
        data = await self._reader.read(65536 if self._left is None else min(self._left, 65536))
        if self._left is not None:
            self._left -= len(data)
            self.answer.whole = self._left == 0
        return data

    async def _chunk(self) -> bytes:
        assert self.answer is not None
        if self.answer.whole:
            return b""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size)
        assert await self._reader.readexactly(2) == b"\r\n"
        self.answer.whole = size == 0
        return data


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """A request as bytes; own headers replace the usual ones, and an empty value takes one away."""
    usual = {"host": "localhost", "authorization": f"Bearer {KEY}"}
    if method == "POST":
        usual |= {"content-type": "application/json", "content-length": str(len(body))}
    own = {name.lower(): value for name, value in (headers or {}).items()}
    lines = [f"{name}: {value}" for name, value in {**usual, **own}.items() if value]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


async def ask(url: str, path: str, document: object = None, *, method: str = "POST", **headers: str) -> Answer:
    """One request on a connection of its own, and its whole answer."""
    body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
    return await send(url, request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}))


async def send(url: str, data: bytes) -> Answer:
    """Bytes out, the whole answer in."""
    visit = await Visit.open(url)
    try:
        await visit.say(data)
        return await visit.rest()
    finally:
        await visit.leave()


def chat(model: str, **more: object) -> dict[str, object]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "Say something."}], **more}


async def begin(rig: Rig, model: str, **more: object) -> Visit:
    """Start a streamed chat and read its head."""
    visit = await (await Visit.open(rig.url)).post(PATH, chat(model, stream=True, **more))
    answer = await visit.head()
    assert answer.status == 200, await visit.rest()
    return visit


async def happens(moment: threading.Event) -> None:
    """Wait for something that another thread sees."""
    assert await asyncio.to_thread(moment.wait, HANG), "it did not happen"


async def becomes(fact: Callable[[], T]) -> T:
    """Wait until something is so, and return it."""
    until = time.monotonic() + HANG
    while not (found := fact()):
        assert time.monotonic() < until, "it never became so"
        await asyncio.sleep(0.005)
    return found
