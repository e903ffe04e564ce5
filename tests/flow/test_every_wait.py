"""An exchange is stopped at each of its waits in turn: in the middle, or when what it waits for has just come. Nothing is left behind.

A cancellation that comes in the moment between an event and its hearing is rare, and a ledger meets it every day.
"""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from proxyd.clock import Clock
from proxyd.config.load import examine_file
from proxyd.config.schema import OnFailure
from proxyd.daemon.run import Daemon
from proxyd.flow import handler, settle
from proxyd.flow.broadcast import Broadcast
from proxyd.store.usage import report
from proxyd.web import rpc, usage
from proxyd.web.downstream import Downstream
from proxyd.wire._pb.chat_pb2 import DeleteChatCompletionRequest
from proxyd.wire.connect import envelope
from proxyd.wire.proto import name_text
from tests.e2e.client import Visit, ask, becomes, chat, request, send
from tests.e2e.test_protobuf import asked
from tests.flow.stops import MOST, House, Stop
from tests.origin import DONE, completion, delta, stream, whole
from tests.process import KEY, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.origin import Origin

PATH = "/v1/chat/completions"
CALLS = "/proxyd.v1.ChatService/"


def _key(at: int) -> str:
    """Of a caller who has not been here before: what is known of him is waited for."""
    return f"{KEY}-{at}"


def _config(origin: Origin) -> dict[str, object]:
    route = {"upstream": "origin", "limits": {"concurrency": 1}, "queue": {"max": 2, "wait": "10s"}}
    drained = {**route, "upstream": "anew", "on_disconnect": "drain"}
    upstream = {"kind": "openai", "base_url": origin.url, "max_connections": 1}
    keys = [{"name": f"tester {at}", "key": _key(at), "budget": {"tokens": 10_000_000, "per": "month"}} for at in range(MOST)]
    return settings(
        upstreams={"origin": upstream, "anew": {**upstream, "reuse": "never"}}, models={"m": route, "d": drained}, auth={"keys": keys}
    )


@pytest.fixture
async def house(tmp_path: Path, origin: Origin) -> AsyncIterator[House]:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(_config(origin)))
    daemon = Daemon(examine_file(file, {}).config, tmp_path, {}, Clock())
    await daemon.start(None)
    yield House(daemon, tmp_path / "proxyd.db")
    daemon.stop()
    await daemon.serve()


