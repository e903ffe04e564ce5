"""Commands beside an installed unit find the daemon's data where systemd keeps it, whether the daemon runs or not."""

import json

import pytest

from proxyd.cli import main, unit
from tests.process import ROOT, settings


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Our unit, as an operator installs it, over folders of the test's."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    file, place = tmp_path / "etc" / "config.yaml", tmp_path / "system" / "proxyd.service"
    for folder in (file.parent, place.parent, tmp_path / "lib"):
        folder.mkdir()
    echo = {"upstreams": {"echo": {"kind": "echo"}}, "models": {"m": "echo"}, "ops": {"listen": "off"}}
    file.write_text(json.dumps({**settings(environment="production", **echo), "auth": {"keys": []}}))
    place.write_text((ROOT / "systemd" / "proxyd.service").read_text().replace("/etc/proxyd/config.yaml", str(file)))
    monkeypatch.setattr(unit, "PLACES", (place, tmp_path / "nowhere.service"))
    monkeypatch.setattr(unit, "STATE", tmp_path / "lib")
    return tmp_path


def run(machine, capsys, *words: str) -> tuple[int, str]:
    code = main([words[0], "-c", str(machine / "etc" / "config.yaml"), *words[1:]])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_first_key_is_made_before_the_first_start_where_the_daemon_will_look(machine, capsys):
    assert "production needs a key" in run(machine, capsys, "check")[1]
    assert run(machine, capsys, "keys", "create", "laptop")[0] == 0
    state = machine / "lib" / "proxyd"
    assert (state / "proxyd.db").is_file()
    assert state.stat().st_mode & 0o777 == 0o700
    assert not (machine / "etc" / "proxyd.db").exists()
    assert run(machine, capsys, "check")[0] == 0
    assert run(machine, capsys, "usage") == (0, run(machine, capsys, "usage")[1])
    backups = machine / "backups"
    backups.mkdir()
    assert run(machine, capsys, "db", "backup", f"{backups}/")[0] == 0
    assert "1 api_keys" in run(machine, capsys, "db", "check")[1]


def test_what_the_shell_says_counts_more_and_a_unit_of_another_file_not_at_all(machine, monkeypatch):
    file = machine / "etc" / "config.yaml"
    assert unit.state_directory(file) == str(machine / "lib" / "proxyd")
    assert unit.state_directory(machine / "other.yaml") is None
    drop_in = machine / "system" / "proxyd.service.d" / "more.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nStateDirectory=gateway:alias more\n")
    assert unit.state_directory(file) == str(machine / "lib" / "gateway")
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/proxyd")
    assert unit.state_directory(file) == "/srv/proxyd"
    unit.PLACES[0].unlink()
    monkeypatch.delenv("STATE_DIRECTORY")
    assert unit.state_directory(file) is None


def test_a_packages_unit_is_changed_by_drop_ins_at_the_operators_place(machine, monkeypatch):
    ours, package = machine / "system" / "proxyd.service", machine / "usr" / "proxyd.service"
    package.parent.mkdir()
    ours.rename(package)
    monkeypatch.setattr(unit, "PLACES", (ours, package))
    assert unit.installed() == package
    assert unit.state_directory(machine / "etc" / "config.yaml") == str(machine / "lib" / "proxyd")
    (machine / "system" / "proxyd.service.d").mkdir()
    (machine / "system" / "proxyd.service.d" / "own.conf").write_text("[Service]\nStateDirectory=mine\n")
    assert unit.state_directory(machine / "etc" / "config.yaml") == str(machine / "lib" / "mine")
