"""`proxyd keys` where no daemon runs; beside one it is tried in tests/e2e."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from proxyd.cli import main
from proxyd.store.file import migrate, migrations


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("upstreams: {echo: {kind: echo}}\nmodels: {m: echo}\nops: {listen: off}\n")
    return tmp_path


def test_who_only_looks_makes_no_database(folder, capsys):
    """It would be root's, where the service is somebody else."""
    assert main(["keys", "list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    for argv in (["show", "x"], ["rotate", "x"], ["revoke", "x"]):
        assert main(["keys", *argv]) == 1
    assert "there is no database at" in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]
    assert main(["keys", "create", "x"]) == 0
    assert main(["keys", "list", "--format", "json"]) == 0
    assert '"name": "x"' in capsys.readouterr().out


def test_who_only_looks_brings_no_schema_up_to_date(folder, capsys):
    """The daemon of an older version would not start again."""
    steps = migrations()
    with contextlib.closing(sqlite3.connect("proxyd.db", isolation_level=None)) as connection:
        migrate(connection, Path("proxyd.db"), steps[:1])
        assert main(["keys", "list"]) == 1
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert f"has schema 1, which the next start of this proxyd brings up to {len(steps)}" in capsys.readouterr().err
