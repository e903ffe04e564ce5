"""A scripted upstream: raw TCP, HTTP/1.1, and nothing sent that the script did not say.

A script is a sequence of steps, played once a request has arrived whole: `bytes` are written as they are (status line,
headers, chunk sizes, garbage), a `float` sleeps, a `Gate` waits for the test, a callable is handed the request, and an
`Ending` says what becomes of the connection. So every way in which a server can misbehave is a list. The server runs in
a thread with a loop of its own, so that blocking clients and a daemon in a child process can call it.

Requests are read strictly (RFC 9112): what an intermediary must never send is kept in `violations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

HANG = 10.0
"""Seconds after which a wait in a test is given up. A guard against hanging, never a measurement."""
HEAD_LIMIT = 256 * 1024
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Ending(enum.Enum):
    """What becomes of the connection after a script."""

    KEEP = "keep"
    """Wait for the next request."""
    CLOSE = "close"
    """Send what is buffered, then FIN."""
    RESET = "reset"
    """RST, as when a machine dies."""
    HANG = "hang"
    """Say nothing more until the peer leaves."""


class Gate:
    """A step that waits until the test opens it; `reached` is set when a script has come to it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = False
        self._lock = threading.Lock()
        self._waiting: list[asyncio.Future[None]] = []

    def open(self) -> None:
        """Let every script pass, now and later. Any thread."""
        with self._lock:
            self._opened = True
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            with contextlib.suppress(RuntimeError):  # the origin's loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(lambda f=future: f.done() or f.set_result(None))

    async def passed(self) -> None:
        """Wait inside the origin's loop."""
        self.reached.set()
        with self._lock:
            if self._opened:
                return
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
        await future


@dataclass(frozen=True, slots=True)
class Request:
    """A request exactly as it came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in order."""
    raw_head: bytes
    body: bytes
    connection: Connection
    number: int
    """Counts from 1 over the life of the origin."""

    def header(self, name: str) -> str | None:
        """The last value of a header."""
        return dict(self.headers).get(name.lower())

    def json(self) -> dict:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def model(self) -> str | None:
        """The model asked for, where the body says so."""
        try:
            value = json.loads(self.body)["model"]
        except (ValueError, KeyError, TypeError):
            return None
        return value if isinstance(value, str) else None


Step = bytes | float | Gate | Ending | Callable[[Request], None]
Script = Iterable[Step] | Callable[[Request], Iterable[Step]]


@dataclass(eq=False, slots=True)
class Connection:
    """What is known of one TCP connection; safe to read from any thread."""

    number: int
    requests: int = 0
    written: int = 0
    """Bytes handed to the transport."""
    sent: Callable[[], int] = int
    """Bytes of these that left for the kernel."""
    ended_by: str | None = None
    """`peer` (FIN or RST) or `origin`."""
    closed: threading.Event = field(default_factory=threading.Event)


class Violation(Exception):  # noqa: N818 - a fact about the peer, more than an error of ours
    """The peer sent what no HTTP/1.1 client may send."""


