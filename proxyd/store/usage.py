"""What was used, read out of the ledger while the daemon runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxyd.model import Source
from proxyd.store.file import read

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


class By(enum.StrEnum):
    """What a report has a line for."""

    MODEL = "model"
    CALLER = "caller"
    UPSTREAM = "upstream"
    DAY = "day"
    CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True)
class Period:
    """From `since_us` up to, but without, `until_us`: microseconds since the epoch; None is open-ended."""

    since_us: int | None = None
    until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The sums of one group of attempts."""

    key: str | None
    """The model as clients named it, the caller, the upstream, the day (UTC, `2026-11-01`) or the conversation; None for none."""
    requests: int = 0
    """Exchanges with an attempt in the group; a request that was tried three times is one."""
    failed: int = 0
    """Exchanges of which every attempt in the group failed or was interrupted."""
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    sources: dict[Source, int] = field(default_factory=dict)
    """Attempts by where their counts come from."""
    cost_nano: dict[str, int] = field(default_factory=dict)
    """10⁻⁹ of each currency."""
    unpriced: int = 0
    """Attempts with tokens but without a known price; their cost is in no sum."""
    ttft_ms: float | None = None
    """Mean over the attempts that have one."""
    latency_ms: float | None = None

    def share(self, source: Source) -> float:
        """Return which part of the attempts, 0 to 1, has its counts from `source`."""
        return self.sources.get(source, 0) / self.attempts if self.attempts else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The groups, those with most tokens first (days: in order), and everything together."""

    lines: tuple[Line, ...]
    total: Line


_KEYS = {
    By.MODEL: "model",
    By.CALLER: "caller",
    By.UPSTREAM: "upstream",
    By.DAY: "date(created_at / 1000000, 'unixepoch')",
    By.CONVERSATION: "conversation_id",
}

# Expressions of the table above only; every value is bound. What is `none` has no tokens to price.
_SUMS = """
SELECT {key}, count(DISTINCT request_id),
       count(DISTINCT request_id) - count(DISTINCT CASE WHEN state NOT IN ('failed', 'interrupted') THEN request_id END),
       count(*), total(prompt_tokens), total(completion_tokens), total(total_tokens), total(cached_tokens), total(reasoning_tokens),
       {sources},
       count(CASE WHEN cost_nano IS NULL AND tokens_source <> 'none' THEN 1 END), avg(ttft_ms), avg(latency_ms)
FROM usage_events WHERE created_at >= ? AND created_at < ? AND (? IS NULL OR caller = ?) GROUP BY 1
"""
_COSTS = """
SELECT {key}, currency, sum(cost_nano) FROM usage_events
WHERE created_at >= ? AND created_at < ? AND (? IS NULL OR caller = ?) AND cost_nano IS NOT NULL AND currency IS NOT NULL GROUP BY 1, 2
"""
_EVERYTHING = "''"
_LAST = 2**63 - 1


def report(path: Path, by: By, period: Period, caller: str | None = None) -> Report:
    """Sum the ledger up, of one moment, on a read-only connection; `caller` restricts it to one. Raises StoreError."""
    return read(path, lambda connection: summed(connection, by, period, caller))


def summed(connection: sqlite3.Connection, by: By, period: Period, caller: str | None = None) -> Report:
    """As `report`, inside a read transaction that there is already. Raises sqlite3.Error."""
    bounds = (period.since_us or 0, _LAST if period.until_us is None else period.until_us, caller, caller)
    lines = _lines(connection, _KEYS[by], bounds)
    total = next(iter(_lines(connection, _EVERYTHING, bounds)), Line(None))
    if by is By.DAY:
        lines.sort(key=lambda line: line.key or "")
    else:
        lines.sort(key=lambda line: (-line.total_tokens, -line.requests, line.key or ""))
    return Report(tuple(lines), total)


def _lines(connection: sqlite3.Connection, key: str, bounds: tuple[int, int, str | None, str | None]) -> list[Line]:
    sources = ", ".join(f"count(CASE WHEN tokens_source = '{source.value}' THEN 1 END)" for source in Source)
    sums = connection.execute(_SUMS.format(key=key, sources=sources), bounds)
    costs: dict[str | None, dict[str, int]] = {}
    for group, currency, nano in connection.execute(_COSTS.format(key=key), bounds):
        costs.setdefault(group, {})[currency] = nano
    return [_line(row, costs.get(row[0], {})) for row in sums]


def _line(row: tuple[Any, ...], costs: dict[str, int]) -> Line:
    """Make a line of a row of _SUMS. `total()` gives floats, for it cannot overflow; they are exact up to 2⁵³ tokens."""
    requests, failed, attempts, prompt, completion, total, cached, reasoning = map(int, row[1:9])
    *counts, unpriced, ttft_ms, latency_ms = row[9:]
    return Line(
        row[0],
        requests=requests,
        failed=failed,
        attempts=attempts,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        sources={source: count for source, count in zip(Source, counts, strict=True) if count},
        cost_nano=dict(sorted(costs.items())),
        unpriced=unpriced,
        ttft_ms=ttft_ms,
        latency_ms=latency_ms,
    )
