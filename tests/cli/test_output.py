"""Tables, JSON and CSV."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.cli.output import BOLD, Column, paint, plain, show

COLUMNS = (Column("name", "model"), Column("tokens", "tokens", right=True))
ROWS = [{"name": "llama3.2", "tokens": 1234567}, {"name": "模型", "tokens": None}, {"name": "é", "tokens": 1.5}]


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def shown(form, rows=ROWS):
    out = io.StringIO()
    show(COLUMNS, rows, form, out)
    return out.getvalue()


def test_a_table_stands_straight_with_wide_and_combining_characters():
    assert shown("table") == "model      tokens\nllama3.2  1234567\n模型            -\né             1.5\n"
    assert shown("table", []) == "model  tokens\n"


def test_json_and_csv_keep_values():
    assert json.loads(shown("json")) == ROWS
    assert shown("csv") == "name,tokens\nllama3.2,1234567\n模型,\né,1.5\n"


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="no such format"):
        shown("xml")


def test_colour_is_for_terminals_that_want_it():
    assert paint("x", BOLD, Terminal(), {}) == "\x1b[1mx\x1b[0m"
    assert paint("x", BOLD, io.StringIO(), {}) == "x"
    assert paint("x", BOLD, Terminal(), {"NO_COLOR": "1"}) == "x"
    assert paint("x", BOLD, Terminal(), {"NO_COLOR": ""}) == "\x1b[1mx\x1b[0m"
    assert paint("x", BOLD, Terminal(), {"TERM": "dumb"}) == "x"


@given(st.text())
def test_no_cell_can_act_on_a_terminal_or_break_a_line(text):
    told = plain(text)
    assert told.isprintable() or told == ""
    assert len(shown("table", [{"name": text, "tokens": 1}]).splitlines()) == 2


@given(st.lists(st.fixed_dictionaries({"name": st.text(), "tokens": st.none() | st.integers()})))
def test_csv_and_json_read_back(rows):
    assert json.loads(shown("json", rows)) == rows
    read = list(csv.DictReader(io.StringIO(shown("csv", rows), newline="")))
    written = [{"name": plain(row["name"]), "tokens": "" if row["tokens"] is None else str(row["tokens"])} for row in rows]
    assert read == written
