"""The file: where it is, what is refused, and that nothing is ever overwritten."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.store.db import Database, StoreError, database_path
from proxyd.store.file import Migration, migrate, migrations, read, take
from tests.store.rows import query

YAML = Path("/etc/proxyd")


@pytest.mark.parametrize(
    ("url", "state_directory", "path"),
    [
        ("sqlite:///proxyd.db", None, "/etc/proxyd/proxyd.db"),
        ("sqlite:///proxyd.db", "", "/etc/proxyd/proxyd.db"),
        ("sqlite:///proxyd.db", "/var/lib/proxyd", "/var/lib/proxyd/proxyd.db"),
        ("sqlite:///a/b.db", "/var/lib/proxyd:/var/lib/other", "/var/lib/proxyd/a/b.db"),
        ("sqlite:////srv/l.db", "/var/lib/proxyd", "/srv/l.db"),
    ],
)
def test_the_url_leads_to_a_path(url, state_directory, path):
    assert database_path(url, YAML, state_directory) == Path(path)


@pytest.mark.parametrize(
    "url", ["postgresql://h/d", "sqlite://proxyd.db", "sqlite:///", "sqlite:///a/", "proxyd.db", "", "sqlite:///..", "sqlite:///a\0b"]
)
def test_another_url_is_refused_with_the_right_form(url):
    with pytest.raises(StoreError, match="sqlite:///"):
        database_path(url, YAML, None)


@given(st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1).filter(lambda name: name not in {".", ".."}))
def test_every_other_name_of_a_file_is_a_file_in_the_folder(name):
    assert database_path(f"sqlite:///{name}", YAML, None).parent == YAML


async def test_a_new_file_is_the_owners_only(tmp_path):
    old = os.umask(0)
    try:
        db = Database(tmp_path / "l.db")
        await db.open()
        assert {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("l.db", "l.db-wal", "l.db-shm", "l.db-lock")} == {
            "l.db": 0o600, "l.db-wal": 0o600, "l.db-shm": 0o600, "l.db-lock": 0o600,
        }  # fmt: skip
        await db.close()
    finally:
        os.umask(old)


async def refused(path) -> str:
    with pytest.raises(StoreError) as caught:
        await Database(path).open()
    return str(caught.value)


async def test_a_missing_folder_is_named(tmp_path):
    message = await refused(tmp_path / "none" / "l.db")
    assert f"the folder {tmp_path / 'none'} does not exist: create it" in message


async def test_a_folder_is_no_database(tmp_path):
    assert "is a folder" in await refused(tmp_path)


async def test_a_file_that_is_no_database_is_told_and_left_as_it_is(tmp_path):
    path = tmp_path / "l.db"
    path.write_bytes(b"these are my notes\n" * 300)
    assert "not a SQLite database" in await refused(path)
    assert path.read_bytes() == b"these are my notes\n" * 300


async def test_a_damaged_page_is_found_at_start_and_left_as_it_is(tmp_path):
    path = tmp_path / "l.db"
    db = Database(path)
    await db.open()
    await db.close()
    damaged = bytearray(path.read_bytes())
    damaged[4096 : 4096 + 2048] = b"\xa5" * 2048
    path.write_bytes(damaged)
    assert "it is damaged: restore a backup" in await refused(path)
    assert path.read_bytes() == damaged


async def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "l.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE future (x)")
        connection.execute("PRAGMA user_version = 9999")
    assert "has schema 9999" in await refused(path)
    with pytest.raises(StoreError, match="schema 9999"):
        read(path, lambda connection: connection.execute("SELECT 1"))
    assert query(path, "SELECT name FROM sqlite_schema") == [("future",)]


async def test_another_programs_database_is_refused(tmp_path):
    path = tmp_path / "l.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (x)")
    assert "another program's tables" in await refused(path)
    assert query(path, "SELECT name FROM sqlite_schema") == [("recipes",)]


async def test_a_second_daemon_is_refused_while_the_first_one_runs_and_welcome_after(tmp_path):
    first = Database(tmp_path / "l.db")
    await first.open()
    assert "in use by another proxyd" in await refused(tmp_path / "l.db")
    await first.close()
    second = Database(tmp_path / "l.db")
    await second.open()
    await second.close()


def test_migrations_count_from_one_without_gaps():
    assert [step.number for step in migrations()] == list(range(1, len(migrations()) + 1))


def test_a_failing_step_changes_nothing_and_the_ones_before_it_stay(tmp_path):
    steps = [Migration(1, "CREATE TABLE a (x);"), Migration(2, "CREATE TABLE b (x); CREATE TABLE a (x);")]
    with contextlib.closing(sqlite3.connect(tmp_path / "l.db", isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, tmp_path / "l.db", steps)
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("a",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        migrate(connection, tmp_path / "l.db", [steps[0], Migration(2, "CREATE TABLE b (x);")])
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


async def test_a_reader_cannot_write(tmp_path):
    db = Database(tmp_path / "l.db")
    await db.open()
    with pytest.raises(StoreError, match="cannot be written"):
        await db.read(lambda connection: connection.execute("DELETE FROM usage_events"))
    await db.close()


def test_a_reader_says_that_there_is_no_file_and_makes_none(tmp_path):
    with pytest.raises(StoreError, match="is not there"):
        read(tmp_path / "l.db", lambda connection: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("use", "what"), [(lambda path: read(path, lambda _: None), "read"), (take, "write")])
def test_a_file_that_is_somebody_elses_is_told_as_that(tmp_path, monkeypatch, use, what):
    """SQLite says that it cannot be opened, as of a folder that does not exist."""
    (tmp_path / "l.db").touch()
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    with pytest.raises(StoreError, match=rf"l\.db is not for this user to {what}: run this as its owner, \S+, or as root$"):
        use(tmp_path / "l.db")
    assert [file.name for file in tmp_path.iterdir()] == ["l.db"]


def test_a_question_about_what_an_older_file_has_not_is_told_as_that(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "l.db", isolation_level=None)) as connection:
        migrate(connection, tmp_path / "l.db", migrations()[:1])
    with pytest.raises(StoreError, match="has schema 1, which the next start of this proxyd brings up to"):
        read(tmp_path / "l.db", lambda connection: connection.execute("SELECT * FROM messages"))
