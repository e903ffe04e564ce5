"""What exchanges share: the Snapshot that a reload replaces whole, and the Runtime that outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING

from proxyd import __version__
from proxyd.config.diff import Changes
from proxyd.errors import ProxyError
from proxyd.flow.allowances import Allowances
from proxyd.flow.bearers import Bearers
from proxyd.flow.brake import Brake
from proxyd.flow.budgets import Budgets
from proxyd.flow.pricing import price_later, price_now
from proxyd.flow.tally import Tally
from proxyd.metrics import Metrics
from proxyd.model import Ending, State
from proxyd.rules.pricelist import PriceList
from proxyd.store import upkeep
from proxyd.store.db import StoreError
from proxyd.wire.tokens import Tokenizers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
    from datetime import tzinfo
    from random import Random
    from typing import Any, Protocol

    from proxyd.clock import Clock
    from proxyd.config.schema import Config, Jwt, Upstream
    from proxyd.flow.claims import Running
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.health import Health
    from proxyd.flow.keyring import Keyring
    from proxyd.flow.memory import Memory
    from proxyd.flow.once import Once
    from proxyd.model import Caller, Endpoint, LedgerRow
    from proxyd.rules.auth import Keys
    from proxyd.rules.price import Quote
    from proxyd.rules.routes import RouteTable
    from proxyd.store.db import Database
    from proxyd.store.ledger import Ledger
    from proxyd.upstream.connection import Call, Sink

    class Door(Protocol):
        """An upstream, reached over HTTP or embedded."""

        spec: Upstream

        async def call(
            self, endpoint: Endpoint, model: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, sink: Sink, *, fresh: bool = False
        ) -> Call:
            """Send a request; its answer is pushed into `sink`."""

        async def probe(self, path: str | None) -> int:
            """Ask for a path of the host, or for the list of models; returns the status. Raises ProxyError when none comes."""

        def close(self) -> None:
            """No further calls."""

    class Tracer(Protocol):
        """Tells somebody else of each exchange that is served. Neither `begin` nor `end` waits, or raises."""

        def begin(self, ex: Exchange) -> None:
            """Set `ex.span`, and in `ex.headers` what the upstream learns of it."""

        def end(self, ex: Exchange, ending: Ending, row: LedgerRow | None) -> None:
            """Tell what became of it. Only after `begin`."""

        async def close(self) -> None:
            """Send what waits, within a bound."""


log = logging.getLogger(__name__)

NAMED = 10
"""Routes that are named in one reason."""
TIDY_SECONDS = 1.0
"""How long what was cancelled at the end may take to leave."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The configuration as exchanges use it. An exchange keeps the one that it began with."""

    config: Config
    routes: RouteTable
    keys: Keys
    anyone: Caller | None
    """The caller that everybody is under `auth: none`; None where keys are asked for."""
    doors: Mapping[str, Door]
    """The ways to the upstreams. One that is replaced closes when the last exchange that began with it has ended."""
    health: Mapping[str, Health]
    """What is known of each upstream; kept as long as its configuration is."""
    issuers: tuple[Jwt, ...] = ()
    """Whose signed tokens are taken."""
    prices: Mapping[str, Quote] = field(default_factory=dict)
    """What routes cost, by label, where the configuration says so."""
    zone: tzinfo = UTC
    """Where the days and months of budgets begin."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of one reload."""

    at_us: int
    changes: Changes = field(default_factory=Changes)
    problems: tuple[str, ...] = ()
    """Why nothing was changed; empty if the file was good."""
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """The file is in effect."""
        return not self.problems

    @property
    def message(self) -> str:
        """It, on one line; no value of the file, but its names."""
        if self.problems:
            return f"{len(self.problems)} mistake{'s' if len(self.problems) > 1 else ''}: {self.problems[0]}"
        told = [("live", self.changes.live), ("waits for a restart", self.changes.waiting)]
        return "; ".join(f"{name}: {', '.join(map(str, changes))}" for name, changes in told if changes) or "nothing changed"