class _Reader(asyncio.Protocol):
    """One connection: reads a request, plays its script, again."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.buffer = bytearray()
        self.arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=0)
        self.facts = Connection(len(self.origin.connections) + 1)
        self.facts.sent = lambda: self.facts.written - transport.get_write_buffer_size()
        self.origin.connections.append(self.facts)
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self.origin.tasks.add(self.task)
        self.task.add_done_callback(self.origin.tasks.discard)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.arrived.set()

    def eof_received(self) -> bool:
        self._lost("peer")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost("peer")

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _lost(self, who: str) -> None:
        if self.facts.ended_by is None:
            self.facts.ended_by = who
            self.facts.closed.set()
            if who == "peer":
                self.task.cancel()

    async def _serve(self) -> None:
        try:
            while await self._exchange():
                pass
        except Violation as violation:
            self.origin.violations.append(str(violation))
        except Exception as error:  # a mistake in the script: shown by the fixture
            self.origin.violations.append(f"the script failed: {error!r}")
        finally:
            self._lost("origin")
            self.transport.close()

    async def _exchange(self) -> bool:
        request = await self._request()
        if request is None:
            return False
        script = self.origin.script_for(request)
        steps = script(request) if callable(script) else script
        for step in steps:
            if isinstance(step, Ending):
                return await self._ending(step)
            await self._step(step, request)
            await asyncio.sleep(0)  # a script may be endless: let the loop see that nobody listens any more
        return True

    async def _step(self, step: Step, request: Request) -> None:
        if isinstance(step, bytes):
            self.facts.written += len(step)
            self.transport.write(step)
            await self.writable.wait()
        elif isinstance(step, int | float):
            await asyncio.sleep(step)
        elif isinstance(step, Gate):
            await step.passed()
        elif callable(step):
            step(request)

    async def _ending(self, ending: Ending) -> bool:
        if ending is Ending.HANG:
            await asyncio.Event().wait()
        if ending is Ending.RESET:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._lost("origin")
            self.transport.abort()
        return ending is Ending.KEEP

    async def _more(self, idle: float | None = None) -> bool:
        self.arrived.clear()
        try:
            async with asyncio.timeout(idle):
                await self.arrived.wait()
        except TimeoutError:
            return False
        return True

    async def _request(self) -> Request | None:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > HEAD_LIMIT:
                raise Violation("endless request head")
            if not await self._more(None if self.buffer else self.origin.idle):
                return None
        raw = bytes(self.buffer[: end + 4])
        del self.buffer[: end + 4]
        method, target, headers = _parse_head(raw)
        body = await self._body(dict(headers))
        self.facts.requests += 1
        request = Request(method, target, headers, raw, body, self.facts, len(self.origin.requests) + 1)
        self.origin.requests.append(request)
        return request

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return await self._chunks()
        return await self._take(int(headers.get("content-length", "0")))

    async def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self._more()
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self._more()
        return (await self._take(end + 2))[:-2]

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._line(), 16):
            body += await self._take(size)
            if await self._line():
                raise Violation("a chunk is longer than its size")
        if await self._line():
            raise Violation("trailers")
        return body


def _parse_head(raw: bytes) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Split a request head; whatever a careful intermediary never sends is a Violation."""
    lines = raw[:-4].split(b"\r\n")
    for line in lines:
        if b"\n" in line or b"\r" in line or b"\x00" in line:
            raise Violation(f"stray CR, LF or NUL: {line!r}")
        if line[:1] in (b" ", b"\t"):
            raise Violation(f"obs-fold: {line!r}")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1" or not parts[1].startswith(b"/"):
        raise Violation(f"request line: {lines[0]!r}")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise Violation(f"header line: {line!r}")
        headers.append((name.decode("ascii").lower(), value.strip().decode("latin-1")))
    names = [name for name, _ in headers]
    for once in ("host", "content-length", "transfer-encoding", "content-type", "authorization"):
        if names.count(once) > 1:
            raise Violation(f"{once} twice")
    if "host" not in names:
        raise Violation("no Host")
    if "content-length" in names and "transfer-encoding" in names:
        raise Violation("Content-Length and Transfer-Encoding")
    return parts[0].decode("ascii"), parts[1].decode("ascii"), tuple(headers)


