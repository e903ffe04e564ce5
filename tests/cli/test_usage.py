"""`proxyd usage`, as it is typed."""

from __future__ import annotations

import asyncio
import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.cli import Failed, main
from proxyd.cli.usage import since_us
from proxyd.clock import Clock
from proxyd.model import Source, State, Usage
from proxyd.rules.price import written_cost
from proxyd.store.db import Database
from proxyd.store.ledger import Ledger
from tests.store.rows import opened, settled

YAML = "upstreams:\n  echo: {kind: echo}\nmodels:\n  fast: echo\n"
NOW = 1_762_000_000_000_000  # 2025-11-01 12:26:40 UTC


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration, with a ledger beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("PROXYD_CONFIG", raising=False)
    (tmp_path / "config.yaml").write_text(YAML)
    now = Clock().now_us()
    old = now - 30 * 86_400_000_000

    async def write():
        db = Database(tmp_path / "proxyd.db")
        await db.open()
        rows = [
            settled(opened(1, created_at=old), usage=Usage(100, 0, 100)),
            settled(opened(2, created_at=now), usage=Usage(1000, 234, 1234, 5, 6), cost_nano=1_500_000, currency="USD", ttft_ms=250.4),
            settled(opened(3, created_at=now, caller="=evil\x1b[31m"), State.FAILED, Usage(1, 0, 1), tokens_source=Source.ESTIMATED),
        ]
        await asyncio.gather(*map(Ledger(db).settle, rows))
        await db.close()

    asyncio.run(write())
    return tmp_path


def test_the_table_is_for_people(folder, capsys):
    assert main(["usage"]) == 0
    head, line, total, _, note = capsys.readouterr().out.splitlines()
    titles = "MODEL REQUESTS FAILED PROMPT COMPLETION CACHED REASONING TOTAL REPORTED COST TTFT LATENCY"
    assert " ".join(head.split()) == titles
    assert " ".join(line.split()) == "fast 2 1 1,001 234 5 6 1,235 50% 0.0015 USD 250 ms 12 ms"
    assert total.split()[0] == "total"
    assert note == "1 of 2 attempts have no known price; they are in no cost."


def test_json_is_for_programs(folder, capsys):
    assert main(["usage", "--since", "all", "--by", "caller", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["by"], document["since"]) == ("caller", None)
    assert [group["caller"] for group in document["groups"]] == ["laptop", "=evil\x1b[31m"]
    assert document["total"] == {
        "requests": 3, "failed": 1, "attempts": 3,
        "prompt_tokens": 1101, "completion_tokens": 234, "total_tokens": 1335, "cached_tokens": 5, "reasoning_tokens": 6,
        "tokens_source": {"upstream": 0.6667, "counted": 0.0, "estimated": 0.3333, "none": 0.0},
        "cost_nano": {"USD": 1_500_000}, "unpriced": 2, "ttft_ms": 250.4, "latency_ms": 12.5,
    }  # fmt: skip


def test_csv_has_a_line_a_group_and_no_total(folder, capsys):
    assert main(["usage", "--by", "day", "--since", "all", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["requests"], row["total_tokens"], row["cost_USD"], row["unpriced"]) for row in rows] == [
        ("1", "100", "", "1"),
        ("2", "1235", "0.0015", "1"),
    ]


def test_a_callers_name_cannot_speak_to_the_terminal(folder, capsys):
    assert main(["usage", "--by", "caller"]) == 0
    assert "\x1b[31m" not in capsys.readouterr().out


def test_the_database_is_where_the_daemon_would_keep_it(folder, capsys, monkeypatch):
    state = folder / "state"
    state.mkdir()
    (folder / "proxyd.db").rename(state / "proxyd.db")
    assert main(["usage"]) == 1
    assert "STATE_DIRECTORY=" in capsys.readouterr().err
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    assert main(["usage", "--format", "json"]) == 0


def test_a_damaged_database_is_said_in_one_line(folder, capsys):
    (folder / "proxyd.db").write_bytes(b"notes" * 1000)
    assert main(["usage"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not a SQLite database" in error


def test_wrong_options_are_wrong_usage(folder, capsys):
    assert main(["usage", "--by", "colour"]) == 2
    assert main(["usage", "--since", "yesterday"]) == 2
    assert "write 7d, 24h" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("all", None),
        ("30m", NOW - 1800 * 1_000_000),
        ("24h", NOW - 86_400 * 1_000_000),
        ("7d", NOW - 7 * 86_400 * 1_000_000),
        ("2w", NOW - 14 * 86_400 * 1_000_000),
        ("999999w", 0),
        ("2025-11-01", 1_761_955_200_000_000),
        ("1970-01-01", 0),
        ("1969-12-31", 0),
    ],
)
def test_since_is_read(text, at):
    assert since_us(text, NOW) == at


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "1.5h", "2025-13-01", "2025-11-01T00:00", "7D", "١d"])
def test_other_times_are_refused(text):
    with pytest.raises(Failed):
        since_us(text, NOW)


@given(st.integers(-(2**63), 2**63 - 1))
def test_money_is_written_exactly(nano):
    text = written_cost(nano)
    whole, decimals = text.split(".")
    assert 2 <= len(decimals) <= 9
    assert int(whole.lstrip("-")) * 10**9 + int(decimals.ljust(9, "0")) == abs(nano)
    assert text.startswith("-") == (nano < 0)