STREAM = {**chat("m"), "stream": True}
KINDS = {
    "unary": (chat("m"), {}),
    "stream": (STREAM, {}),
    "keyed": (chat("m"), {"idempotency-key": "key"}),
    "keyed stream": (STREAM, {"idempotency-key": "key"}),
    "resumable": (STREAM, {"prefer": "resumable"}),
    "turn": ({"model": "m", "message": "Say something."}, {}),
    "retried": (chat("m"), {}),
    "queued": (chat("m"), {}),
    "repeated": (STREAM, {"idempotency-key": "key"}),
    "joined": (STREAM, {"idempotency-key": "key"}),
    "called": (asked("m"), {"content-type": "application/proto", "connect-timeout-ms": "60000"}),
    "called stream": (envelope(asked("m")), {"content-type": "application/connect+proto", "connect-timeout-ms": "60000"}),
    "drained": (chat("d"), {}),
    "drained stream": ({**STREAM, "model": "d"}, {}),
    "drained turn": ({"model": "d", "message": "Say something.", "stream": True}, {}),
    "framed": (STREAM, {"accept": "application/protobuf"}),
    "framed and keyed": (STREAM, {"accept": "application/protobuf", "idempotency-key": "key"}),
}
CASES = [(kind, "handle") for kind in KINDS] + [(kind, "serve") for kind in ("keyed", "keyed stream", "resumable", "framed and keyed")]
"""The latter are served by a task of their own, which is stopped apart from who listens."""


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
async def test_nothing_is_left_behind(house, origin, stops, case, late):
    kind, verb = case
    document, headers = KINDS[kind]
    answers = {True: stream(delta("fi"), 0.001, delta("ne", finish="stop"), DONE), False: whole(completion("fine"))}
    pause, failures = [0.03] if kind in ("queued", "joined") else [], iter([])
    path = {"called": f"{CALLS}CreateChatCompletion", "called stream": f"{CALLS}StreamChatCompletion"}.get(kind, PATH)

    def play(seen):
        return next(failures, [*pause, *answers[bool(seen.json().get("stream"))]])

    origin.on("*", play)
    url, ended = house.daemon.url, 0
    for at in range(1, MOST):
        own = {"authorization": f"Bearer {_key(at)}", **headers}
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        first = None
        if "turn" in kind.split():
            begun = (await ask(url, "/v1/conversations", {}, **own)).json()["conversation_id"]
            body = json.dumps({**document, "conversation_id": begun}).encode()
        elif kind == "retried":
            failures = iter([whole(b'{"error": {"message": "down"}}', status=500)])
        elif kind == "repeated":
            assert (await send(url, request("POST", path, body, own))).status == 200
            ended += 1
        elif pause:
            first = asyncio.create_task(send(url, request("POST", path, body, own)))
            await becomes(house.occupied)
            ended += 1
        stop = Stop(at, late)
        stops(handler, verb, stop)
        visit = await Visit.open(url)
        await visit.say(request("POST", path, body, own))
        ended += 1
        await house.rest(ended)
        await visit.leave()
        assert first is None or (await first).status == 200
        assert house.left() == {}, f"stopped at wait {at}"
        again = await send(url, request("POST", path, body, own))
        ended += 1
        assert (again.status, again.whole) == (200, True), f"stopped at wait {at}: {again.body!r}"
        await house.rest(ended)
        if "turn" in kind.split():
            kept = (await ask(url, f"/v1/conversations/{begun}", method="GET", authorization=own["authorization"])).json()
            assert {message["content"] for message in kept["messages"]} == {"Say something.", "fine"}, f"stopped at wait {at}"
        if stop.waits < at:
            break
    assert stop.waits < at < MOST


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_stream_goes_on_without_one_who_has_come_back_to_it(house, origin, stops, late):
    origin.on("*", stream(delta("fi"), 0.03, delta("ne", finish="stop"), DONE))
    for at in range(1, MOST):
        own = {"authorization": f"Bearer {_key(at)}", "idempotency-key": "key"}
        first = await Visit.open(house.daemon.url)
        await first.say(request("POST", PATH, json.dumps(STREAM).encode(), own))
        await first.head()
        stop = Stop(at, late)
        stops(Broadcast, "listen", stop)
        second = await Visit.open(house.daemon.url)
        await second.say(request("GET", "/v1/streams/key?received=1", headers={"authorization": own["authorization"]}))
        await becomes(lambda stop=stop: stop.waits)
        assert (await first.rest()).whole
        await house.rest(at)
        assert house.left() == {}
        listened = [ended.broadcast._listeners for ended in house.runtime.running._ended.values()]
        assert len(listened) == at
        await becomes(lambda listened=listened: not any(listened))
        await first.leave()
        await second.leave()
        if stop.waits < at:
            break
    assert stop.waits < at < MOST


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_conversation_that_a_client_did_not_hear_of_is_begun_once(house, stops, late):
    for at in range(1, MOST):
        own = {"authorization": f"Bearer {_key(at)}", "idempotency_key": "key"}
        stop = Stop(at, late)
        stops(house.runtime.once, "answer", stop)
        visit = await (await Visit.open(house.daemon.url)).post("/v1/conversations", {}, **own)
        await becomes(lambda stop=stop: not house.runtime.once._under_way and stop.waits)
        await visit.leave()
        again = await ask(house.daemon.url, "/v1/conversations", {}, **own)
        listed = (await ask(house.daemon.url, "/v1/conversations", method="GET", authorization=own["authorization"])).json()["data"]
        assert [one["conversation_id"] for one in listed] == [again.json()["conversation_id"]]
        if stop.waits < at:
            break
    assert stop.waits < at < MOST


async def test_a_conversation_that_the_disk_refused_does_not_stand_under_its_key(house, monkeypatch):
    """Where the claim itself may wait in memory until the disk is well again."""
    database, own = house.daemon._database, {"idempotency_key": "key", "authorization": f"Bearer {_key(1)}"}
    database.configure(database.durability, OnFailure.SERVE)

    commit = database._commit

    async def full(batch):
        if len(batch.work) > 1:  # what stands under the key can be read before
            raise OSError(errno.ENOSPC, "No space left on device")
        await commit(batch)

    with monkeypatch.context() as broken:
        broken.setattr(database, "_commit", full)
        assert (await ask(house.daemon.url, "/v1/conversations", {}, **own)).status == 503
    await becomes(lambda: database.healthy and not database.backlog)
    again = await ask(house.daemon.url, "/v1/conversations", {}, **own)
    listed = (await ask(house.daemon.url, "/v1/conversations", method="GET", authorization=own["authorization"])).json()["data"]
    assert [one["conversation_id"] for one in listed] == [again.json()["conversation_id"]]


