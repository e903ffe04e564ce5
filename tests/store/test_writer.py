"""One batch, one transaction; no write spoils another."""

from __future__ import annotations

import contextlib
import os
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.store.file import take
from proxyd.store.writer import Batch, Upsert, mended, open_writer

PUT = "INSERT INTO notes (id, text) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET text = excluded.text"


@pytest.fixture
def writer(tmp_path):
    lock = take(tmp_path / "l.db")
    with contextlib.closing(open_writer(tmp_path / "l.db", 1, first=True)) as writer:
        writer.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL CHECK (text <> 'bad')) STRICT")
        yield writer
    os.close(lock)


def notes(writer):
    return dict(writer.execute("SELECT id, text FROM notes"))


def apply(writer, *work):
    writer.batch = batch = Batch(work)
    writer.commit()
    return batch


def test_one_refused_upsert_leaves_the_others(writer):
    batch = apply(writer, Upsert(PUT, (1, "a")), Upsert(PUT, (2, "bad")), Upsert(PUT, (3, "c")))
    assert notes(writer) == {1: "a", 3: "c"}
    assert [(place, type(error)) for place, error in batch.errors.items()] == [(1, sqlite3.IntegrityError)]


def test_many_upserts_are_few_statements_and_one_that_is_refused_still_leaves_the_others(writer):
    statements = []
    writer.set_trace_callback(statements.append)
    apply(writer, *(Upsert(PUT, (number, "a")) for number in range(1000)))
    assert notes(writer) == dict.fromkeys(range(1000), "a")
    assert sum(statement.startswith("INSERT") for statement in statements) < 20
    batch = apply(writer, *(Upsert(PUT, (number, "bad" if number == 77 else "b")) for number in range(100)))
    assert list(batch.errors) == [77]
    assert {number for number, text in notes(writer).items() if text == "b"} == set(range(100)) - {77}


def test_what_is_no_insert_runs_row_by_row(writer):
    apply(writer, *(Upsert(PUT, (number, "a")) for number in range(9)))
    apply(writer, *(Upsert("UPDATE notes SET text = ? WHERE id = ?", ("c", number)) for number in range(9)))
    assert set(notes(writer).values()) == {"c"}


def test_values_that_cannot_be_stored_are_mended(writer):
    batch = apply(writer, Upsert(PUT, (1, "a\ud800z")), Upsert(PUT, (2, "b")))
    assert notes(writer) == {1: "a?z", 2: "b"}
    assert batch.errors == {}


def test_an_operation_that_raises_undoes_its_own_changes_only(writer):
    def half(connection):
        connection.execute("INSERT INTO notes VALUES (1, 'half')")
        raise ValueError("no")

    batch = apply(writer, half, lambda connection: connection.execute("INSERT INTO notes VALUES (2, 'b') RETURNING id").fetchone()[0])
    assert notes(writer) == {2: "b"}
    assert batch.results == {1: 2}
    assert isinstance(batch.errors[0], ValueError)


def test_operations_see_the_upserts_of_their_batch(writer):
    batch = apply(writer, lambda connection: connection.execute("SELECT count(*) FROM notes").fetchone()[0], Upsert(PUT, (1, "a")))
    assert batch.results == {0: 1}


def test_a_batch_whose_disk_fails_leaves_nothing(writer):
    def full(_connection):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with pytest.raises(sqlite3.OperationalError):
        apply(writer, Upsert(PUT, (1, "a")), full)
    assert notes(writer) == {}
    assert not writer.in_transaction


def test_a_batch_of_nothing_proves_that_the_disk_can_be_written(writer, tmp_path):
    before = (tmp_path / "l.db-wal").stat().st_size
    apply(writer)
    assert (tmp_path / "l.db-wal").stat().st_size > before


def test_synchronous_is_as_asked(writer):
    for word, number in (("FULL", 2), ("NORMAL", 1), ("FULL", 2)):
        writer.synchronous = word
        apply(writer)
        assert writer.execute("PRAGMA synchronous").fetchone() == (number,)


@given(st.lists(st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(st.characters()), st.binary())))
def test_mended_values_are_always_stored_and_good_ones_are_left_alone(values):
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for value, better in zip(values, mended(tuple(values)), strict=True):
            assert connection.execute("SELECT ?", (better,)).fetchone() == (better,)
            with contextlib.suppress(OverflowError, UnicodeError):
                assert connection.execute("SELECT ?", (value,)).fetchone() == (better,)
