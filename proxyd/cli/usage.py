"""`proxyd usage`: what was used and what it cost, from the ledger, while the daemon runs or not."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from typing import TYPE_CHECKING

from proxyd.cli import DONE, Failed, output, place
from proxyd.clock import Clock
from proxyd.model import Source
from proxyd.rules.price import written_cost
from proxyd.store.file import StoreError
from proxyd.store.usage import By, Period, report

if TYPE_CHECKING:
    import argparse

    from proxyd.store.usage import Line, Report

HELP = """What was used and what it cost, out of the ledger; the daemon may run meanwhile.

Every attempt at an upstream is in it, those that failed or were cut too. REPORTED is the share of attempts whose counts the
upstream itself reported; the others were counted or estimated. Days are UTC."""
EXAMPLES = """proxyd usage
proxyd usage --by caller --since 24h
proxyd usage --by day --since 2026-11-01 --format csv > november.csv
proxyd usage --since all --format json | jq .total"""

_PERIODS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_TABLE = (
    output.Column("requests", "REQUESTS", right=True),
    output.Column("failed", "FAILED", right=True),
    output.Column("prompt_tokens", "PROMPT", right=True),
    output.Column("completion_tokens", "COMPLETION", right=True),
    output.Column("cached_tokens", "CACHED", right=True),
    output.Column("reasoning_tokens", "REASONING", right=True),
    output.Column("total_tokens", "TOTAL", right=True),
    output.Column("reported", "REPORTED", right=True),
    output.Column("cost", "COST", right=True),
    output.Column("ttft", "TTFT", right=True),
    output.Column("latency", "LATENCY", right=True),
)
_NUMBERS = (
    *("requests", "failed", "attempts"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to group by, since when, and a format."""
    parser.add_argument("--by", choices=[by.value for by in By], default=By.MODEL.value, help="a line for each (default: model)")
    parser.add_argument("--since", metavar="WHEN", default="7d", help="7d, 24h, 30m, a day (UTC) as 2026-11-01, or all (default: 7d)")
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report. Raises Failed, ConfigError."""
    by = By(args.by)
    period = Period(since_us(args.since, Clock().now_us()))
    _, path = place.database(args)
    try:
        found = report(path, by, period)
    except StoreError as error:
        raise Failed(str(error)) from error
    if args.format == "json":
        document = {
            "by": by.value,
            "since": _stamp(period.since_us),
            "groups": [{by.value: line.key, **_document(line)} for line in found.lines],
            "total": _document(found.total),
        }
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    elif args.format == "csv":
        _csv(by, found)
    else:
        _print(by, found)
    return DONE


def since_us(text: str, now_us: int, option: str = "--since") -> int | None:
    """Read `--since`: `90m`, `24h`, `7d` or `2w` before now, a UTC day, or `all` (None). Microseconds since the epoch. Raises Failed."""
    if text == "all":
        return None
    if found := re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text):
        return max(0, now_us - int(found[1]) * _PERIODS[found[2]] * 1_000_000)
    try:
        day = dt.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError:
        raise Failed(f"{option} {output.plain(text)}: write 7d, 24h, 30m, a day as 2026-11-01, or all") from None
    return max(0, int(day.timestamp()) * 1_000_000)


def _document(line: Line) -> dict[str, object]:
    """Tell a line to a program: money in 10⁻⁹ of each currency, exactly, shares from 0 to 1, times in milliseconds."""
    return {
        **{name: getattr(line, name) for name in _NUMBERS},
        "tokens_source": {source.value: round(line.share(source), 4) for source in Source},
        "cost_nano": line.cost_nano,
        "unpriced": line.unpriced,
        "ttft_ms": None if line.ttft_ms is None else round(line.ttft_ms, 3),
        "latency_ms": None if line.latency_ms is None else round(line.latency_ms, 3),
    }


def _csv(by: By, found: Report) -> None:
    """Print a line per group, no total (a sum column would count it twice), and a cost column for each currency."""
    currencies = list(found.total.cost_nano)
    sources = [f"source_{source.value}" for source in Source]
    keys = [by.value, *_NUMBERS, *sources, *(f"cost_{currency}" for currency in currencies), "unpriced", "ttft_ms", "latency_ms"]
    rows = []
    for line in found.lines:
        row = {by.value: line.key, **_document(line)}
        row |= {f"source_{source.value}": round(line.share(source), 4) for source in Source}
        row |= {f"cost_{currency}": written_cost(line.cost_nano[currency]) for currency in currencies if currency in line.cost_nano}
        rows.append(row)
    output.show([output.Column(key, key) for key in keys], rows, "csv")


def _print(by: By, found: Report) -> None:
    """Print the table, with a last line for everything."""
    lines = [_row(output.plain(line.key), line) for line in found.lines]
    columns = (output.Column("key", by.value.upper()), *_TABLE)
    output.show(columns, [*lines, _row("total", found.total)], "table")
    if found.total.unpriced:
        sys.stdout.write(f"\n{found.total.unpriced} of {found.total.attempts} attempts have no known price; they are in no cost.\n")


def _row(key: str, line: Line) -> dict[str, object]:
    return {
        "key": key,
        **{name: f"{getattr(line, name):,}" for name in _NUMBERS},
        "reported": f"{line.share(Source.UPSTREAM):.0%}" if line.attempts else None,
        "cost": " + ".join(f"{written_cost(nano)} {currency}" for currency, nano in line.cost_nano.items()) or None,
        "ttft": _seconds(line.ttft_ms),
        "latency": _seconds(line.latency_ms),
    }


def _seconds(milliseconds: float | None) -> str | None:
    if milliseconds is None:
        return None
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _stamp(at_us: int | None) -> str | None:
    return None if at_us is None else dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC).isoformat(timespec="seconds")
