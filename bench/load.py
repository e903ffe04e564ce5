"""The load: `python -m bench.load JOB` does one job (JSON) against one proxy and prints what it saw (JSON).

A process of its own, so that it and the proxy never share an event loop; raw protocols, to cost little. The proxy's CPU time
is read at the two ends of the same window in which the answers are counted. Bounded: a job that is not done in its limit fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import httptools

from bench import answers, loops, proc
from bench.verify import StreamCheck, UnaryCheck

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk-bench-key-0123456789"
WARM_UP = 0.4
"""Seconds of load before the window opens."""
PROBED = 10
"""One stream in so many has each event's number checked and its latency taken."""
SLACK = 60.0
"""Seconds that a job may take beyond what it should."""

# What the openai SDK sends, for its headers have to be parsed too; but identity, so that nobody is charged for compressing.
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n"
    "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\n"
    "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.54.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
    "X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer {key}\r\n"
    "X-Stainless-Async: async:asyncio\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n"
    "Content-Length: {length}\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What to do: `unary` (until `seconds` or `count` are over), `ttft` (`count` streams, one after the other), `streams`, `hold`."""

    kind: str
    port: int = 0
    pid: int = 0
    """The proxy's first process; 0 for none, and its cost is then 0."""
    connections: int = 1
    seconds: float = 1.0
    count: int = 0
    rate: int = 0
    ramp: float = 0.5
    """Seconds over which the streams begin."""
    mock: int = 0
    """The mock's port, to release held streams."""
    loose: bool = False


@dataclass(slots=True)
class Seen:
    """What was seen. Times in microseconds; `errors` holds the first few, and any makes all of it void."""

    requests: int = 0
    """All that were sent, warm-up included."""
    counted: int = 0
    """Requests or events in the window."""
    per_second: float = 0.0
    cpu_us: float = 0.0
    """The proxy's CPU time for each of `counted`."""
    rss_before: int = 0
    rss: int = 0
    machine_idle: float = 0.0
    """The share of all cores that nobody used in the window."""
    ended_early: int = 0
    """Streams that were over before the window was: with any, the window was no steady state."""
    p50_us: float = 0.0
    p99_us: float = 0.0
    errors: list[str] = field(default_factory=list)
    wrong: int = 0