class Runtime:
    """What lives as long as the process: the ledger, the upstreams' connections, the running exchanges."""

    def __init__(self, snapshot: Snapshot, clock: Clock, chance: Random, ledger: Ledger, running: Running) -> None:
        self.snapshot = snapshot
        self.clock = clock
        self.chance = chance
        self.ledger = ledger
        self.running = running
        self.memory: Memory
        self.once: Once
        self.database: Database
        self.keyring: Keyring
        """Set once by who puts everything together, as the doors are."""
        self.tracer: Tracer | None = None
        """Where the configuration asks for traces."""
        self.tokenizers = Tokenizers()
        self.price_list = PriceList()
        self.reports = asyncio.Semaphore(2)
        """Reports that may be read out of the ledger at once: each takes a thread, and a second for 300,000 rows."""
        self.bearers = Bearers(clock, self.spawn)
        self.started_at = self.loaded_at = clock.now_us()
        self.reload: Callable[[str], Awaitable[Reloaded]] | None = None
        """Take the configuration's file as it is now, for a reason that is logged; None where there is no file."""
        self.reloaded: Reloaded | None = None
        """The last reload, if there was one."""
        self.active: dict[str, Exchange] = {}
        self.stopping = False
        """Not ready any more; each connection ends with its answer."""
        self.draining = False
        """No new work."""
        self.cut: ProxyError | None = None
        """Set when what still runs is broken off: why."""
        self.metrics = Metrics(__version__)
        self.tally = Tally()
        self.brake = Brake(clock)
        budgets = Budgets(clock, ledger, self.metrics.budget_warned)
        self.allowances = Allowances(clock, budgets, self.price_list, self.metrics.ratelimited)
        self.gauges: list[Callable[[], None]] = []
        """Asked before the metrics are rendered: they set what is only worth knowing then."""
        self.observers: list[Callable[[Ending], None]] = []
        """Told of each finished exchange: the access line."""
        self._tasks: set[asyncio.Future[Any]] = set()

    def new_id(self) -> str:
        """A request id: the millisecond, so that the ledger's index grows at one end, and 64 random bits."""
        return f"req_{self.clock.now_us() // 1000:011x}{self.chance.getrandbits(64):016x}"

    def check_cut(self) -> None:
        """Refuse to go on where what runs is broken off. Raises ProxyError draining."""
        if self.cut is not None:
            raise self.cut

    def check_room(self) -> None:
        """Refuse new work that could not be served or recorded. Raises ProxyError draining, overloaded, ledger_unavailable."""
        if self.draining:
            raise ProxyError("draining", "proxyd is shutting down.", retry_after=1)
        if len(self.active) > self.snapshot.config.limits.streams:
            raise ProxyError("overloaded", "proxyd serves as many exchanges as it may (limits.streams).", retry_after=1)
        if not self.ledger.accepting:
            raise ProxyError("ledger_unavailable", "proxyd cannot write its ledger now; nothing was sent to an upstream.", retry_after=2)

    def unready(self, *, names: bool) -> list[str]:
        """Why traffic should not come now; empty if it may. `names` of models are for the operator alone."""
        reasons = ["shutting down"] if self.stopping else []
        if not self.ledger.healthy:
            reasons.append("the database cannot be written")
        if missing := self.unserved():
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            which = f": {', '.join(missing[:NAMED])}{more}" if names else ""
            reasons.append(f"no upstream takes calls for {len(missing)} model{'s' if len(missing) > 1 else ''}{which}")
        return reasons

    def unserved(self) -> list[str]:
        """The routes that are required and have no upstream that takes calls now, as the file names them."""
        now, snapshot = self.clock.monotonic(), self.snapshot
        down = {name for name, health in snapshot.health.items() if not health.answers(now)}
        routes = snapshot.config.models.items() if down else ()
        return [label for label, route in routes if route.required and all(target.upstream in down for target in route.upstreams)]

    def upstream_states(self) -> dict[str, dict[str, object]]:
        """How each upstream is: its breaker, and the exchanges that run there."""
        now = self.clock.monotonic()
        return {name: health.describe(now) for name, health in self.snapshot.health.items()}

    def measure(self) -> None:
        """Bring those metrics up to date that are not told of each change."""
        self.metrics.ledger_queue(self.ledger.backlog)
        self.metrics.waiting(self.allowances.waiting)
        for name, facts in self.upstream_states().items():
            self.metrics.upstream_state(name, str(facts["state"]))
        for gauge in self.gauges:
            gauge()

    def trace(self, ex: Exchange) -> None:
        """Let the tracer begin, if there is one; `observe` ends it."""
        if self.tracer is not None:
            self.tracer.begin(ex)

    def observe(self, ex: Exchange, row: LedgerRow | None) -> None:
        """Tell log and metrics of a finished exchange; `row` is None where no upstream was called."""
        ending = _ending(ex, row, self.clock.now_us(), self.clock.monotonic())
        self.metrics.exchange_ended(ending)
        self.tally.count(ending)
        for observer in self.observers:
            observer(ending)
        if ex.span is not None and self.tracer is not None:
            self.tracer.end(ex, ending, row)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Run work that outlives its exchange. It is awaited at shutdown; its failure is logged, never lost."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error)

    async def settled(self, timeout: float) -> None:  # noqa: ASYNC109
        """Wait until nothing that outlives exchanges is left, whatever else it leaves to do; at most so long, then cancel the rest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=TIDY_SECONDS)

    async def checkpoint(self, interval: float) -> None:
        """Write what running streams have come to, and cost, every so often, all in one commit: what a crash would leave behind."""
        while True:
            await asyncio.sleep(interval)
            rows = []
            for ex in list(self.active.values()):
                row = self._progress(ex)
                if row is not None:
                    address = None if ex.upstream is None else ex.upstream.base_url
                    if not price_now(ex, row, address, self):
                        await price_later(row, address, self)
                    rows.append(row)
            if rows:
                self.ledger.checkpoint(rows)

    async def prune(self, interval: float) -> None:
        """Delete what is past its retention, every so often, and when more answers are kept than may be."""
        while True:
            try:
                await self.pruned(upkeep.horizon(self.snapshot.config.storage.retain, self.clock.now_us()))
            except StoreError as error:
                log.warning("old rows were not deleted: %s", error)
                await asyncio.sleep(interval)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self.running.claims.crowded.wait()

    async def pruned(self, before: upkeep.Horizon) -> upkeep.Pruned:
        """Delete once what is past its retention. Raises StoreError."""
        return await upkeep.prune(self.ledger, self.running.claims, self.memory.store, before, self.clock.now_us())

    def _progress(self, ex: Exchange) -> LedgerRow | None:
        row, answer = ex.row, ex.answer
        if row is None or row.state is not State.OPEN or answer is None or answer.meter is None or not answer.streams:
            return None
        if answer.last_at == answer.noted_at and self.ledger.healthy:
            return None  # silent since the last time: ten thousand idle streams cost nothing
        answer.noted_at = answer.last_at
        return answer.progress(row)


def _ending(ex: Exchange, row: LedgerRow | None, at_us: int, now: float) -> Ending:
    """Tell of an exchange what log and metrics may know."""
    answer = ex.answer
    status = row.status if row is not None else None
    if status is None and ex.error is not None:
        status = ex.error.status
    elif status is None:
        status = ex.broadcast.status or 499 if ex.replayed and ex.broadcast is not None else 499
    known = {} if row is None else {"usage": row.usage, "tokens_source": row.tokens_source, "ttft_ms": row.ttft_ms}
    meter = answer.meter if answer is not None else None
    first = answer.first_at if answer is not None else None
    return Ending(
        at_us=at_us,
        request_id=ex.request_id,
        endpoint=ex.endpoint.value,
        status=status,
        state=row.state if row is not None else State.DONE if ex.replayed else State.FAILED,
        duration_ms=(now - ex.began) * 1000,
        caller=ex.caller.name if ex.caller is not None else None,
        model=ex.ask.model if ex.ask is not None else None,
        route=ex.route.label if ex.route is not None else None,
        upstream=ex.target,
        streamed=ex.ask.stream if ex.ask is not None else False,
        error=row.error if row is not None else ex.error.code if ex.error is not None else None if ex.replayed else "client_gone",
        attempts=ex.attempt,
        cost_nano=row.cost_nano if row is not None else None,
        currency=row.currency if row is not None else None,
        stream_ms=(answer.last_at - first) * 1000 if answer is not None and first is not None and answer.streams else None,
        events=meter.events if meter is not None else 0,
        overhead_ms=_overhead(ex, now),
        **known,  # type: ignore[arg-type]  # each as the row has it
    )


def _overhead(ex: Exchange, now: float) -> float | None:
    """Milliseconds inside proxyd: from the whole request to the upstream call, and from the answer's last byte to its settlement.

    Without the last group commit, which has a metric of its own. None where it would measure others: no call, several, one that broke.
    """
    answer = ex.answer
    if answer is None or ex.asked_at is None or ex.attempt != 1 or not answer.over or answer.failure is not None:
        return None
    return (answer.sent_at - ex.asked_at + now - answer.last_at) * 1000
