"""Once means once, whatever clients do and whenever the daemon dies: a model against the real daemon and a counting origin.

`PROXYD_MODEL=200x60` runs so many examples of so many steps instead of the few that the suite has time for; the last line tells
how many steps and crashes it were.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import tests.e2e.client as client_tools
from tests.e2e.client import Visit, request
from tests.e2e.conftest import at
from tests.e2e.once import KEYS, MODELS, OTHER, PATH
from tests.origin import DONE, HANG, LAST_CHUNK, Ending, Gate, Origin, chunk, completion, delta, head, usage_event, whole
from tests.process import Daemon
from tests.process import settings as daemon_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

CALLERS = {"tester": None, "other": OTHER}
MARK = re.compile(rb"<(\w+)/(\w+)/(\d+)>")
EXAMPLES, STEPS = map(int, os.environ.get("PROXYD_MODEL", "25x20").split("x"))
PICK = st.integers(0, 5)
QUIET = 0.06
"""Seconds of silence after which a client stops reading for now."""


@dataclass(eq=False)
class Run:
    """One call that has reached the origin."""

    place: tuple[str, str]
    number: int
    connection: object
    gates: list[Gate] = field(default_factory=lambda: [Gate(), Gate()])
    cut: bool = False
    over: bool = False

    @property
    def running(self) -> bool:
        return not self.over and not self.connection.closed.is_set()


@dataclass(eq=False)
class Client:
    """Somebody who waits for an answer."""

    place: tuple[str, str]
    streamed: bool
    visit: Visit | None
    got: bytes = b""
    """What earlier connections brought, whole events only."""
    identity: str | None = None
    """The id of the stream, to resume by."""
    reading: asyncio.Task[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        caller = CALLERS[self.place[0]]
        return {"authorization": caller} if caller else {}

    def body(self) -> bytes:
        """All that has arrived, over whichever connections."""
        return self.got + (self.visit.answer.body if self.visit is not None and self.visit.answer is not None else b"")


T = TypeVar("T")


def chosen(items: Sequence[T], pick: int) -> T | None:
    """One of them, if there is one: what is there depends on time, what is drawn must not."""
    return items[pick % len(items)] if items else None


class World:
    """One daemon and one origin for all examples; each example has keys of its own."""

    def __init__(self, folder: Path) -> None:
        self.origin = Origin()
        self.origin.on("*", self.script)
        config = {"upstreams": {"origin": at(self.origin)}, "models": MODELS, "auth": KEYS}
        self.daemon = Daemon(folder, daemon_settings(**config)).start()
        self.runs: dict[tuple[str, str], list[Run]] = collections.defaultdict(list)
        self.failing: set[tuple[str, str]] = set()
        self.overlaps: list[tuple[Run, Run]] = []
        self.example = self.steps = self.crashes = self.answers = 0

    def script(self, asked):
        """What the origin does: each answer says whose it is and which run, and waits twice for the model."""
        document = asked.json()
        place = tuple(document["user"].split("/"))
        run = Run(place, len(self.runs[place]), asked.connection)
        self.overlaps += [(other, run) for other in self.runs[place] if other.running]
        self.runs[place].append(run)
        if place in self.failing:
            self.failing.discard(place)
            run.over = True
            yield from whole(b'{"error":{"message":"busy"}}', status=503)
            return
        text = f"<{place[0]}/{place[1]}/{run.number}>"
        if document.get("stream"):
            yield head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            yield chunk(delta(text))
        for gate in run.gates:
            yield gate
            if run.cut:
                run.over = True
                yield b"" if document.get("stream") else b"HTTP/1.1 200 "  # after silence it would be called again: a stale connection
                yield Ending.RESET
            elif document.get("stream"):
                yield chunk(delta(text))
        run.over = True
        if document.get("stream"):
            yield chunk(delta("", finish="stop")) + chunk(usage_event(3, 2)) + chunk(DONE) + LAST_CHUNK
        else:
            yield from whole(completion(text))

    def close(self) -> None:
        self.daemon.stop()
        self.origin.close()
        assert self.origin.violations == []


class Once(RuleBasedStateMachine):
    """Clients that start, join, drop, resume, stop, repeat and change the body, while the daemon is killed and restarted."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.example += 1
        self.runner = asyncio.Runner()
        self.clients: list[Client] = []
        self.claimed: dict[tuple[str, str], tuple[bool, str]] = {}
        self.whole: dict[tuple[str, str], bytes] = {}
        self.places: set[tuple[str, str]] = set()

    # ---- what can happen

    @rule(caller=st.sampled_from(sorted(CALLERS)), key=st.sampled_from("ab"), streamed=st.sampled_from([True, True, False]),
          words=st.sampled_from(["x", "x", "x", "y"]), failing=st.sampled_from([False, False, False, True]))  # fmt: skip
    def ask(self, *, caller: str, key: str, streamed: bool, words: str, failing: bool) -> None:
        """Somebody sends a request under a key: for the first time, again, or another one."""
        place = (caller, f"{key}{self.world.example}")
        self.places.add(place)
        before = len(self.world.runs[place])
        if failing:
            self.world.failing.add(place)
        else:
            self.world.failing.discard(place)
        client = Client(place, streamed, None)
        standing = self.claimed.setdefault(place, (streamed, words))
        refused = standing != (streamed, words)
        joins = not streamed and not refused and any(run.running for run in self.world.runs[place])
        answer = self.runner.run(self.send(client, words, joins=joins))
        if refused:
            assert answer is not None, "another request was not refused"
            assert (answer.status, answer.error()["code"]) == (409, "idempotency_key_reused")
            assert len(self.world.runs[place]) == before
            self.runner.run(self.leave(client))
            return
        if not self.world.runs[place]:
            del self.claimed[place]  # the breaker let nothing through: no call, no claim
        assert answer is None or answer.status in (200, 502, 503), (answer, answer.body)  # 502: it has joined one that was just cut
        assert len(self.world.runs[place]) <= before + 1
        if place in self.whole:
            assert answer is not None
            assert len(self.world.runs[place]) == before, "a finished claim was run again"
        self.clients.append(client)

    @rule(pick=PICK)
    def read(self, pick: int) -> None:
        """Somebody reads what has come."""
        if (client := chosen(self.open(), pick)) is not None:
            self.runner.run(self.take(client))

    @rule(pick=PICK, reset=st.booleans())
    def drop(self, *, pick: int, reset: bool) -> None:
        """Somebody's connection is lost."""
        if (client := chosen(self.open(), pick)) is not None:
            self.runner.run(self.leave(client, reset=reset))

    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        """Somebody comes back for the rest."""
        if (client := chosen(self.lost(), pick)) is None:
            return
        answer = self.runner.run(self.come_back(client))
        if answer is not None and answer.status != 200:
            assert answer.status in (404, 410), answer.body
            self.clients.remove(client)
            self.runner.run(self.leave(client))

    @rule(pick=PICK, both=st.booleans())
    def go_on(self, *, pick: int, both: bool) -> None:
        """The origin says more, perhaps all."""
        if (run := chosen(self.waiting(), pick)) is None:
            return
        for gate in run.gates if both else [gate for gate in run.gates if not gate._opened][:1]:
            gate.open()
        if all(gate._opened for gate in run.gates):
            self.until(lambda: not run.running)

    @rule(pick=PICK)
    def cut(self, pick: int) -> None:
        """The origin breaks off."""
        if (run := chosen(self.waiting(), pick)) is None:
            return
        run.cut = True
        for gate in run.gates:
            gate.open()
        self.until(lambda: not run.running)

    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        """Somebody stops a stream."""
        if (client := chosen([client for client in self.clients if client.identity], pick)) is None:
            return
        status = self.runner.run(self.delete(client))
        assert status in (200, 404, 409, 410), status

    @rule(pick=PICK)
    def ask_again(self, pick: int) -> None:
        """Somebody repeats a request."""
        if (place := chosen(sorted(self.claimed), pick)) is None:
            return
        streamed, words = self.claimed[place]
        self.ask(caller=place[0], key=place[1][0], streamed=streamed, words=words, failing=False)

    @rule(luck=st.integers(0, 1))
    def kill(self, luck: int) -> None:
        """The power goes, and comes back."""
        if luck:
            return  # a crash is slow, and ends whatever was interesting
        self.world.daemon.kill()
        self.world.crashes += 1
        self.until(lambda: not any(run.running for run in self.runs()))
        for client in self.open():
            self.runner.run(self.take(client))
            self.runner.run(self.leave(client))
        self.world.daemon.start()

    # ---- what must always be so

    @invariant()
    def one_call_a_claim(self) -> None:
        """A second call may begin only when the first is over (its closing may be seen a moment later)."""
        self.world.steps += 1
        for first, _ in self.world.overlaps:
            self.until(lambda first=first: not first.running)
        self.world.overlaps.clear()

    @invariant()
    def nobody_sees_what_is_not_theirs_or_two_runs_in_one(self) -> None:
        for client in self.clients:
            marks = set(MARK.findall(client.body()))
            assert len(marks) <= 1, f"two runs in one answer: {marks}"
            assert all((mark[0].decode(), mark[1].decode()) == client.place for mark in marks), marks

    def teardown(self) -> None:
        """Let all end, and compare the ledger with what the origin has seen."""
        try:
            for run in self.waiting():
                for gate in run.gates:
                    gate.open()
            for client in self.open():
                self.runner.run(self.take(client, patience=HANG))
            self.until(lambda: not self.unsettled())
            for place in self.places:
                rows = [row for row in self.world.daemon.rows("/".join(place)) if row["caller"] == place[0]]
                assert [row["attempt"] for row in rows] == list(range(1, len(rows) + 1))
                assert len(rows) == len(self.world.runs[place]), "billed attempts are not the origin's calls"
            for client in self.clients:
                self.runner.run(self.leave(client))
        finally:
            self.runner.close()

    # ---- how

    def open(self) -> list[Client]:
        return [client for client in self.clients if client.visit is not None]

    def lost(self) -> list[Client]:
        return [client for client in self.clients if client.visit is None and client.identity and client.streamed]

    def runs(self) -> list[Run]:
        return [run for place in sorted(self.places) for run in self.world.runs[place]]

    def waiting(self) -> list[Run]:
        return [run for run in self.runs() if run.running and not all(gate._opened for gate in run.gates)]

    def unsettled(self) -> list[dict]:
        return [row for place in self.places for row in self.world.daemon.rows("/".join(place)) if row["state"] == "open"]

    @staticmethod
    def until(fact) -> None:
        limit = time.monotonic() + HANG
        while not fact():
            assert time.monotonic() < limit, "it never became so"
            time.sleep(0.002)

    async def send(self, client: Client, words: str, *, joins: bool):
        """Send the request; its answer if that has begun. Who joins a document that is not there yet can only be waited for."""
        document = {"model": "/".join(client.place), "user": "/".join(client.place), "messages": [{"role": "user", "content": words}]}
        headers = {"idempotency-key": client.place[1], **client.headers}
        body = json.dumps({**document, "stream": client.streamed}).encode()
        return await self.talk(client, request("POST", PATH, body, headers), joins=joins)

    async def come_back(self, client: Client):
        received = client.got.count(b"\n\n")
        return await self.talk(client, request("GET", f"/v1/streams/{client.identity}?received={received}", b"", client.headers))

    async def delete(self, client: Client) -> int:
        visit = await Visit.open(self.world.daemon.url)
        await visit.say(request("DELETE", f"/v1/streams/{client.identity}", b"", client.headers))
        answer = await visit.rest()
        await visit.leave()
        return answer.status

    async def talk(self, client: Client, data: bytes, *, joins: bool = False):
        """Say something, and wait until the daemon has taken it in; its answer if that has begun."""
        before = len(self.world.runs[client.place])
        client.visit = visit = await Visit.open(self.world.daemon.url)
        client.reading = asyncio.create_task(self.read_on(client, visit))
        await visit.say(data)
        if joins:
            await asyncio.sleep(QUIET)
        async with asyncio.timeout(HANG):
            while not (joins or visit.answer or client.reading.done() or self.called_for(client, before)):  # noqa: ASYNC110 - others tell
                await asyncio.sleep(0.001)
        await self.take(client)
        return visit.answer

    def called_for(self, client: Client, before: int) -> bool:
        """A document says nothing before its end, but the origin has been asked for it."""
        return not client.streamed and len(self.world.runs[client.place]) > before

    @staticmethod
    async def read_on(client: Client, visit: Visit) -> None:
        """Read as long as something comes; whether it was whole stands in the answer."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            answer = await visit.head()
            if answer.status == 200 and client.streamed:
                client.identity = answer.headers["x-request-id"]
            while await visit.some():
                pass

    async def take(self, client: Client, *, patience: float = QUIET) -> None:
        """Let a client read for a moment, and look at its answer if that is over."""
        visit, reading = client.visit, client.reading
        assert visit is not None
        assert reading is not None
        await asyncio.wait([reading], timeout=patience)
        if not reading.done():
            return
        reading.result()
        if visit.answer is not None and visit.answer.status == 200 and visit.answer.whole:
            body = client.body()
            assert self.whole.setdefault(client.place, body) == body, "two whole answers under one claim"
            assert body.endswith(DONE) is client.streamed
            self.world.answers += 1
        await self.leave(client)

    async def leave(self, client: Client, *, reset: bool = False) -> None:
        if client.visit is not None:
            body = client.body()
            client.got = body[: body.rfind(b"\n\n") + 2] if client.streamed else b""
            visit, client.visit = client.visit, None
            if client.reading is not None:
                client.reading.cancel()
                await asyncio.wait([client.reading])
            await visit.leave(reset=reset)


def test_once_means_once_whatever_happens(monkeypatch) -> None:
    monkeypatch.setattr(client_tools, "HANG", 600.0)  # clients wait while the model does other things
    with tempfile.TemporaryDirectory() as folder:
        Once.world = World(Path(folder))
        try:
            checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
            run_state_machine_as_test(
                Once,
                settings=settings(
                    phases=[Phase.generate],
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=checks,
                    database=None,
                ),
            )
            Once.world.close()
        finally:
            if Once.world.daemon.child is not None:
                Once.world.daemon.child.end()
        world = Once.world
        calls = sum(map(len, world.runs.values()))
        print(f"{world.example} examples, {world.steps} steps, {world.crashes} crashes, {calls} calls, {world.answers} whole answers")
