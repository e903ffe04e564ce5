"""What was used, read out of the ledger while the daemon runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    """Exchanges whose last attempt in the group failed or was interrupted."""
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


_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
NUMBERS = ("requests", "failed", "attempts", *_TOKENS)


def document(line: Line) -> dict[str, object]:
    """Tell a line to a program: money in 10⁻⁹ of each currency, exactly, shares from 0 to 1, times in milliseconds."""
    return {
        **{name: getattr(line, name) for name in NUMBERS},
        "tokens_source": {source.value: round(line.share(source), 4) for source in Source},
        "cost_nano": line.cost_nano,
        "unpriced": line.unpriced,
        "ttft_ms": None if line.ttft_ms is None else round(line.ttft_ms, 3),
        "latency_ms": None if line.latency_ms is None else round(line.latency_ms, 3),
    }


_KEYS = {
    By.MODEL: "{row}.model",
    By.CALLER: "{row}.caller",
    By.UPSTREAM: "{row}.upstream",
    By.DAY: "date({row}.created_at / 1000000, 'unixepoch')",
    By.CONVERSATION: "{row}.conversation_id",
}

# Expressions of the table above only; every value is bound. An exchange is counted at its first attempt in the group, and
# failed at its last, each found by the index of request_id: count(DISTINCT request_id) would sort random names. The signs
# keep the planner from other indexes; CASE evaluates only what it needs, AND and OR do not.
_EXCHANGES = """
sum(CASE WHEN attempt = 1 THEN 1
         ELSE NOT EXISTS (SELECT 1 FROM usage_events AS other WHERE {same} AND other.attempt < event.attempt) END),
sum(CASE WHEN state NOT IN ('failed', 'interrupted') THEN 0
         ELSE NOT EXISTS (SELECT 1 FROM usage_events AS other WHERE {same} AND other.attempt > event.attempt) END)
"""
_SAME = (
    "other.request_id = event.request_id AND +{other} IS {event} "
    "AND +other.created_at >= :since AND +other.created_at < :until AND (:caller IS NULL OR +other.caller = :caller)"
)
# Counts of the source `none` are no tokens, and need no price. total() gives floats, for it cannot overflow; they are exact up to 2⁵³.
_REST = f"""
count(*), {", ".join(f"total({name})" for name in _TOKENS)},
{", ".join(f"sum(tokens_source = '{source.value}')" for source in Source)},
sum(cost_nano IS NULL AND tokens_source <> 'none'), count(ttft_ms), total(ttft_ms), count(latency_ms), total(latency_ms), sum(cost_nano)
"""
_FROM = "FROM usage_events AS event WHERE created_at >= :since AND created_at < :until AND (:caller IS NULL OR caller = :caller)"
_LAST = 2**63 - 1


@dataclass(slots=True)
class _Sums:
    """A line in the making: the group's rows of one currency after another are added."""

    exchanges: list[int] = field(default_factory=lambda: [0, 0])
    counts: list[float] = field(default_factory=list)
    cost_nano: dict[str, int] = field(default_factory=dict)

    def add(self, currency: str | None, exchanges: tuple[int, int], counts: tuple[float, ...], cost: int | None) -> None:
        self.exchanges = [mine + more for mine, more in zip(self.exchanges, exchanges, strict=True)]
        self.counts = [mine + more for mine, more in zip(self.counts or [0] * len(counts), counts, strict=True)]
        if currency is not None and cost is not None:
            self.cost_nano[currency] = self.cost_nano.get(currency, 0) + cost

    def line(self, key: str | None) -> Line:
        if not self.counts:
            return Line(key)
        attempts, prompt, completion, total, cached, reasoning, *counts = map(int, self.counts[: 6 + len(Source)])
        unpriced, timed_first, first, timed, took = self.counts[6 + len(Source) :]
        return Line(
            key,
            requests=self.exchanges[0],
            failed=self.exchanges[1],
            attempts=attempts,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=total,
            cached_tokens=cached,
            reasoning_tokens=reasoning,
            sources={source: count for source, count in zip(Source, counts, strict=True) if count},
            cost_nano=dict(sorted(self.cost_nano.items())),
            unpriced=int(unpriced),
            ttft_ms=first / timed_first if timed_first else None,
            latency_ms=took / timed if timed else None,
        )


def report(path: Path, by: By, period: Period, caller: str | None = None) -> Report:
    """Sum the ledger up, of one moment, on a read-only connection; `caller` restricts it to one. Raises StoreError."""
    return read(path, lambda connection: summed(connection, by, period, caller))


def summed(connection: sqlite3.Connection, by: By, period: Period, caller: str | None = None) -> Report:
    """As `report`, inside a read transaction that there is already. Raises sqlite3.Error."""
    bounds = {"since": period.since_us or 0, "until": _LAST if period.until_us is None else period.until_us, "caller": caller}
    key = _KEYS[by].format(row="event")
    same = _SAME.format(event=key, other=_KEYS[by].format(row="other"))
    groups: dict[str | None, _Sums] = {}
    everything = _Sums()
    for group, currency, requests, failed, *counts, cost in connection.execute(
        f"SELECT {key}, currency, {_EXCHANGES.format(same=same)}, {_REST} {_FROM} GROUP BY 1, 2",
        bounds,
    ):
        groups.setdefault(group, _Sums()).add(currency, (requests, failed), tuple(counts), cost)
        everything.add(currency, (0, 0), tuple(counts), cost)
    # An exchange may be in several groups: only these two do not add up.
    same = _SAME.format(event="1", other="1")
    requests, failed = connection.execute(f"SELECT {_EXCHANGES.format(same=same)} {_FROM}", bounds).fetchone()
    everything.exchanges = [requests or 0, failed or 0]
    lines = [sums.line(group) for group, sums in groups.items()]
    if by is By.DAY:
        lines.sort(key=lambda line: line.key or "")
    else:
        lines.sort(key=lambda line: (-line.total_tokens, -line.requests, line.key or ""))
    return Report(tuple(lines), everything.line(None))
