"""The process as a service manager sees it: it says how it is, takes over sockets, and leaves without turning anybody away."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

from proxyd.clock import Clock
from proxyd.config.load import load_file
from proxyd.daemon import run
from tests.daemon.scrape import queued, series
from tests.e2e.client import Visit, ask, becomes, chat, happens, send
from tests.e2e.client import request as raw
from tests.origin import DONE, Ending, Gate, completion, delta, head, stream, whole
from tests.process import Child, Daemon, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.origin import Origin

PATH = "/v1/chat/completions"


def service(origin: Origin, **more: object) -> dict[str, object]:
    return settings(upstreams={"origin": {"kind": "openai", "base_url": origin.url}}, models={"*": "origin"}, **more)


def url_of(held: socket.socket) -> str:
    return f"http://127.0.0.1:{held.getsockname()[1]}"


# What the supervisor hears


def test_it_says_ready_feeds_the_watchdog_and_says_when_it_stops(start, origin, manager):
    daemon = start(service(origin), environ={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"})
    assert manager.until("READY=1") == ["READY=1", f"STATUS=listening on {daemon.url}"]
    manager.until("WATCHDOG=1")
    manager.until("WATCHDOG=1")
    daemon.stop()
    assert manager.until("STOPPING=1") == ["STOPPING=1", "STATUS=draining: 0 running"]
    manager.until("EXTEND_TIMEOUT_USEC=60000000")


def test_a_watchdog_that_makes_no_sense_is_refused(tmp_path, origin):
    daemon = Daemon(tmp_path, service(origin), environ={"WATCHDOG_USEC": "soon"})
    child = Child(["serve", "-c", str(daemon.file)], tmp_path, daemon.environ)
    assert child.wait() == 1
    assert "WATCHDOG_USEC is not a number" in child.log
    child.end()


async def test_a_chore_that_fails_is_logged_and_begins_anew(tmp_path, monkeypatch, caplog):
    """It runs for months: one bad moment must not end pruning, checkpoints or probes for good."""
    came = []

    async def probe(_runtime):
        came.append(1)
        raise ValueError("a bug")

    monkeypatch.setattr(run, "probe", probe)
    monkeypatch.setattr(run, "AGAIN_SECONDS", 0.01)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(settings(upstreams={"echo": {"kind": "echo"}}, models={"m": "echo"})))
    daemon = run.Daemon(load_file(file, {}), tmp_path, {}, Clock())
    await daemon.start(None)
    await becomes(lambda: len(came) > 2)
    daemon.stop()
    await daemon.serve()
    assert "probes failed, and begins anew" in caplog.text


# Sockets that somebody else holds


async def test_it_serves_on_the_sockets_that_it_was_handed(start, origin, held):
    origin.on("m", whole(completion("hi")))
    with socket.create_server(("127.0.0.1", 0)) as ops:
        daemon = start(service(origin, listen="127.0.0.1:1"), handed={"clients": held, "ops": ops})
        assert (daemon.url, daemon.ops) == (url_of(held), url_of(ops))
        assert (await ask(daemon.url, PATH, chat("m"))).status == 200
        assert (await ask(daemon.ops, "/ready", method="GET")).status == 200
        daemon.stop()


async def test_a_unix_socket_is_taken_over_and_not_removed(start, origin, tmp_path):
    path = tmp_path / "clients.sock"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen()
        daemon = Daemon(tmp_path, service(origin), handed={"clients": held})
        child = daemon.child = Child(["serve", "-c", str(daemon.file)], tmp_path, None, daemon.handed)
        child.expect(re.compile(f"listening on unix:{path}"))
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(raw("GET", "/health"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        daemon.stop()
        assert path.exists()


def test_a_socket_of_another_name_is_refused(tmp_path, origin, held):
    daemon = Daemon(tmp_path, service(origin))
    child = Child(["serve", "-c", str(daemon.file)], tmp_path, None, {"proxyd.socket": held})
    assert child.wait() == 1
    assert "handed over as 'proxyd.socket': FileDescriptorName= must be clients or ops" in child.log
    child.end()


def test_an_open_socket_without_auth_is_refused_though_the_file_says_loopback(tmp_path, origin):
    """What counts is where it really listens."""
    with socket.create_server(("0.0.0.0", 0)) as world:
        daemon = Daemon(tmp_path, service(origin, environment="development", auth={"keys": []}))
        child = Child(["serve", "-c", str(daemon.file)], tmp_path, None, {"clients": world})
        assert child.wait() == 1
        assert "is reached by other machines" in child.log
        child.end()


async def test_a_restart_under_load_turns_nobody_away(start, origin, held):
    """Every client connects anew for each request: while nobody accepts, it waits in the held socket's queue."""
    origin.on("m", whole(completion("hi")))
    daemon = start(service(origin), handed={"clients": held})
    over = asyncio.Event()
    answers: list[int] = []

    async def client() -> None:
        while not over.is_set():
            answer = await ask(url_of(held), PATH, chat("m"))
            assert answer.whole
            answers.append(answer.status)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    await becomes(lambda: len(answers) > 50)
    for _ in range(2):
        await asyncio.to_thread(daemon.stop)
        begun = len(answers)
        await asyncio.to_thread(daemon.start)
        await becomes(lambda begun=begun: len(answers) > begun + 50)
    over.set()
    await asyncio.gather(*clients)
    assert set(answers) == {200}
    rows = daemon.settled("m", len(answers))
    assert (len(rows), {row["state"] for row in rows}) == (len(answers), {"done"})


