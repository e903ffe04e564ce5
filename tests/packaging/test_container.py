"""The container's files, as far as they can be tried without an engine: each step is looked at, or done here."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from bench.children import free_port
from proxyd.cli import main
from proxyd.config.load import load_file
from tests.process import ROOT, Daemon, settings

FOLDER = ROOT / "packaging"
ECHO = {"upstreams": {"echo": {"kind": "echo"}}, "models": {"m": "echo"}}


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def of(name: str) -> list[str]:
    return [rest for step, rest in steps() if step == name]


def test_every_file_that_is_copied_is_there_and_let_through():
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    let_through = [line[1:] for line in ignored if line.startswith("!")]
    sources = [name for rest in of("COPY") if "--from" not in rest for name in shlex.split(rest)[:-1]]
    assert {"pyproject.toml", "proxyd"} <= set(sources)
    for name in sources:
        assert (ROOT / name).exists()
        assert any(fnmatch.fnmatch(name, line) for line in let_through), name
    assert ignored[0] == "*", "what is not named stays outside: .env files, databases, the history"


def test_it_runs_as_a_number_that_is_not_root_and_owns_its_folder():
    (user,) = of("USER")
    uid, gid = map(int, user.split(":"))
    assert uid > 999
    assert any(f"-o {uid} -g {gid} -m 0700 /var/lib/proxyd" in run for run in of("RUN"))
    assert of("VOLUME") == ["/var/lib/proxyd"]
    assert "STATE_DIRECTORY=/var/lib/proxyd" in of("ENV")[0]


def test_what_it_runs_are_commands_that_there_are(capsys):
    (entry,), (command,), (health,) = (of(name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    assert json.loads(entry) == ["proxyd"]
    check = json.loads(health[health.index("[") :])
    assert check[0] == "proxyd"
    for words in (json.loads(command), check[1:]):
        assert main([*words, "--help"]) == 0
    assert of("STOPSIGNAL") == ["SIGTERM"]
    assert capsys.readouterr().err == ""


def test_two_stages_of_the_same_small_image():
    first, second = of("FROM")
    assert first.removesuffix(" AS build") == second
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", second)
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert tuple(map(int, re.findall(r"\d+", second)[:2])) >= tuple(map(int, lowest.split(".")))


def test_the_health_check_tells_a_daemon_that_lives_from_one_that_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    daemon = Daemon(tmp_path, settings(**ECHO, ops={"listen": f"127.0.0.1:{free_port()}"})).start()
    assert main(["health"]) == 0
    assert capsys.readouterr().out == "ok\n"
    assert main(["health", "--ready", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ready"
    daemon.stop()
    assert main(["health"]) == 1
    assert "no daemon answers" in capsys.readouterr().err


def test_without_an_operators_port_the_clients_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    (tmp_path / "config.yaml").write_text(json.dumps(settings(**ECHO, listen=f"0.0.0.0:{port}", ops={"listen": "off"})))
    command = [sys.executable, "-m", "proxyd", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={"PYTHONPATH": str(ROOT)}) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("listening on")
        assert main(["health"]) == 0
        child.terminate()
        assert child.wait() == 0


@pytest.fixture
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_the_compose_file_builds_mounts_and_waits_as_the_image_needs(compose):
    service = compose["services"]["proxyd"]
    build = service["build"]
    assert ((FOLDER / build["context"]).resolve(), (FOLDER / build["context"] / build["dockerfile"]).resolve()) == (
        ROOT,
        FOLDER / "Dockerfile",
    )
    mounts = [volume.split(":") for volume in service["volumes"]]
    assert (FOLDER / mounts[0][0]).is_file()
    assert mounts[0][1:] == ["/etc/proxyd/config.yaml", "ro"]
    assert mounts[1] == ["ledger", "/var/lib/proxyd"]
    assert {volume for one in compose["services"].values() for volume in (v.split(":")[0] for v in one["volumes"])} - {
        "./config.yaml"
    } == set(compose["volumes"])
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True


def test_the_mounted_configuration_is_good_and_fits_the_compose_file(compose):
    config = load_file(FOLDER / "config.yaml", {"PROXYD_KEY": "k" * 48})
    service = compose["services"]["proxyd"]
    assert config.listen.rpartition(":")[2] == service["ports"][0].rpartition(":")[2] == of("EXPOSE")[0]
    assert config.upstreams["ollama"].base_url == "http://ollama:11434"
    assert set(service["depends_on"]) == {"ollama"} <= set(compose["services"])
    assert int(service["stop_grace_period"].removesuffix("s")) >= config.streams.drain + 60
    assert set(service["environment"]) == {"PROXYD_KEY"}
    assert main(["check", "-c", str(FOLDER / "config.yaml")]) == 1, "without the key it is refused"
