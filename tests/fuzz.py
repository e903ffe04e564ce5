"""Mutated answers and mutated requests through the whole daemon: no crash, no hang, no wrong row, nothing malformed sent on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.e2e.client import Visit, request
from tests.e2e.conftest import at
from tests.e2e.corpus import Case, cases
from tests.origin import LAST_CHUNK, Ending, Step, chunked_body, completion, head, whole
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from tests.origin import Origin

WORKERS = 8
TOKENS = (
    *(b"\r", b"\n", b"\n\n", b"\r\n\r\n", b"data:", b"data: [DONE]\n\n", b"event: error\n", b"error: ", b": \n"),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b'"', b"\\", b"null", b"-1", b"1e999", b"9" * 40, b"[" * 2000),
    *(b"0\r\n\r\n", b"ffffffff\r\n", b"\\ud800", b'"usage":{', b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"HTTP/1.1 200 OK\r\n\r\n", b" HTTP/1.1", b";", b"%00", b"\t"),
)  # fmt: skip


@dataclass
class Findings:
    """What was run, and what must not be."""

    answers: int = 0
    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As a person reads it."""
        return f"{self.answers} answers, {self.requests} requests, {len(self.wrong)} wrong; {dict(sorted(self.statuses.items()))}"


def mutate(data: bytes, other: bytes, chance: Random) -> bytes:
    """Change bytes here and there, take pieces out, put pieces in, some of them of another case."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(out) + 1)
        end = min(len(out), place + int(chance.expovariate(0.05)) + 1)
        kind = chance.randrange(6)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[place:end]
        elif kind == 2:
            out[place:place] = out[place:end]
        elif kind == 3:
            out[place:place] = chance.choice(TOKENS)
        elif kind == 4 and other:
            start = chance.randrange(len(other))
            out[place:end] = other[start : start + (end - place)]
        else:
            out[place:end] = chance.randbytes(end - place)
    return bytes(out)


class Fuzz:
    """A daemon between mutated clients and mutated upstreams. Each worker has an upstream of its own."""

    def __init__(self, folder: Path, origin: Origin, chance: Random) -> None:
        self.findings = Findings()
        self.origin = origin
        self._chance = chance
        self.cases = [case for case in cases() if not case.encoded]
        upstreams = {f"w{n}": at(origin, timeouts={"first_byte": "2s", "between_bytes": "2s"}) for n in range(WORKERS)}
        models = {f"w{n}-*": {"upstream": f"w{n}", "retry": {"attempts": 1}} for n in range(WORKERS)}
        limits = {"header_timeout": "2s", "body_timeout": "2s"}
        self.daemon = Daemon(folder, settings(upstreams=upstreams, models=models | {"fine": "w0"}, limits=limits))
        self.daemon.start()

    async def answers(self, count: int) -> None:
        """Mutated answers of upstreams."""
        await asyncio.gather(*(self._worker(number, count // WORKERS) for number in range(WORKERS)))

    async def requests(self, count: int) -> None:
        """Mutated requests of clients."""
        self.origin.on("fine", whole(completion("hi")))
        self.origin.on("*", whole(completion("hi")))
        await asyncio.gather(*(self._client(count // WORKERS) for _ in range(WORKERS)))

    async def _worker(self, number: int, count: int) -> None:
        for turn in range(count):
            model = f"w{number}-{turn}"
            case = self._chance.choice(self.cases)
            if turn % 4 == 3:  # a good answer now and then, so that the breaker stays closed
                self.origin.on(model, whole(completion("hi")))
                sent: bytes | None = completion("hi")
                ask = {"model": model, "messages": []}
                path = "/v1/chat/completions"
            else:
                sent, script = self.script(case)
                self.origin.on(model, script)
                ask, path = case.request(model), case.endpoint
                if case.streamed:
                    ask["stream_options"] = {"include_usage": True}  # so that nothing is taken out
            await self._one(path, ask, sent, case)
            self.origin.forget(model)
            self.findings.answers += 1

    def script(self, case: Case) -> tuple[bytes | None, list[Step]]:
        """Return the body that was meant (None where the framing itself is mutated), and the script."""
        chance = self._chance
        body = mutate(case.body, chance.choice(self.cases).body, chance)
        headers = {name: value for name, value in case.headers.items() if name not in ("content-length", "transfer-encoding")}
        steps: list[Step] = [*chunked_body(body, chance.choice((1 + len(body) // 3, 7, 4096, 65536)), headers, case.status), LAST_CHUNK]
        if chance.random() < 0.2:
            raw = b"".join(step for step in steps if isinstance(step, bytes))
            return None, [mutate(raw, head(200, headers), chance), chance.choice((Ending.CLOSE, Ending.RESET, Ending.KEEP, Ending.CLOSE))]
        if chance.random() < 0.2:
            return body, [*steps[: chance.randrange(1, len(steps))], chance.choice((Ending.CLOSE, Ending.RESET))]
        return body, steps

    async def _one(self, path: str, ask: dict[str, object], sent: bytes | None, case: Case) -> None:
        model = str(ask["model"])
        visit = await Visit.open(self.daemon.url)
        try:
            await visit.post(path, ask)
            answer = await visit.rest()
        except Exception as error:
            self._wrong(model, case, f"no answer: {error!r}")
            return
        finally:
            await visit.leave()
        self.findings.statuses[str(answer.status)] = self.findings.statuses.get(str(answer.status), 0) + 1
        row = await self.row(model, case)
        body = answer.body
        if answer.status == 500 and b'"internal"' in body:
            self._wrong(model, case, "internal")
        if row["state"] == "done" and not (answer.whole and answer.status == 200):
            self._wrong(model, case, f"done, but the client has {answer}")
        if any(isinstance(value, int) and value < 0 for name, value in row.items() if name.endswith("tokens")):
            self._wrong(model, case, f"negative: {row}")
        if sent is None or answer.status != 200:
            return
        same = next((n for n, (a, b) in enumerate(zip(body, sent, strict=False)) if a != b), min(len(body), len(sent)))
        rest = body[same:]
        if answer.whole and row["state"] == "done" and rest:
            self._wrong(model, case, f"bytes differ at {same}: {rest[:80]!r}")
        elif rest and b'{"error"' not in body[max(0, same - 300) :]:  # which may begin as an event does
            self._wrong(model, case, f"neither the upstream's bytes nor an error at {same}: {rest[:80]!r}")

    async def row(self, model: str, case: Case) -> dict:
        """What has become of the one request for a model."""
        *before, row = await asyncio.to_thread(self.daemon.settled, model)
        if any(attempt["error"] != "upstream_stale" for attempt in before):  # which is sent once more, and the only one that is
            self._wrong(model, case, f"more than one attempt: {before}")
        return row

    async def _client(self, count: int) -> None:
        chance = self._chance
        good = json.dumps({"model": "fine", "messages": [{"role": "user", "content": "hi"}], "stream": False}).encode()
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(good), good)
        seeds = (
            request("POST", "/v1/chat/completions", good),
            request("POST", "/v1/chat/completions", framed, {"content-length": "", "transfer-encoding": "chunked"}),
            request("GET", "/v1/models/fine"),
            request("POST", "/v1/embeddings", b'{"model":"fine","input":["a","b"]}', {"expect": "100-continue", "idempotency-key": "k"}),
        )
        for _ in range(count):
            data = mutate(chance.choice(seeds), chance.choice(seeds), chance)
            with contextlib.suppress(ConnectionError, EOFError, TimeoutError):
                visit = await Visit.open(self.daemon.url)
                try:
                    await visit.say(data)
                    async with asyncio.timeout(0.05):  # what is not whole waits for its deadline: no need to watch that
                        answer = await visit.head()
                    if answer.status == 500 or answer.status not in range(200, 600):
                        self.findings.wrong.append(f"{answer.status} to {data!r}")
                except (AssertionError, ValueError) as error:
                    self.findings.wrong.append(f"{error!r} to {data!r}")
                finally:
                    await visit.leave()
            self.findings.requests += 1

    def _wrong(self, model: str, case: Case, what: str) -> None:
        self.findings.wrong.append(f"{model} ({case.name}): {what}")