# Draining


async def test_a_running_stream_finishes_while_new_work_is_refused(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gate = Gate()
    origin.on("slow", stream(delta("one"), gate, delta(" two", finish="stop"), DONE))
    origin.on("m", whole(completion("hi")))
    daemon = start(service(origin))
    kept = await connect(daemon.url)
    await kept.post(PATH, chat("m"))
    assert (await kept.rest()).status == 200
    early = await connect(daemon.url)
    running = await (await connect(daemon.url)).post(PATH, chat("slow", stream=True))
    await running.head()
    await running.until(b"one")
    os.kill(daemon.pid, signal.SIGTERM)
    await kept.closed_by_peer()  # an idle one is closed
    assert (await ask(daemon.ops, "/ready", method="GET")).status == 503
    assert (await ask(daemon.url, "/ready", method="GET")).json()["reasons"] == ["shutting down"]
    assert (await ask(daemon.url, "/health", method="GET")).status == 200
    for visit in (early, await connect(daemon.url)):
        refused = await (await visit.post(PATH, chat("m"))).rest()
        assert (refused.status, refused.error()["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        await visit.closed_by_peer()
    gate.open()
    answer = await running.rest()
    assert answer.whole
    assert answer.body.endswith(DONE)
    await running.closed_by_peer()
    daemon.stop()
    assert [row["state"] for row in daemon.rows("slow")] == ["done"]


async def test_what_does_not_end_in_time_is_broken_off_and_settled(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gate, silent = Gate(), Gate()
    origin.on("endless", stream(delta("one"), gate))
    origin.on("silent", [silent])
    daemon = start(service(origin, streams={"drain": "100ms"}))
    running = await (await connect(daemon.url)).post(PATH, chat("endless", stream=True))
    await running.head()
    await running.until(b"one")
    waiting = await (await connect(daemon.url)).post(PATH, chat("silent"))
    resumable = await (await connect(daemon.url)).post(PATH, chat("endless", stream=True), idempotency_key="k-1")
    await resumable.head()
    await resumable.until(b"one")
    await resumable.leave()
    await happens(silent.reached)
    daemon.stop()
    answer = await running.rest()
    assert not answer.whole
    assert b'"draining"' in answer.body
    assert DONE not in answer.body
    assert (await waiting.rest()).error()["code"] == "draining"
    rows = [*daemon.rows("endless"), *daemon.rows("silent")]
    assert {(row["state"], row["error"]) for row in rows} == {("failed", "draining")}
    assert len(rows) == 3
    assert all(row["completion_tokens"] >= 1 for row in daemon.rows("endless"))
    gate.open()
    silent.open()


async def test_each_of_those_that_are_broken_off_at_once_is_told_its_own_upstreams_id(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gates = {name: Gate() for name in ("one", "two", "three")}
    for name, gate in gates.items():
        origin.on(name, [head(200, {"content-type": "application/json", "content-length": "9", "x-request-id": name}) + b"{", gate])
    daemon = start(service(origin, streams={"drain": "100ms"}))
    keys = {"one": {}, "two": {"idempotency_key": "a"}, "three": {"idempotency_key": "b"}}
    visits = {name: await (await connect(daemon.url)).post(PATH, chat(name), **key) for name, key in keys.items()}
    for gate in gates.values():
        await happens(gate.reached)
    daemon.stop()
    assert {name: (await visit.rest()).headers["upstream-request-id"] for name, visit in visits.items()} == {name: name for name in gates}
    for gate in gates.values():
        gate.open()


async def test_who_waits_for_a_place_or_is_still_sending_when_it_ends_is_refused(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gate = Gate()
    origin.on("one", stream(delta("one"), gate))
    route = {"upstream": "origin", "limits": {"concurrency": 1}, "queue": {"max": 4, "wait": "1m"}}
    daemon = start(service(origin, streams={"drain": "300ms"}) | {"models": {"*": "origin", "one": route}})
    running = await (await connect(daemon.url)).post(PATH, chat("one", stream=True))
    await running.head()
    await running.until(b"one")
    waiting = [await (await connect(daemon.url)).post(PATH, chat("one"), **headers) for headers in ({}, {"idempotency_key": "k"})]
    sending = await connect(daemon.url)
    await sending.say(raw("POST", PATH, json.dumps(chat("one")).encode(), {})[:-10])
    await queued(daemon, 2)
    daemon.stop()
    for visit in (*waiting, sending):
        answer = await visit.rest()
        assert (answer.status, answer.error()["code"]) == (503, "draining")
    assert len(origin.asked("one")) == 1
    assert [row["error"] for row in daemon.rows("one")] == ["draining"]
    gate.open()


async def test_a_stream_that_outlives_its_client_is_waited_for(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gate = Gate()
    origin.on("slow", stream(delta("one"), gate, delta(" two", finish="stop"), DONE))
    daemon = start(service(origin))
    visit = await (await connect(daemon.url)).post(PATH, chat("slow", stream=True), idempotency_key="k-1")
    await visit.head()
    await visit.until(b"one")
    await visit.leave()
    os.kill(daemon.pid, signal.SIGTERM)
    await becomes(lambda: "draining: 1 running" in daemon.log)
    gate.open()
    assert daemon.child is not None
    await asyncio.to_thread(daemon.child.wait)  # `stop` alone would signal again: that ends it at once
    daemon.stop()
    assert [row["state"] for row in daemon.rows("slow")] == ["done"]
    again = daemon.start()
    answer = await ask(again.url, PATH, chat("slow", stream=True), idempotency_key="k-1")
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.body.endswith(DONE)


async def test_a_second_signal_ends_it_at_once(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gate = Gate()
    origin.on("endless", stream(delta("one"), gate))
    daemon = start(service(origin, streams={"drain": "1h"}))
    running = await (await connect(daemon.url)).post(PATH, chat("endless", stream=True))
    await running.head()
    await running.until(b"one")
    os.kill(daemon.pid, signal.SIGTERM)
    await becomes(lambda: "draining: 1 running" in daemon.log)
    daemon.stop()
    assert not (await running.rest()).whole
    assert [(row["state"], row["error"]) for row in daemon.rows("endless")] == [("failed", "draining")]
    gate.open()


async def test_a_slow_reader_gets_all_of_an_answer_that_is_done(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    """Its last bytes are still in our buffer when the exchange is settled."""
    body = completion("x" * 3_000_000)
    origin.on("big", whole(body))
    daemon = start(service(origin))
    visit = await connect(daemon.url, receive_buffer=4096)
    await visit.post(PATH, chat("big"))
    await asyncio.to_thread(daemon.settled, "big")
    os.kill(daemon.pid, signal.SIGTERM)
    await becomes(lambda: "draining" in daemon.log)
    answer = await visit.rest()
    assert answer.whole
    assert answer.body == body
    daemon.stop()


# Metrics


async def test_metrics_are_served_on_the_ops_port_only_and_tell_what_happened(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    origin.on("m", whole(b"{}", status=500), whole(completion("hi")))
    origin.on("gone", stream(delta("one"), Gate()))
    origin.on("full", whole(b'{"error": "no"}', status=422))
    daemon = start(service(origin))
    assert (await ask(daemon.url, "/metrics", method="GET")).status == 404
    clients = await ask(daemon.ops, "/v1/models", method="GET")
    assert (clients.status, "the operator's port" in clients.error()["message"]) == (404, True)
    assert (await ask(daemon.url, PATH, chat("m"), idempotency_key="k")).status == 200
    assert (await ask(daemon.url, PATH, chat("m"), idempotency_key="k")).status == 200
    assert (await send(daemon.url, raw("POST", PATH, b"{}", {"authorization": ""}))).status == 401
    assert (await ask(daemon.url, PATH, chat("full"))).status == 422
    leaver = await (await connect(daemon.url)).post(PATH, chat("gone", stream=True))
    await leaver.head()
    await leaver.until(b"one")
    await leaver.leave(reset=True)
    await asyncio.to_thread(daemon.settled, "gone")
    answer = await ask(daemon.ops, "/metrics", method="GET")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    label = 'endpoint="/v1/chat/completions",model="*",status="{}",upstream="{}"'
    requests = series(text, "proxyd_requests_total")
    assert requests[label.format(200, "origin")] == 2  # the one that was left, and the one that was retried
    assert requests[label.format(200, "")] == 1
    assert requests[label.format(422, "origin")] == 1  # it was the last that was tried
    assert requests['endpoint="/v1/chat/completions",model="other",status="401",upstream=""'] == 1
    assert series(text, "proxyd_retries_total") == {'model="*",upstream="origin"': 1}
    failed = {f'error="{error}",upstream="origin"': 1 for error in ("upstream_error", "upstream_refused")}
    assert series(text, "proxyd_attempts_failed_total") == failed
    assert series(text, "proxyd_idempotent_replays_total") == {"": 1}
    assert series(text, "proxyd_client_disconnects_total")['phase="stream"'] == 1
    assert series(text, "proxyd_streams_active") == {"": 0}
    assert series(text, "proxyd_ledger_commit_seconds_count")[""] > 0
    assert series(text, "proxyd_upstream_state")['state="closed",upstream="origin"'] == 1
    assert series(text, "proxyd_loop_lag_seconds_count")[""] > 0
    assert 'model="gone' not in text


async def test_metrics_count_what_failed_attempts_have_used_up_as_the_ledger_does(start: Callable[..., Daemon], origin: Origin) -> None:
    usage = b'{"error": {"message": "no"}, "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}'
    origin.on("m", whole(usage, status=503), whole(completion("hi")))
    route = {"upstream": "origin", "price": {"input": 1, "output": 2}}
    daemon = start(settings(upstreams={"origin": {"kind": "openai", "base_url": origin.url}}, models={"m": route}))
    assert (await ask(daemon.url, PATH, chat("m"))).status == 200
    text = (await ask(daemon.ops, "/metrics", method="GET")).body.decode()
    rows = daemon.rows()
    assert [row["prompt_tokens"] for row in rows] == [100, 11]
    tokens = series(text, "proxyd_tokens_total")
    assert tokens['direction="input",model="m",source="upstream"'] == 111
    assert tokens['direction="output",model="m",source="upstream"'] == 13
    cost = series(text, "proxyd_cost_usd_total")['model="m",upstream="origin"']
    assert round(cost * 1e9) == sum(row["cost_nano"] for row in rows) == 137_000
    totals = (await ask(daemon.ops, "/state", method="GET")).json()["totals"]
    assert totals == {"requests": 1, "failed": 0, "prompt_tokens": 111, "completion_tokens": 13}


async def test_a_stream_that_breaks_for_those_who_listen_is_no_client_that_left(start: Callable[..., Daemon], origin: Origin) -> None:
    origin.on("cut", stream(delta("one"), ending=Ending.RESET))
    daemon = start(service(origin))
    for headers in ({}, {"idempotency_key": "k"}, {"prefer": "resumable"}, {"idempotency_key": "p", "accept": "application/protobuf"}):
        answer = await ask(daemon.url, PATH, chat("cut", stream=True), **headers)
        assert (answer.status, answer.whole) == (200, False)
    await asyncio.to_thread(daemon.settled, "cut", 4)
    text = (await ask(daemon.ops, "/metrics", method="GET")).body.decode()
    assert not any(series(text, "proxyd_client_disconnects_total").values())


async def test_the_time_inside_is_measured_without_the_upstreams_and_the_clients(
    start: Callable[..., Daemon], origin: Origin, connect: Callable[..., Awaitable[Visit]]
) -> None:
    gate = Gate()
    origin.on("m", [gate, *whole(completion("hi"))])
    daemon = start(service(origin))
    body = b'{"model": "m", "messages": []}'
    visit = await connect(daemon.url)
    request = raw("POST", PATH, body)
    await visit.say(request[:-5])
    begun = time.monotonic()
    await asyncio.sleep(0.3)  # a slow uplink
    await visit.say(request[-5:])
    await happens(gate.reached)
    await asyncio.sleep(0.3)  # a slow model
    gate.open()
    assert (await visit.rest()).status == 200
    took = time.monotonic() - begun
    text = (await ask(daemon.ops, "/metrics", method="GET")).body.decode()
    assert series(text, "proxyd_overhead_seconds_count") == {"": 1}
    assert 0 < series(text, "proxyd_overhead_seconds_sum")[""] < took - 0.5
