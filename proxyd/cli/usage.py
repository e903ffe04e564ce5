"""`proxyd usage`: what was used and what it cost, from the ledger, while the daemon runs or not."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import TYPE_CHECKING

from proxyd.cli import DONE, Failed, WrongUsage, output, place
from proxyd.clock import Clock
from proxyd.config.units import since
from proxyd.daemon.boot import quotes
from proxyd.flow.reprice import Prices, reprice
from proxyd.model import Source
from proxyd.rules.price import written_cost
from proxyd.rules.pricelist import PriceList
from proxyd.rules.routes import RouteTable
from proxyd.store.file import StoreError
from proxyd.store.usage import NUMBERS, By, Period, document, report

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from proxyd.config.schema import Config
    from proxyd.store.db import Database
    from proxyd.store.usage import Line, Report

HELP = """What was used and what it cost, out of the ledger; the daemon may run meanwhile.

Every attempt at an upstream is in it, those that failed or were cut too. REPORTED is the share of attempts whose counts the
upstream itself reported; the others were counted or estimated. Days are UTC."""
EXAMPLES = """proxyd usage
proxyd usage --by caller --since 24h
proxyd usage --by day --since 2026-11-01 --format csv > november.csv
proxyd usage --since all --format json | jq .total
proxyd usage --reprice --since 2026-11-01    # a price was wrong since then: the YAML is right now
proxyd usage --reprice missing --since all   # a price was unknown"""

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


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to group by, since when, and a format."""
    parser.add_argument("--by", choices=[by.value for by in By], default=By.MODEL.value, help="a line for each (default: model)")
    parser.add_argument("--since", metavar="WHEN", default="7d", help="7d, 24h, 30m, a day (UTC) as 2026-11-01, or all (default: 7d)")
    parser.add_argument(
        "--reprice",
        nargs="?",
        const="all",
        choices=("all", "missing"),
        help="first price the rows since then again, by today's prices; missing: only those without a cost",
    )
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report. Raises Failed, ConfigError."""
    by = By(args.by)
    period = Period(since_us(args.since, Clock().now_us()))
    config, path = place.database(args)
    try:
        if args.reprice is not None:
            _reprice(config, path, period.since_us or 0, missing=args.reprice == "missing")
        found = report(path, by, period)
    except StoreError as error:
        raise Failed(str(error)) from error
    if args.format == "json":
        told = {
            "by": by.value,
            "since": _stamp(period.since_us),
            "groups": [{by.value: line.key, **document(line)} for line in found.lines],
            "total": document(found.total),
        }
        sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=2) + "\n")
    elif args.format == "csv":
        _csv(by, found)
    else:
        _print(by, found)
    return DONE


def since_us(text: str, now_us: int) -> int | None:
    """Read a moment of the past as `units.since` does. Raises WrongUsage."""
    try:
        return since(text, now_us)
    except ValueError:
        raise WrongUsage(f"--since {output.plain(text)}: write 7d, 24h, 30m, a day as 2026-11-01, or all") from None


def _reprice(config: Config, path: Path, begin: int, *, missing: bool) -> None:
    """Price history again, as the database's writer or by way of it, and say so where no program reads."""

    async def alone(database: Database) -> dict[str, int]:
        prices = Prices(RouteTable(config), quotes(config), PriceList(), config.upstreams)
        looked, changed = await reprice(database, prices, begin, missing=missing)
        return {"looked_at": looked, "changed": changed}

    done = place.write(config, path, ("/usage/reprice", {"since_us": begin, "missing": missing}), alone)
    sys.stderr.write(f"{done['changed']} of {done['looked_at']} attempts have another cost now.\n")


def _csv(by: By, found: Report) -> None:
    """Print a line per group, no total (a sum column would count it twice), and a cost column for each currency."""
    currencies = list(found.total.cost_nano)
    sources = [f"source_{source.value}" for source in Source]
    keys = [by.value, *NUMBERS, *sources, *(f"cost_{currency}" for currency in currencies), "unpriced", "ttft_ms", "latency_ms"]
    rows = []
    for line in found.lines:
        row = {by.value: line.key, **document(line)}
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
        **{name: f"{getattr(line, name):,}" for name in NUMBERS},
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
