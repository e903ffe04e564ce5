"""The one table of failures: every code that is raised stands in it, every code in it is raised, and the operator's page shows it.

`python -m tests.test_errors` writes the table into that page anew.
"""

import ast
import re
from pathlib import Path

import pytest

from proxyd.errors import TABLE, Blame, ProxyError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "systemd" / "README.md"
BEGIN, END = "<!-- errors: made by tests/test_errors.py -->\n", "<!-- end of errors -->"
FAULT = {Blame.CLIENT: "the request", Blame.UPSTREAM: "the upstream", Blame.US: "proxyd"}


def markdown() -> str:
    """The table as the page shows it."""
    lines = ["| `error.code`, and `error` in the ledger | status | whose fault | trying again can help |", "|---|---|---|---|"]
    lines += [f"| `{code}` | {row.status} | {FAULT[row.blame]} | {'yes' if row.retry else 'no'} |" for code, row in TABLE.items()]
    return "\n".join(lines) + "\n"


def calls() -> list[tuple[str, ast.Call]]:
    """Every place that makes a ProxyError."""
    return [
        (str(file.relative_to(ROOT)), node)
        for file in sorted((ROOT / "proxyd").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ProxyError"
    ]


def literals() -> set[str]:
    """Every string of the source that could be a code."""
    found = set()
    for file in (ROOT / "proxyd").rglob("*.py"):
        if file.name != "errors.py":
            found |= {node.value for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Constant)}
    return found


def test_every_code_that_is_written_down_where_it_is_raised_stands_in_the_table():
    unknown = [
        (file, code.value)
        for file, call in calls()
        if call.args and isinstance(code := call.args[0], ast.Constant) and code.value not in TABLE
    ]
    assert unknown == []


def test_every_code_of_the_table_is_used():
    assert set(TABLE) - literals() == set()


def test_only_an_upstreams_own_answer_has_another_status_than_the_table():
    own = {"proxyd/wire/faults.py", "proxyd/web/protobuf.py", "proxyd/web/rpc_encoder.py"}
    assert [file for file, call in calls() if file not in own and any(word.arg == "status" for word in call.keywords)] == []


@pytest.mark.parametrize("code", TABLE)
def test_status_fault_and_verdict_agree(code):
    row = TABLE[code]
    assert re.fullmatch(r"[a-z_]+", code)
    assert (row.blame is Blame.CLIENT) == (400 <= row.status < 500 or row.status == 505)
    assert not (row.retry and row.status in (400, 401, 403, 404, 405, 406, 413, 415, 421, 501, 505))
    error = ProxyError(code, "words")
    assert (error.status, error.retry, error.blame) == (row.status, row.retry, row.blame)


def test_the_operators_page_shows_the_table():
    page = PAGE.read_text("utf-8")
    shown = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]
    assert shown == markdown(), "run `python -m tests.test_errors`"


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    PAGE.write_text(page[: page.index(BEGIN) + len(BEGIN)] + markdown() + page[page.index(END) :], "utf-8")
