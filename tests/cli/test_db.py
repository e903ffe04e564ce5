"""`proxyd db`, as it is typed, beside a daemon that serves and without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3

import pytest

from bench.children import free_port
from proxyd.cli import main
from tests.e2e.client import ask, chat
from tests.process import Daemon, damage, settings
from tests.store.rows import query

ECHO = {"upstreams": {"echo": {"kind": "echo"}}, "models": {"m": "echo"}}


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A daemon whose operator's port is in the configuration, and a shell beside it without its secrets."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("PROXYD_CONFIG", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    upstreams = {"echo": {"kind": "echo"}, "far": {"kind": "openai", "base_url": "${FAR_URL}", "api_key": "${FAR_KEY}"}}
    config = settings(upstreams=upstreams, models={"m": "echo", "far": "far"}, ops={"listen": f"127.0.0.1:{free_port()}"})
    found = Daemon(tmp_path, config, {"FAR_URL": "http://127.0.0.1:9", "FAR_KEY": "k" * 20})
    monkeypatch.chdir(tmp_path)
    found.start()
    yield found
    if found.child.process.poll() is None:
        found.stop()


def say(daemon, times=1):
    for _ in range(times):
        question = chat("m", messages=[{"role": "user", "content": "x"}])
        assert asyncio.run(ask(daemon.url, "/v1/chat/completions", question)).status == 200


def change(path, sql):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql)


def told(capsys, *argv, code=0):
    capsys.readouterr()
    assert main(["db", *argv, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_whole_care_of_a_database_while_the_daemon_serves(daemon, capsys, tmp_path):
    say(daemon, 3)
    assert told(capsys, "check")["rows"]["usage_events"] == 3
    copy = told(capsys, "backup", str(tmp_path))["file"]
    assert query(copy, "SELECT count(*), min(state) FROM usage_events") == [(3, "done")]
    assert told(capsys, "prune")["usage"] == 0, "all rows are kept by default"
    assert told(capsys, "prune", "--older-than", "1970-01-02")["usage"] == 0
    assert main(["db", "prune", "--older-than", "1d"]) == 0
    assert capsys.readouterr().out.startswith("0 usage rows deleted; ")
    assert main(["db", "prune", "--older-than", "2999-01-01"]) == 2
    assert "would delete every row" in capsys.readouterr().err
    for wrong in (2**62, -1, True, "x", 1.5):
        answer = asyncio.run(ask(daemon.ops, "/db/prune", {"before_us": wrong}))
        assert (answer.status, answer.error()["param"]) == (400, "before_us")
    for wrong in ([], b"{", {"database": "/etc/passwd"}):
        assert asyncio.run(ask(daemon.ops, "/db/vacuum", wrong)).status in {400, 409}
    assert told(capsys, "check")["rows"]["usage_events"] == 3
    assert set(told(capsys, "vacuum")) == {"before", "after"}
    say(daemon)
    assert told(capsys, "check")["rows"]["usage_events"] == 4
    assert main(["models", "--format", "json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["closed", "closed"]


def test_old_rows_are_deleted_by_the_daemon_and_without_one(daemon, capsys):
    say(daemon, 2)
    change(daemon.database, "UPDATE usage_events SET created_at = 1 WHERE id = (SELECT min(id) FROM usage_events)")
    assert told(capsys, "prune", "--older-than", "1d")["usage"] == 1
    daemon.stop()
    change(daemon.database, "UPDATE usage_events SET created_at = 1")
    assert told(capsys, "prune", "--older-than", "1d")["usage"] == 1
    assert told(capsys, "vacuum")["after"] > 0
    assert told(capsys, "check")["rows"]["usage_events"] == 0


def test_old_conversations_go_with_and_without_a_daemon(daemon, capsys):
    config = json.loads(daemon.file.read_text())
    daemon.stop()
    daemon.file.write_text(json.dumps({**config, "storage": {**config.get("storage", {}), "retain": {"conversations": "1h"}}}))
    daemon.start()
    for _ in range(2):
        assert asyncio.run(ask(daemon.url, "/v1/conversations", {})).status == 200
    change(daemon.database, "UPDATE conversations SET updated_at = 1 WHERE id = (SELECT min(id) FROM conversations)")
    assert told(capsys, "prune")["conversations"] == 1
    daemon.stop()
    change(daemon.database, "UPDATE conversations SET updated_at = 1")
    assert main(["db", "prune"]) == 0
    assert "1 conversations deleted" in capsys.readouterr().out
    assert told(capsys, "check")["rows"]["conversations"] == 0


def test_a_daemon_is_asked_where_its_database_is_and_refuses_to_touch_another(daemon, capsys, tmp_path):
    say(daemon)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(daemon.file.read_text())
    assert told(capsys, "-c", str(other / "config.yaml"), "check")["file"] == str(daemon.database.resolve())
    daemon.file.write_text(
        json.dumps(settings(**ECHO, ops={"listen": daemon.ops.removeprefix("http://")}, storage={"url": "sqlite:///b.db"}))
    )
    second = Daemon(other, settings(**ECHO, storage={"url": f"sqlite:///{tmp_path}/b.db"})).start()
    assert main(["db", "vacuum"]) == 1
    assert f"writes {daemon.database.resolve()}, not {tmp_path.resolve()}/b.db" in capsys.readouterr().err
    second.stop()


def test_a_damaged_database_is_told_with_what_to_do_and_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps(settings(**ECHO)))
    daemon = Daemon(tmp_path, settings(**ECHO)).start()
    daemon.stop()
    change(daemon.database, "DROP INDEX usage_events_caller")
    assert told(capsys, "check", code=1)["problems"] == ["usage_events_caller is missing"]
    assert main(["db", "check"]) == 1
    assert "restore a backup" in capsys.readouterr().out
    damage(daemon.database)
    assert main(["db", "check"]) == 1
    assert main(["db", "backup", "copy.db"]) == 1
    assert main(["db", "vacuum"]) == 1
    assert capsys.readouterr().err.count("not a SQLite database") == 3
    assert daemon.database.read_bytes() == b"notes" * 1000


@pytest.mark.parametrize("argv", [[], ["burn"], ["backup"], ["check", "x"]])
def test_wrong_usage_is_exit_code_2(argv, capsys):
    assert main(["db", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_is_no_age_for_rows_to_delete(daemon, capsys):
    """The daemon had followed `storage.retain` then, and the command had said that every row was kept."""
    assert main(["db", "prune", "--older-than", "all"]) == 2
    assert capsys.readouterr() == ("", "proxyd: --older-than all: write 400d, 52w, or a day as 2026-11-01\n")


def test_a_folder_in_the_databases_place_is_told_as_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({**ECHO, "ops": {"listen": "off"}}))
    (tmp_path / "proxyd.db").mkdir()
    assert main(["db", "check"]) == 1
    assert main(["usage"]) == 1
    assert capsys.readouterr().err == f"proxyd: {tmp_path}/proxyd.db is a folder: storage.url must name a file\n" * 2
    assert main(["doctor", "--no-network"]) == 1
    told = capsys.readouterr().out
    assert "is a folder" in told
    assert "chmod" not in told
    assert "restore" not in told


def test_without_a_database_it_is_said_where_it_would_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps(settings(**ECHO, ops={"listen": None})).replace("null", '"off"'))
    for argv in (["check"], ["backup", "x.db"], ["prune"], ["vacuum"]):
        assert main(["db", *argv]) == 1
        assert f"no database at {tmp_path}/proxyd.db" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
