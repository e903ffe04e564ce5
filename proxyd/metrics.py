"""Counters, gauges and histograms: one method a moment, labels from the configuration only, updated once an exchange."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from proxyd.errors import TABLE
from proxyd.model import Endpoint, Source
from proxyd.series import Distributions, Numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxyd.model import Ending, LedgerRow
    from proxyd.series import Distribution, Number

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` returns. 0.0.4, not 1.0.0: the names are plain, and Prometheus before 3.0 reads it too."""

OTHER = "other"
"""The label of whatever is not in the configuration."""

BREAKER_STATES = ("closed", "half_open", "open")
PHASES = ("wait", "stream", "unary", "stalled")
LIMITS = ("requests", "tokens", "concurrency", "budget")

# The GenAI conventions' buckets (open-telemetry/semantic-conventions-genai, metrics), extended: an answer may take ten
# minutes, and the first byte waits while Ollama loads a model from disk.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_GAP = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
COMMIT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)

_STATUSES = frozenset(status.value for status in HTTPStatus) | {499, 529}


@dataclass(slots=True)
class _Children:
    """The time series of one endpoint, route and upstream, looked up once."""

    duration: Distribution
    first_token: Distribution
    token_gap: Distribution
    cost: Number
    statuses: dict[int, Number]


class Metrics:
    """All of the daemon's metrics. Call `know` at start and after each reload.

    All methods are for the event loop's thread, take less than a microsecond (`exchange_ended`: four), and never raise for
    what they are told.
    """

    def __init__(self, version: str) -> None:
        self._families: list[Numbers | Distributions] = []
        self._models: frozenset[str] = frozenset()
        self._upstreams: frozenset[str] = frozenset()
        self._ever: frozenset[str] = frozenset()
        """Upstreams that are labels: those of earlier configurations too, under which exchanges may still run."""
        self._endpoints: frozenset[str] = frozenset()
        self._children: dict[tuple[str, str, str], _Children] = {}
        self._tokens: dict[tuple[str, str, Source], Number] = {}
        self._log_dropped_before = 0
        self._exchange_families()
        self._event_families()
        self._inside_families()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._gauge("proxyd_build_info", "Always 1; the version in its labels", "version", "python").labels(
            version, platform.python_version()
        ).set(1)

    def _exchange_families(self) -> None:
        where = ("endpoint", "model", "upstream")
        self._requests = self._counter("proxyd_requests_total", "Exchanges ended, refused ones too", *where, "status")
        self._duration = self._histogram(
            "proxyd_request_duration_seconds", "From the arrival of a request to its settlement", DURATION, *where
        )
        self._first_token = self._histogram(
            "proxyd_time_to_first_token_seconds",
            "Streams: from the arrival of a request to the first byte of the answer's body",
            FIRST_TOKEN,
            *where[1:],
        )
        self._token_gap = self._histogram(
            "proxyd_inter_token_seconds", "Streams: mean time between tokens, one observation an exchange", TOKEN_GAP, *where[1:]
        )
        self._token_count = self._counter(
            "proxyd_tokens_total", "Tokens by direction (input, output) and where the count is from", "model", "direction", "source"
        )
        self._cached = self._counter(
            "proxyd_cached_tokens_total", "Input tokens that the upstream had cached; part of proxyd_tokens_total", "model"
        )
        self._reasoning = self._counter(
            "proxyd_reasoning_tokens_total", "Output tokens spent on reasoning; part of proxyd_tokens_total", "model"
        )
        self._cost = self._counter(
            "proxyd_cost_usd_total", "Cost of upstream calls priced in USD; the ledger has all currencies", *where[1:]
        )
        self._unpriced = self._counter("proxyd_unpriced_total", "Exchanges with tokens but without a known price", "model")
        self._errors = self._counter(
            "proxyd_errors_total", "Exchanges that ended with an error, by its code and whose fault it is", "error", "blame"
        )
        self._active = self._gauge("proxyd_streams_active", "Exchanges that run now (what limits.streams bounds)").labels()
        self._overhead = self._histogram("proxyd_overhead_seconds", "Time of an exchange spent inside proxyd", OVERHEAD).labels()

    def _event_families(self) -> None:
        self._failed = self._counter(
            "proxyd_attempts_failed_total", "Upstream calls that failed, by the code of the error", "upstream", "error"
        )
        self._retries = self._counter(
            "proxyd_retries_total", "Upstream calls made again after a failed one, here or at the next upstream", "model", "upstream"
        )
        self._replays = self._counter("proxyd_idempotent_replays_total", "Exchanges answered from an earlier one, or joined to it").labels()
        self._limited = self._counter("proxyd_ratelimited_total", "Exchanges refused by a limit", "reason")
        self._waits = self._gauge("proxyd_queue_waiting", "Exchanges that wait for a place on their route (models.x.queue)").labels()
        self._warned = self._counter("proxyd_budget_warnings_total", "Budgets that passed their warn_at, once a period").labels()
        self._left = self._counter("proxyd_client_disconnects_total", "Clients that left before the end of their answer", "phase")
        self._state = self._gauge(
            "proxyd_upstream_state", "1 for the state that the upstream's breaker is in, 0 for the others", "upstream", "state"
        )
        self._reload_ok = self._gauge("proxyd_config_reload_success", "1 if the last load of the configuration succeeded, else 0").labels()
        self._reloads = self._counter("proxyd_config_reloads_total", "Reloads of the configuration", "result")
        self._reload_ok.set(1)  # it was loaded, or nothing would run
        for reason in LIMITS:  # a series that is there from the start has a rate from the first event on
            self._limited.labels(reason)
        for phase in PHASES:
            self._left.labels(phase)
        for result in ("ok", "bad"):
            self._reloads.labels(result)

    def _inside_families(self) -> None:
        self._queue = self._gauge("proxyd_ledger_queue", "Rows that wait to be written").labels()
        self._commit = self._histogram("proxyd_ledger_commit_seconds", "Time of one group commit", COMMIT).labels()
        self._ledger_errors = self._counter("proxyd_ledger_errors_total", "Group commits that failed and will be tried again").labels()
        self._recovered = self._counter(
            "proxyd_ledger_recovered_rows_total", "Rows found open at start and settled as interrupted"
        ).labels()
        self._lag = self._histogram("proxyd_loop_lag_seconds", "How late the event loop's heartbeat was", LAG).labels()
        self._stalls = self._counter(
            "proxyd_loop_stalls_total", "Times that the event loop stalled for over 250 ms; the log names why"
        ).labels()
        self._log_dropped = self._counter(
            "proxyd_log_lines_dropped_total", "Log lines lost to a reader that was too slow or failed"
        ).labels()

    def _counter(self, name: str, about: str, *labels: str) -> Numbers:
        return self._numbers(name, "counter", about, labels)

    def _gauge(self, name: str, about: str, *labels: str) -> Numbers:
        return self._numbers(name, "gauge", about, labels)

    def _numbers(self, name: str, kind: str, about: str, labels: tuple[str, ...]) -> Numbers:
        made = Numbers(name, kind, about, labels)
        self._families.append(made)
        return made

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Distributions:
        made = Distributions(name, about, labels, buckets)
        self._families.append(made)
        return made

    def know(self, models: Iterable[str], upstreams: Iterable[str], endpoints: Iterable[str] = tuple(Endpoint)) -> None:
        """Take the names that may be labels, from the route table and the table of endpoints; all others are counted as OTHER.

        What is gone stays a label: no counter is reset by a reload, and exchanges end under the configuration that they began
        with. The state of an upstream that is gone is removed, and a new one begins closed.
        """
        self._models, self._endpoints = self._models | frozenset(models), frozenset(endpoints)
        before, self._upstreams = self._upstreams, frozenset(upstreams)
        self._ever |= self._upstreams
        for gone in before - self._upstreams:
            for state in BREAKER_STATES:
                self._state.remove(gone, state)
        for new in self._upstreams - before:
            self.upstream_state(new, BREAKER_STATES[0])

    # --- an exchange

    def exchange_begun(self) -> None:
        """Count an exchange as running; `exchange_ended` must follow, once."""
        self._active.inc()

    def exchange_ended(self, facts: Ending) -> None:
        """Count an exchange, with all that is known of it, when it is settled."""
        self._active.dec()
        where = self._where(facts)
        children = self._children.get(where)
        if children is None:
            children = self._children[where] = self._born(where)
        (children.statuses.get(facts.status) or self._status(facts.status, where, children)).inc()
        children.duration.observe(facts.duration_ms / 1e3)
        if facts.streamed and facts.ttft_ms is not None:
            children.first_token.observe(facts.ttft_ms / 1e3)
            if (gap := _token_gap(facts)) is not None:
                children.token_gap.observe(gap)
        if facts.overhead_ms is not None:
            self._overhead.observe(facts.overhead_ms / 1e3)
        if facts.error is not None:
            self._error(facts.error)
        if facts.tokens_source is not Source.NONE:
            self._spent(where[1], facts, children.cost)
            if facts.cost_nano is None:
                self._unpriced.labels(where[1]).inc()

    def attempt_ended(self, route: str, row: LedgerRow) -> None:
        """Count what an attempt has used up that another one followed: the ledger has it, too. The last one's is its exchange's."""
        if row.tokens_source is not Source.NONE:
            model = self._model(route)
            self._spent(model, row, self._cost.labels(model, self._upstream(row.upstream)))

    def _where(self, facts: Ending) -> tuple[str, str, str]:
        """Endpoint, model, upstream, as labels; no upstream is the empty label, which is an absent one to Prometheus."""
        endpoint = facts.endpoint if facts.endpoint in self._endpoints else OTHER
        return endpoint, self._model(facts.route), "" if facts.upstream is None else self._upstream(facts.upstream)

    def _born(self, where: tuple[str, str, str]) -> _Children:
        route = where[1:]
        timing = self._duration.labels(*where), self._first_token.labels(*route), self._token_gap.labels(*route)
        return _Children(*timing, self._cost.labels(*route), {})

    def _status(self, status: int, where: tuple[str, str, str], children: _Children) -> Number:
        if status not in _STATUSES:  # an upstream may answer with any number
            return self._requests.labels(*where, f"{min(status // 100, 9)}xx")
        counter = children.statuses[status] = self._requests.labels(*where, str(status))
        return counter

    def _error(self, code: str) -> None:
        verdict = TABLE.get(code)
        self._errors.labels(code if verdict else OTHER, verdict.blame if verdict else OTHER).inc()

    def _spent(self, model: str, facts: Ending | LedgerRow, cost: Number) -> None:
        usage = facts.usage
        if facts.cost_nano is not None and facts.currency == "USD":
            cost.inc(_countable(facts.cost_nano) / 1e9)
        for direction, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            if count is not None and count > 0:
                key = model, direction, facts.tokens_source
                counter = self._tokens.get(key)
                if counter is None:
                    counter = self._tokens[key] = self._token_count.labels(model, direction, facts.tokens_source.value)
                counter.inc(_countable(count))
        if usage.cached_tokens:
            self._cached.labels(model).inc(_countable(usage.cached_tokens))
        if usage.reasoning_tokens:
            self._reasoning.labels(model).inc(_countable(usage.reasoning_tokens))

    def _model(self, route: str | None) -> str:
        return route if route in self._models and route is not None else OTHER

    def _upstream(self, name: str) -> str:
        return name if name in self._ever else OTHER

    # --- within an exchange

    def attempt_failed(self, route: str, upstream: str, error: str, *, again: bool) -> None:
        """Count a failed upstream call; `error` is a code of `errors.TABLE`, `again` says that another call follows."""
        name = self._upstream(upstream)
        self._failed.labels(name, error if error in TABLE else OTHER).inc()
        if again:
            self._retries.labels(self._model(route), name).inc()

    def replayed(self) -> None:
        """Count an exchange that got the answer of an earlier one, stored or still running."""
        self._replays.inc()

    def ratelimited(self, reason: str) -> None:
        """Count an exchange refused by a limit: one of LIMITS."""
        self._limited.labels(reason if reason in LIMITS else OTHER).inc()

    def waiting(self, exchanges: int) -> None:
        """Show how many wait in the queues of routes."""
        self._waits.set(exchanges)

    def budget_warned(self) -> None:
        """Count a budget that has passed its `warn_at`; the log says whose."""
        self._warned.inc()

    def client_disconnected(self, phase: str) -> None:
        """Count a client that left: one of PHASES (before the first byte, mid-stream, on unary, cut as it read nothing)."""
        self._left.labels(phase if phase in PHASES else OTHER).inc()

    # --- the daemon

    def upstream_state(self, name: str, state: str) -> None:
        """Show the breaker of a configured upstream in `state`: one of BREAKER_STATES."""
        if name in self._upstreams:
            for each in BREAKER_STATES:
                self._state.labels(name, each).set(each == state)

    def ledger_commit(self, seconds: float) -> None:
        """Count a group commit that took `seconds`."""
        self._commit.observe(seconds)

    def ledger_failed(self) -> None:
        """Count a group commit that failed."""
        self._ledger_errors.inc()

    def ledger_queue(self, rows: int) -> None:
        """Show how many rows wait."""
        self._queue.set(rows)

    def ledger_recovered(self, rows: int) -> None:
        """Count the rows that were open at start."""
        self._recovered.inc(rows)

    def reload(self, ok: bool) -> None:  # noqa: FBT001 - the verdict is all there is to tell
        """Count a reload of the configuration."""
        self._reload_ok.set(ok)
        self._reloads.labels("ok" if ok else "bad").inc()

    def loop_lag(self, seconds: float) -> None:
        """Count a heartbeat of the event loop that came `seconds` late."""
        self._lag.observe(seconds)

    def loop_stalled(self) -> None:
        """Count a stall of the event loop, once it is over."""
        self._stalls.inc()

    def log_dropped(self, total: int) -> None:
        """Take over the log writer's count of lines lost since start (`LineWriter.dropped`)."""
        self._log_dropped.inc(max(0, total - self._log_dropped_before))
        self._log_dropped_before = max(total, self._log_dropped_before)

    def pieces(self) -> Iterator[bytes]:
        """Write all metrics in Prometheus's text format, CONTENT_TYPE, a piece at a time, between which others may run."""
        for family in self._families:
            yield from (piece.encode() for piece in family.pieces())
        yield generate_latest(self._process)

    def render(self) -> bytes:
        """Write them at once."""
        return b"".join(self.pieces())


def _countable(count: int) -> int:
    """`count` as a counter can take it: what an upstream reports may be negative or absurd, and counters raise for the one."""
    return min(max(count, 0), 1 << 53)


def _token_gap(facts: Ending) -> float | None:
    """Mean seconds between the tokens of a stream; None where fewer than two came.

    An event is a token with most upstreams. Where several come in one, the count of visible tokens is the larger number
    and the right one; where the count is too small (or there is none), it is the number of events.
    """
    usage = facts.usage
    tokens = max(facts.events, (usage.completion_tokens or 0) - (usage.reasoning_tokens or 0))
    return None if facts.stream_ms is None or tokens < 2 else facts.stream_ms / 1e3 / (_countable(tokens) - 1)