async def test_a_time_limit_that_is_over_with_the_answer_adds_nothing_to_it(house, origin, monkeypatch):
    """Behind its end the next answer begins, on the same connection."""
    origin.on("*", stream(delta("fi"), delta("ne", finish="stop"), DONE))
    limits = []

    def timeout(seconds):
        limits.append(asyncio.timeout(seconds))
        return limits[-1]

    monkeypatch.setattr(rpc, "asyncio", SimpleNamespace(timeout=timeout))
    finish = Downstream.finish

    def finish_late(down, data):
        finish(down, data)
        limits[-1].reschedule(0)  # before the listener hears of its end

    monkeypatch.setattr(Downstream, "finish", finish_late)
    headers = {"content-type": "application/connect+proto", "connect-timeout-ms": "60000", "idempotency-key": "k"}
    headers["authorization"] = f"Bearer {_key(1)}"
    visit = await Visit.open(house.daemon.url)
    await visit.say(request("POST", f"{CALLS}StreamChatCompletion", envelope(asked("m")), headers))
    assert (await visit.rest()).whole
    assert limits[-1].expired()
    await visit.say(request("GET", "/v1/models", headers={"authorization": headers["authorization"]}))
    visit.answer = None
    answer = await visit.rest()
    await visit.leave()
    assert (answer.status, answer.whole) == (200, True)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_who_listens_hears_what_was_wrong_though_its_exchange_was_stopped_then(house, origin, stops, late):
    """As at the end of a shutdown: the failure is being written, and what runs on without a client is cancelled."""
    origin.on("*", whole(b'{"error": {"message": "no"}}', status=400))
    for at in range(1, MOST):
        stop = Stop(at, late)
        stops(handler, "serve", stop)
        headers = {"authorization": f"Bearer {_key(at)}", "idempotency-key": "k"}
        answer = await send(house.daemon.url, request("POST", PATH, json.dumps(STREAM).encode(), headers))
        assert answer.status >= 400
        if stop.waits < at:
            break
    assert stop.waits < at < MOST


async def test_reports_whose_askers_have_left_still_count_as_running(house, monkeypatch):
    """Their threads cannot be stopped, and there are few."""
    running, go_on = [], threading.Event()

    def slow(*given):
        running.append(given)
        go_on.wait(10)
        return report(*given)

    monkeypatch.setattr(usage, "report", slow)
    own = {"authorization": f"Bearer {_key(1)}"}
    try:
        for number in range(1, 5):
            visit = await Visit.open(house.daemon.url)
            await visit.say(request("GET", "/v1/usage", headers=own))
            await becomes(lambda: house.daemon._ports[0].listener.busy)
            await becomes(lambda number=number: len(running) >= min(number, 2))
            await visit.leave()
            await becomes(lambda: not house.daemon._ports[0].listener.clients)
        assert len(running) == 2
    finally:
        go_on.set()
    assert (await ask(house.daemon.url, "/v1/usage", method="GET", **own)).status == 200


@pytest.mark.parametrize("trouble", [RuntimeError("a bug"), asyncio.CancelledError()], ids=["failed", "given up"])
async def test_an_answer_whose_tokens_could_not_be_counted_is_settled_and_kept(house, origin, monkeypatch, trouble):
    """Its row does not stay open, nor its key taken."""
    origin.on("*", stream(delta("fi"), delta("ne", finish="stop"), DONE))

    async def broken(*_given):
        raise trouble

    monkeypatch.setattr(settle, "_count", broken)
    own = {"authorization": f"Bearer {_key(1)}", "idempotency-key": "k"}
    first = await send(house.daemon.url, request("POST", PATH, json.dumps(STREAM).encode(), own))
    await house.rest(1)
    assert house.left() == {}
    again = await send(house.daemon.url, request("POST", PATH, json.dumps(STREAM).encode(), own))
    assert (first.status, again.status, again.whole, len(origin.requests)) == (200, 200, True, 1)


async def test_what_is_forgotten_while_its_end_is_written_is_not_kept(house, origin, monkeypatch):
    origin.on("*", stream(delta("fi"), delta("ne", finish="stop"), DONE))
    reached, go_on, count = asyncio.Event(), asyncio.Event(), settle._count

    async def counted(*given):
        reached.set()
        await go_on.wait()
        await count(*given)

    monkeypatch.setattr(settle, "_count", counted)
    own, url = {"authorization": f"Bearer {_key(1)}"}, house.daemon.url
    visit = await Visit.open(url)
    await visit.say(request("POST", PATH, asked("m", stream=True, handle=b"to-forget"), {**own, "content-type": "application/protobuf"}))
    await reached.wait()
    order = DeleteChatCompletionRequest(handle=b"to-forget").SerializeToString()
    kind = {"content-type": "application/proto"}
    deleting = asyncio.create_task(send(url, request("POST", f"{CALLS}DeleteChatCompletion", order, {**own, **kind})))
    await becomes(lambda: len(house.daemon._ports[0].listener.clients) == 2 and house.daemon._ports[0].listener.busy)
    await asyncio.sleep(0.05)  # it would have gone by now
    go_on.set()
    assert (await deleting).status == 200
    assert (await visit.rest()).whole
    await visit.leave()
    name = name_text(b"to-forget")
    assert (await ask(url, f"/v1/streams/{name}", method="GET", **own)).status == 404
    assert not house.runtime.running._ended