class Window:
    """The stretch in which things count."""

    def __init__(self, job: Job) -> None:
        self._pids = proc.tree(job.pid) if job.pid else []
        self.open = False
        self.counted = 0
        self.latencies: list[int] = []

    def rss(self) -> int:
        return proc.cost(self._pids).rss

    def start(self) -> None:
        self.counted = 0
        self._cost, self._idle, self._began = proc.cost(self._pids), proc.machine_idle(), time.monotonic()
        self.open = True

    def stop(self, seen: Seen) -> None:
        self.open = False
        elapsed = time.monotonic() - self._began
        cost, idle = proc.cost(self._pids), proc.machine_idle()
        seen.counted = self.counted
        seen.per_second = self.counted / elapsed
        seen.cpu_us = (cost.cpu - self._cost.cpu) * 1e6 / max(1, self.counted)
        seen.rss = cost.rss
        seen.machine_idle = (idle[0] - self._idle[0]) / max(1, idle[1] - self._idle[1])

    def event_written(self, stamp_ns: int) -> None:
        """Take the latency of an event that arrives now."""
        if self.open:
            self.latencies.append(time.monotonic_ns() - stamp_ns)

    def percentiles(self, seen: Seen) -> None:
        ordered = sorted(self.latencies)
        if ordered:
            seen.p50_us = ordered[len(ordered) // 2] / 1e3
            seen.p99_us = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e3


class Client(asyncio.Protocol):
    """One connection: sends the request, checks the answer, says so."""

    def __init__(self, check: UnaryCheck | StreamCheck, window: Window, done: Callable[[Client, str | None], None]) -> None:
        self._check = check
        self._window = window
        self._done = done
        self._busy = False
        self._parser = httptools.HttpResponseParser(self)
        self.sent_ns = 0
        self.first_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        self._check.begin()
        self._busy = True
        self.first_ns = 0
        self.sent_ns = time.monotonic_ns()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.transport.abort()

    def on_body(self, data: bytes) -> None:
        if not self.first_ns:
            self.first_ns = time.monotonic_ns()
        self._window.counted += self._check.feed(data)

    def on_message_complete(self) -> None:
        self._end(self._check.wrong(self._parser.get_status_code()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"cut: {exc}")

    def _end(self, wrong: str | None) -> None:
        if self._busy:
            self._busy = False
            self._done(self, wrong)


class Load:
    """One job at work."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._window = Window(job)
        self._seen = Seen()
        self._stopping = False
        self._left = 0
        self._clients: list[Client] = []
        self._all_done = self._loop.create_future()
        if job.kind == "unary":
            model, self._script = "mock-unary", None
        else:
            rate = answers.HOLD if job.kind == "hold" else job.rate
            self._script = answers.Script(job.count, rate)
            model = self._script.model
        body = answers.request_body(model, stream=self._script is not None)
        self._request = HEAD.format(port=job.port, key=KEY, length=len(body)).encode() + body

    async def run(self) -> Seen:
        """Do the job. Raises TimeoutError past the limit, OSError where nobody listens."""
        act = {"unary": self._unary, "ttft": self._ttft, "streams": self._streams, "hold": self._hold}[self._job.kind]
        limit = SLACK + self._job.ramp + self._job.seconds + self._job.count / (self._job.rate or 100)
        try:
            async with asyncio.timeout(limit):
                await act()
        finally:
            for client in self._clients:
                client.transport.abort()
        self._window.percentiles(self._seen)
        return self._seen

    async def _connect(self, done: Callable[[Client, str | None], None]) -> Client:
        probed = len(self._clients) % PROBED == 0
        latency = self._window.event_written if probed and self._job.kind == "streams" else None

        def make() -> Client:
            loose = self._job.loose
            check = UnaryCheck(loose=loose) if self._script is None else StreamCheck(self._script, latency, loose=loose)
            return Client(check, self._window, done)

        _, client = await self._loop.create_connection(make, "127.0.0.1", self._job.port)
        self._clients.append(client)
        return client

    def _send(self, client: Client) -> None:
        self._seen.requests += 1
        client.send(self._request)

    def _judge(self, wrong: str | None) -> None:
        if wrong is not None:
            self._seen.wrong += 1
            if len(self._seen.errors) < 5:
                self._seen.errors.append(wrong)

    def _one_less(self) -> None:
        self._left -= 1
        if self._left == 0 and not self._all_done.done():
            self._all_done.set_result(None)

    # Closed loop: each connection asks again when it is answered.

    def _answered(self, client: Client, wrong: str | None) -> None:
        self._judge(wrong)
        if self._window.open:
            self._window.counted += 1
            begun = client.sent_ns
            self._window.latencies.append((client.first_ns if self._script else time.monotonic_ns()) - begun)
        full = 0 < self._job.count <= self._seen.requests and self._script is None
        if self._stopping or full or wrong is not None:
            self._one_less()
        else:
            self._send(client)

    async def _unary(self) -> None:
        self._left = self._job.connections
        for _ in range(self._job.connections):
            self._send(await self._connect(self._answered))
        await asyncio.wait([self._all_done], timeout=WARM_UP)
        self._window.start()
        await asyncio.wait([self._all_done], timeout=None if self._job.count else self._job.seconds)
        self._window.stop(self._seen)
        self._stopping = True
        await self._all_done

    async def _ttft(self) -> None:
        """Time to first token: the same connection, one stream after the other."""
        self._left = 1
        self._send(await self._connect(self._answered))
        await asyncio.wait([self._all_done], timeout=WARM_UP)
        self._window.start()
        await asyncio.wait([self._all_done], timeout=self._job.seconds)
        self._window.stop(self._seen)
        self._stopping = True
        await self._all_done

    # Many streams at once, each on its connection.

    def _ended(self, client: Client, wrong: str | None) -> None:
        self._judge(wrong)
        client.transport.close()
        self._one_less()

    async def _begin(self) -> None:
        self._left = self._job.connections
        began = self._loop.time()
        for number in range(self._job.connections):
            self._send(await self._connect(self._ended))
            due = began + self._job.ramp * (number + 1) / self._job.connections
            if due - self._loop.time() > 0.001:
                await asyncio.sleep(due - self._loop.time())

    async def _all_begun(self) -> None:
        while not all(client.first_ns for client in self._clients) and not self._seen.errors:  # noqa: ASYNC110 - bounded by run()
            await asyncio.sleep(0.05)

    async def _streams(self) -> None:
        await self._begin()
        await self._all_begun()
        await asyncio.sleep(WARM_UP)
        self._window.start()
        await asyncio.sleep(self._job.seconds)
        self._window.stop(self._seen)
        self._seen.ended_early = self._job.connections - self._left
        await self._all_done

    async def _hold(self) -> None:
        """Held streams: what one costs in memory while nothing comes."""
        self._seen.rss_before = self._window.rss()
        await self._begin()
        await self._all_begun()
        self._window.start()
        await asyncio.sleep(self._job.seconds)
        self._window.stop(self._seen)
        await asyncio.to_thread(release, self._job.mock)
        await self._all_done


def release(port: int) -> None:
    """Have the mock end the streams that it holds."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", "/release")
        connection.getresponse().read()


async def main(job: Job) -> None:
    """Do the job and print what was seen."""
    print(json.dumps(dataclasses.asdict(await Load(job).run())))


if __name__ == "__main__":
    loops.run(main(Job(**json.loads(sys.argv[1]))))
