"""Editing YAML is safe: a good file takes effect and drops nothing, a bad one changes nothing and says so everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import os
import re
import signal
import weakref
from pathlib import Path

import pytest

from proxyd.clock import Clock
from proxyd.config.load import examine_file
from proxyd.daemon.run import Daemon as Inside
from proxyd.daemon.watch import look
from tests.daemon.scrape import queued, series
from tests.e2e.client import ask, becomes, chat
from tests.flow.stops import MOST, Stop
from tests.origin import DONE, Gate, completion, delta, stream, whole
from tests.process import Child, settings

PATH = "/v1/chat/completions"


def site(origin, *, watch=False, **more) -> dict:
    return settings(upstreams={"origin": {"kind": "openai", "base_url": origin.url}}, models={"m": "origin"}, watch=watch, **more)


def changed(config: dict, **more: object) -> dict:
    return copy.deepcopy(config) | more


async def reload(daemon) -> dict:
    answer = await ask(daemon.ops, "/reload", method="POST")
    document = answer.json()
    assert answer.status == (200 if document["ok"] else 422)
    return document


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def models(daemon) -> list[str]:
    return [model["id"] for model in (await ask(daemon.url, "/v1/models", method="GET")).json()["data"]]


# What changes


async def test_a_good_file_takes_effect_and_says_what_waits(start, origin):
    config = site(origin)
    daemon = start(config)
    daemon.write(changed(config, models={"n": "origin"}, listen="127.0.0.1:1"))
    assert await reload(daemon) == {
        "ok": True,
        "live": [{"path": "models.m", "what": "removed"}, {"path": "models.n", "what": "added"}],
        "waiting": [{"path": "listen", "what": "changed"}],
        "warnings": [],
    }
    assert await models(daemon) == ["n"]
    assert [change["path"] for change in (await reload(daemon))["waiting"]] == ["listen"]  # until it is restarted
    for url in (daemon.url, daemon.ops):
        told = (await ask(url, "/health", method="GET")).json()["config"]
        assert told["last_reload"]["ok"] is True
        assert told["loaded_at"].endswith("Z")
    await becomes(lambda: "models.n added" in daemon.log)


async def test_a_bad_file_changes_nothing_and_is_seen_everywhere(start, origin):
    config = site(origin)
    daemon = start(config)
    loaded = (await ask(daemon.ops, "/health", method="GET")).json()["config"]
    assert loaded["last_reload"] is None
    daemon.write(changed(config, models={"n": "orign"}, streems={}))
    document = await reload(daemon)
    assert document["ok"] is False
    assert len(document["mistakes"]) == 2
    assert any("streems" in mistake for mistake in document["mistakes"])
    assert document["error"]["code"] == "config_invalid"
    assert await models(daemon) == ["m"]
    told = (await ask(daemon.ops, "/health", method="GET")).json()["config"]
    assert told["loaded_at"] == loaded["loaded_at"]
    assert told["last_reload"]["ok"] is False
    assert told["last_reload"]["message"].startswith("2 mistakes: ")
    public = (await ask(daemon.url, "/health", method="GET")).json()
    assert public["config"]["last_reload"]["ok"] is False
    assert "streems" not in str(public)
    assert str(daemon.folder) not in str(public)
    text = (await ask(daemon.ops, "/metrics", method="GET")).body.decode()
    assert series(text, "proxyd_config_reload_success") == {"": 0}
    assert series(text, "proxyd_config_reloads_total")['result="bad"'] == 1
    await becomes(lambda: '"level":"error","logger":"proxyd.daemon.reload"' in daemon.log)
    assert "streems" in daemon.log
    daemon.write(config)
    assert (await reload(daemon))["ok"]
    text = (await ask(daemon.ops, "/metrics", method="GET")).body.decode()
    assert series(text, "proxyd_config_reload_success") == {"": 1}


async def test_a_file_that_would_not_be_started_with_is_not_taken_either(start, origin):
    """All keys gone, in production."""
    config = site(origin, environment="production", auth={"keys": [{"name": "tester", "key": "tester-key-0123456789abcdef"}]})
    daemon = start(config)
    daemon.write(changed(config, auth={"keys": []}))
    assert "environment production needs a key" in (await reload(daemon))["mistakes"][0]
    assert (await ask(daemon.url, "/v1/models", method="GET")).status == 200


async def test_new_names_are_labels_and_no_counter_is_reset(start, origin):
    origin.on("*", whole(completion("hi")))
    config = site(origin)
    daemon = start(config)
    await ask(daemon.url, PATH, chat("m"))
    daemon.write(changed(config, models={"m": "origin", "n": "second"}, upstreams={**config["upstreams"], "second": {"kind": "echo"}}))
    await reload(daemon)
    await ask(daemon.url, PATH, chat("m"))
    await ask(daemon.url, PATH, chat("n"))
    requests = series((await ask(daemon.ops, "/metrics", method="GET")).body.decode(), "proxyd_requests_total")
    assert requests['endpoint="/v1/chat/completions",model="m",status="200",upstream="origin"'] == 2
    assert requests['endpoint="/v1/chat/completions",model="n",status="200",upstream="second"'] == 1


async def test_a_running_stream_ends_under_the_configuration_that_it_began_with(start, origin, connect):
    gate = Gate()
    origin.on("m", stream(delta("one"), gate, delta(" two", finish="stop"), DONE))
    config = site(origin)
    daemon = start(config)
    visit = await connect(daemon.url)
    await visit.post(PATH, chat("m", stream=True))
    await visit.head()
    await visit.until(b"one")
    daemon.write(changed(config, upstreams={"other": {"kind": "echo"}}, models={"other": "other"}))
    assert (await reload(daemon))["ok"]
    assert (await ask(daemon.url, PATH, chat("m"))).status == 404
    gate.open()
    answer = await visit.rest()
    assert answer.whole
    assert answer.body.endswith(DONE)
    await becomes(lambda: all(connection.ended_by for connection in origin.connections))  # nobody will use it again
    assert [row["state"] for row in daemon.rows("m")] == ["done"]


async def test_the_connections_of_an_upstream_that_did_not_change_are_kept(start, origin):
    origin.on("m", whole(completion("hi")))
    config = site(origin)
    daemon = start(config)
    await ask(daemon.url, PATH, chat("m"))
    daemon.write(changed(config, models={"m": "origin", "n": "origin"}))
    await reload(daemon)
    await ask(daemon.url, PATH, chat("m"))
    assert len(origin.connections) == 1
    config["upstreams"]["origin"]["timeouts"] = {"total": "7s"}
    daemon.write(config)
    await reload(daemon)
    await becomes(lambda: origin.connections[0].ended_by == "peer")
    await ask(daemon.url, PATH, chat("m"))
    assert len(origin.connections) == 2


async def test_limits_and_the_databases_settings_are_live(start, origin):
    origin.on("m", whole(completion("hi")))
    config = site(origin)
    daemon = start(config)
    daemon.write(changed(config, limits={"body": 100}, storage={"url": "sqlite:///proxyd.db", "durability": "relaxed"}))
    assert {change["path"] for change in (await reload(daemon))["live"]} == {"limits.body", "storage.durability"}
    assert (await ask(daemon.url, PATH, chat("m", user="x" * 100))).status == 413


@pytest.mark.parametrize("whose", ["route", "key"])
async def test_who_waits_for_a_place_has_it_when_there_are_more(start, origin, whose):
    def config(places: int) -> dict:
        found = changed(site(origin), models={"m": {"upstream": "origin", "queue": {"max": 9, "wait": "1m"}}})
        limited = found["models"]["m"] if whose == "route" else found["auth"]["keys"][0]
        limited["limits"] = {"concurrency": places}
        return found

    gate = Gate()
    origin.on("m", [gate, *whole(completion("hi"))])
    daemon = start(config(1))
    tasks = [asyncio.create_task(ask(daemon.url, PATH, chat("m"))) for _ in range(4)]
    await queued(daemon, 3)
    daemon.write(config(3))
    assert (await reload(daemon))["ok"]
    await becomes(lambda: len(origin.asked("m")) == 3)
    daemon.write(site(origin))  # no limit at all
    assert (await reload(daemon))["ok"]
    await becomes(lambda: len(origin.asked("m")) == 4)
    gate.open()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}


async def test_a_hundred_reloads_under_load_drop_nothing_and_leak_nothing(start, origin, connect):
    gate = Gate()
    origin.on("slow", stream(delta("one"), gate, delta(" two", finish="stop"), DONE))
    origin.on("m", whole(completion("hi")))
    config = site(origin)
    config["models"]["slow"] = "origin"
    daemon = start(config)
    visits = []
    for _ in range(20):
        visits.append(await (await connect(daemon.url)).post(PATH, chat("slow", stream=True)))
        await visits[-1].head()
    over, statuses = asyncio.Event(), []

    async def client() -> None:
        visit = await connect(daemon.url)
        while not over.is_set():
            await visit.post(PATH, chat("m"))
            answer = await visit.rest()
            statuses.append((answer.status, answer.whole))
            visit.answer = None

    clients = [asyncio.create_task(client()) for _ in range(3)]
    descriptors = []
    for number in range(100):
        config["upstreams"]["origin"]["timeouts"] = {"total": 100 + number}  # its door is replaced each time
        config["models"][f"n{number}"] = "origin"
        config["models"].pop(f"n{number - 1}", None)
        daemon.write(config)
        assert (await reload(daemon))["ok"]
        if number in (20, 99):
            descriptors.append(open_files(daemon.pid))
    over.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {(200, True)}
    assert len(statuses) > 100
    assert abs(descriptors[1] - descriptors[0]) <= 8, descriptors  # a connection or two of clients more or less
    gate.open()
    for visit in visits:
        answer = await visit.rest()
        assert answer.whole
        assert answer.body.endswith(DONE)
    rows = daemon.settled("m", len(statuses))
    assert len(rows) == len(statuses)


async def test_nothing_keeps_a_configuration_that_nobody_uses(tmp_path, origin):
    file = tmp_path / "config.yaml"
    config = site(origin)
    file.write_text(json.dumps(config))
    loaded = examine_file(file, {})
    daemon = Inside(loaded.config, tmp_path, {}, Clock(), loaded.files)
    await daemon.start(None)
    old = weakref.ref(daemon._runtime.snapshot.doors["origin"])
    config["upstreams"]["origin"]["max_connections"] = 3
    file.write_text(json.dumps(config))
    assert daemon._runtime.reload is not None
    assert (await daemon._runtime.reload("test")).ok
    gc.collect()
    assert old() is None
    daemon.stop()
    await daemon.serve()


# Who asks for it


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_file_whose_reload_was_given_up_is_still_to_be_taken(tmp_path, origin, late):
    """Whoever asked for it has left in the middle of it: else the watcher would take it for read."""
    file = tmp_path / "proxyd.yaml"
    file.write_text(json.dumps(site(origin)))
    loaded = examine_file(file, {})
    daemon = Inside(loaded.config, tmp_path, {}, Clock(), loaded.files)
    await daemon.start(None)
    reloader = daemon._reloader
    for at in range(1, MOST):
        file.write_text(json.dumps(site(origin, limits={"streams": 1000 + at})))
        stop = Stop(at, late)
        with contextlib.suppress(asyncio.CancelledError):
            await stop.over(reloader.reload("asked for"))
        taken = daemon._runtime.snapshot.config.limits.streams == 1000 + at
        assert taken == (reloader.seen == look(reloader.files)), f"stopped at wait {at}"
        if stop.waits < at:
            break
    daemon.stop()
    await daemon.serve()
    assert taken


async def test_a_hangup_reloads_and_systemd_hears_of_it(start, origin, manager):
    config = site(origin)
    daemon = start(config, environ={"NOTIFY_SOCKET": str(manager.path)})
    manager.until("READY=1")
    daemon.write(changed(config, models={"n": "origin"}))
    os.kill(daemon.pid, signal.SIGHUP)
    lines = await asyncio.to_thread(manager.until, "RELOADING=1")
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", lines[1])
    lines = await asyncio.to_thread(manager.until, "READY=1")
    assert lines == ["READY=1", "STATUS=reloaded: live: models.m removed, models.n added"]
    assert await models(daemon) == ["n"]
    daemon.write("models: [")
    os.kill(daemon.pid, signal.SIGHUP)
    await asyncio.to_thread(manager.until, "RELOADING=1")
    lines = await asyncio.to_thread(manager.until, "READY=1")
    assert lines[1].startswith("STATUS=a bad configuration file was not taken: 1 mistake: ")


def command(daemon, *arguments: str) -> tuple[int, str]:
    child = Child(["reload", "-c", str(daemon.file), *arguments], daemon.folder)
    code = child.wait()
    child.end()
    return code, child.log


async def test_the_command_prints_what_changed_and_what_waits(start, origin):
    config = site(origin)
    daemon = start(config)
    address = daemon.ops.removeprefix("http://")
    daemon.write(changed(config, models={"n": "origin"}, listen="127.0.0.1:1", ops={"listen": address}))
    code, text = await asyncio.to_thread(command, daemon)
    assert code == 0
    assert text.splitlines() == [
        "live: models.m removed",
        "live: models.n added",
        "waits for a restart: listen changed",
        "waits for a restart: ops.listen changed",
    ]


async def test_the_command_prints_every_mistake_of_a_bad_file_and_fails(start, origin):
    """The daemon is found though the file is bad."""
    config = site(origin)
    daemon = start(config)
    address = daemon.ops.removeprefix("http://")
    daemon.write(changed(config, streems={}, modles={}, ops={"listen": address}))
    code, text = await asyncio.to_thread(command, daemon)
    assert code == 1
    assert text.count("unknown key") == 2, text
    assert "proxyd: not reloaded (2 mistakes); the running configuration stays" in text
    daemon.write("nothing: [")
    code, text = await asyncio.to_thread(command, daemon, "--ops", address, "--format", "json")
    assert code == 1
    assert '"ok": false' in text


def test_the_command_says_when_no_daemon_answers(tmp_path):
    (tmp_path / "c.yaml").write_text(
        json.dumps({"upstreams": {"e": {"kind": "echo"}}, "models": {"m": "e"}, "ops": {"listen": "127.0.0.1:1"}})
    )
    child = Child(["reload", "-c", "c.yaml"], tmp_path)
    assert child.wait() == 1
    assert "no daemon answers on 127.0.0.1:1 (ops.listen)" in child.log
    child.end()


async def test_no_web_page_can_make_it_reload(start, origin):
    daemon = start(site(origin))
    answer = await ask(daemon.ops, "/reload", method="POST", sec_fetch_site="cross-site")
    assert answer.status == 403
    assert (await ask(daemon.url, "/reload", method="POST")).status == 404


# The file changes by itself


def in_place(file: Path, text: str) -> None:
    file.write_text(text)


def atomically(file: Path, text: str) -> None:
    """As vim and most programs do."""
    beside = file.with_name(".config.yaml.new")
    beside.write_text(text)
    beside.rename(file)


def deleted_and_made_anew(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


@pytest.mark.parametrize("write", [in_place, atomically, deleted_and_made_anew])
async def test_a_changed_file_is_taken_however_it_was_written(start, origin, write):
    config = site(origin, watch=True)
    daemon = start(config)
    swap = daemon.folder / ".config.yaml.swp"  # an editor is open
    swap.write_bytes(b"\0" * 4096)
    write(daemon.file, json.dumps(changed(config, models={"n": "origin"})))
    await becomes(lambda: "the file changed): live: models.m removed, models.n added" in daemon.log)
    assert daemon.log.count("was reloaded") == 1
    assert await models(daemon) == ["n"]


async def test_a_turned_symlink_is_a_change(start, origin, tmp_path):
    """As Kubernetes swaps a mounted ConfigMap: config.yaml -> ..data/config.yaml, ..data -> ..2024_05."""
    config = site(origin, watch=True)
    for name, models_ in (("..1", {"m": "origin"}), ("..2", {"n": "origin"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(json.dumps(changed(config, models=models_)))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    daemon = start(json.dumps(changed(config, models={"m": "origin"})))  # written through the link
    assert (tmp_path / "proxyd.db").exists()  # beside the file's name, not where the link leads
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    await becomes(lambda: "models.n added" in daemon.log)


async def test_a_half_written_file_is_not_taken_and_the_whole_one_is(start, origin):
    config = site(origin, watch=True)
    daemon = start(config)
    text = json.dumps(changed(config, models={"n": "origin"}))
    daemon.file.write_text(text[: len(text) // 2])
    await becomes(lambda: "was not reloaded (the file changed)" in daemon.log)
    assert await models(daemon) == ["m"]
    with daemon.file.open("a") as file:
        file.write(text[len(text) // 2 :])
    await becomes(lambda: "models.n added" in daemon.log)


async def test_the_files_that_it_points_at_count_too(start, origin, tmp_path):
    """A rotated secret."""
    (tmp_path / "key").write_text("first-secret-0123456789")
    config = site(origin, watch=True)
    config["upstreams"]["origin"]["api_key"] = "${file:key}"
    daemon = start(config)
    (tmp_path / "key").write_text("second-secret-0123456789")
    await becomes(lambda: "live: upstreams.origin.api_key changed" in daemon.log)
    origin.on("m", whole(completion("hi")))
    await ask(daemon.url, PATH, chat("m"))
    assert origin.asked("m")[0].header("authorization") == "Bearer second-secret-0123456789"
    assert "secret-0123456789" not in daemon.log


async def test_the_file_is_not_looked_at_where_that_is_not_wanted(start, origin):
    config = site(origin)
    daemon = start(config)
    daemon.write(changed(config, models={"n": "origin"}))
    await asyncio.sleep(1.5)  # three looks
    assert await models(daemon) == ["m"]
    assert (await reload(daemon))["ok"]