class Origin:
    """The upstream of a test. `idle` seconds after an answer it closes a kept connection; None keeps it for ever."""

    def __init__(self, *, idle: float | None = None, send_buffer: int | None = None) -> None:
        self.idle = idle
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.violations: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._scripts: dict[str, list[Script]] = {}
        self._played: dict[str, int] = {}
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        if send_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="origin", daemon=True)
        self._thread.start()

    @property
    def root(self) -> str:
        """The URL of `/`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """A base URL as an OpenAI-compatible upstream is configured with."""
        return self.root + "/v1"

    def on(self, key: str, *scripts: Script) -> None:
        """Say what requests get whose model, or else whose path, is `key`: one script each, the last one for all later."""
        with self._lock:
            self._scripts[key] = list(scripts)
            self._played[key] = 0

    def forget(self, key: str) -> None:
        """Have no script for it any more, and keep nothing of what it asked: for runs without end."""
        with self._lock:
            self._scripts.pop(key, None)
            self._played.pop(key, None)
        self.requests.clear()
        self.connections[:] = [connection for connection in self.connections if not connection.closed.is_set()]

    def script_for(self, request: Request) -> Script:
        """The next script for this request."""
        with self._lock:
            for key in (request.model, request.target.partition("?")[0], "*"):
                if key is not None and key in self._scripts:
                    turn = self._played[key]
                    self._played[key] += 1
                    return self._scripts[key][min(turn, len(self._scripts[key]) - 1)]
        return whole(b'{"error":{"message":"no script","type":"x","param":null,"code":null}}', status=404)

    def asked(self, model: str) -> list[Request]:
        """The requests for one model, in order."""
        return [request for request in self.requests if request.model == model]

    def close(self) -> None:
        """Stop at once, closing every connection."""

        async def end() -> None:
            self._server.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await asyncio.sleep(0)  # the transports' own last call

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(HANG)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(self._loop.create_server(lambda: _Reader(self), sock=self._socket))
        self._loop.run_forever()


def head(status: int = 200, headers: dict[str, str] | None = None) -> bytes:
    """A response head."""
    lines = [f"HTTP/1.1 {status} Scripted"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """The data in pieces of `size` bytes, the last one shorter."""
    return (data[at : at + size] for at in range(0, len(data), size))


def whole(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> list[Step]:
    """An answer with Content-Length, in one write."""
    own = {"content-type": "application/json", **(headers or {}), "content-length": str(len(body))}
    return [head(status, own) + body]


def chunked_body(body: bytes, piece: int, headers: dict[str, str], status: int = 200) -> list[Step]:
    """A chunked answer without its end: each piece is a chunk and a write of its own."""
    first = head(status, {**headers, "transfer-encoding": "chunked"})
    return [first, *(chunk(part) for part in pieces(body, piece))]


def stream(
    *parts: bytes | float | Gate | Callable[[Request], None], ending: Ending = Ending.KEEP, headers: dict[str, str] | None = None
) -> list[Step]:
    """An SSE answer, each `bytes` a chunk; ended properly only where the ending is KEEP."""
    own = {"content-type": "text/event-stream; charset=utf-8", **(headers or {}), "transfer-encoding": "chunked"}
    steps: list[Step] = [head(200, own)]
    steps += [chunk(part) if isinstance(part, bytes) else part for part in parts]
    return [*steps, LAST_CHUNK] if ending is Ending.KEEP else [*steps, ending]


def flood(first: bytes, more: bytes) -> Script:
    """An endless answer, as fast as the socket takes it."""

    def play(_: Request) -> Iterator[Step]:
        yield first
        while True:
            yield more

    return play


def delta(text: str, *, model: str = "origin-model", finish: str | None = None) -> bytes:
    """One chat completion event with a piece of text."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]})


def usage_event(prompt: int, completion: int) -> bytes:
    """The usage event as OpenAI sends it when asked."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "origin-model"}
    return event({**base, "choices": [], "usage": counts})


def event(document: object) -> bytes:
    """One SSE event."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def completion(text: str, *, prompt: int = 11, produced: int = 3, finish: str = "stop") -> bytes:
    """A unary chat completion."""
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "origin-model",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": produced, "total_tokens": prompt + produced},
        }
    ).encode()


GOOD = [delta("fine"), delta("", finish="stop"), DONE]
"""The events of a whole answer."""
SSE = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
"""The headers of a stream, for who writes its bytes by hand."""
