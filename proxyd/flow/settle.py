"""The last step, always: what the exchange came to goes into its row, to the metrics and to the log.

The law of this file: `settle` never awaits and never fails. It updates memory and enqueues; what it returns can be awaited
by who wants to know that the row is on disk. Push-back happens at the door, never here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.errors import TABLE, Blame
from proxyd.flow.pricing import price_later, price_now
from proxyd.model import Endpoint, LedgerRow, Source, State, Usage
from proxyd.wire.headers import upstream_request_id

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from proxyd.errors import ProxyError
    from proxyd.flow.answer import Answer
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.runtime import Runtime

WORKING = frozenset({"upstream_cut", "upstream_timeout", "upstream_incomplete", "client_gone", "upstream_error", "draining", "internal"})
"""Failures of an upstream that was at work: it has read the prompt, and perhaps produced something, so both are counted."""


class OnDisk:
    """Await it to know that the rows are on disk. Being cancelled meanwhile cancels nobody but the waiter."""

    __slots__ = ("_futures",)

    def __init__(self, *futures: asyncio.Future[None] | None) -> None:
        self._futures = futures

    def __await__(self) -> Generator[object, None, None]:
        """Wait for the commits."""
        for future in self._futures:
            if future is not None and not future.done():
                # Only counting runs in a task, which must not be cancelled with its waiter; the ledger's futures do not mind.
                yield from (asyncio.shield(future) if isinstance(future, asyncio.Task) else future).__await__()


def settle(ex: Exchange, runtime: Runtime) -> OnDisk:
    """Settle an exchange once; later calls do nothing. What comes back waits for the attempts that failed before, too."""
    if ex.settled:
        return OnDisk()
    ex.settled = True
    _leave(ex, ex.error, runtime)
    row, ex.row = ex.row, None
    if row is None:
        runtime.observe(ex, None)
        _free(ex, runtime)
        return OnDisk(runtime.running.finish(ex, runtime), *ex.earlier)
    row.state, row.error = ex.outcome()
    if row.error is not None and TABLE[row.error].blame is Blame.UPSTREAM:
        runtime.metrics.attempt_failed(ex.label, row.upstream, row.error, again=False)
    if ex.client_left and not ex.committed:
        row.status = 499
    elif ex.error is not None and not ex.committed:
        row.status = ex.error.status
    elif ex.answer is not None and ex.answer.status:
        row.status = ex.answer.status
    row.bytes_out = ex.bytes_out
    if row.state is State.DONE:
        runtime.memory.keep(ex)  # in the same group commit
    else:
        runtime.running.finish(ex, runtime)  # at once: who tries again must find it
    return OnDisk(_close(ex, row, ex.answer, runtime), *ex.earlier)


def settle_attempt(ex: Exchange, error: ProxyError, runtime: Runtime) -> None:
    """Settle an attempt that failed before anything reached the client; another may follow."""
    _leave(ex, error, runtime)
    if ex.answer is not None:
        ex.answer.close()
    row, ex.row = ex.row, None
    if row is None:
        return
    row.state, row.error = State.FAILED, error.code
    answer = ex.answer
    row.status = answer.status if answer is not None and answer.status >= 400 else error.status
    ex.earlier.append(_close(ex, row, answer, runtime, last=False))


def _leave(ex: Exchange, error: ProxyError | None, runtime: Runtime) -> None:
    """Give up the attempt's place at its upstream, telling how it went; a client that left says nothing of the upstream."""
    if ex.ticket is not None:
        health, ticket = ex.ticket
        ex.ticket = None
        health.ended(ticket, runtime.clock.monotonic(), error, abandoned=ex.client_left and error is None)


@dataclass(frozen=True, slots=True)
class _Closing:
    """A row that is about to be closed, and what must be known of its exchange, which may go on to another attempt meanwhile."""

    ex: Exchange
    row: LedgerRow
    address: str | None
    """The base URL of the attempt's upstream."""
    last: bool
    """No attempt follows."""


def _close(ex: Exchange, row: LedgerRow, answer: Answer | None, runtime: Runtime, *, last: bool = True) -> asyncio.Future[None]:
    """Fill in what was read, counting what the upstream did not report, price it, and enqueue."""
    clock = runtime.clock
    row.settled_at = clock.now_us()
    row.latency_ms = round((clock.monotonic() - ex.began) * 1000, 3)
    closing = _Closing(ex, row, None if ex.upstream is None else ex.upstream.base_url, last)
    text = _facts(ex, row, answer)
    if row.tokens_source is Source.NONE and text is not None:
        return _later(closing, _count(closing, text, runtime), runtime)
    if not price_now(ex, row, closing.address, runtime):
        return _later(closing, price_later(row, closing.address, runtime), runtime)
    return _enqueue(closing, runtime)


def _enqueue(closing: _Closing, runtime: Runtime) -> asyncio.Future[None]:
    """The row is final: count it against the limits, tell of it, write it."""
    ex, row = closing.ex, closing.row
    runtime.allowances.record(ex, row)
    _free(ex, runtime)
    if closing.last:
        if row.cost_nano is not None and row.currency is not None:
            ex.cost = row.cost_nano, row.currency
        runtime.observe(ex, row)
    else:
        runtime.metrics.attempt_ended(ex.label, row)
        runtime.tally.spend(row.usage)
    on_disk = runtime.ledger.settle(row)
    claim = runtime.running.finish(ex, runtime) if closing.last else None
    return on_disk if claim is None else claim  # written in this order, in one commit


def _free(ex: Exchange, runtime: Runtime) -> None:
    """Give back what the exchange has reserved, once all its attempts are counted."""
    if ex.settled and not ex.counting:
        runtime.allowances.settle(ex)


def _later(closing: _Closing, fill_in: Coroutine[object, object, None], runtime: Runtime) -> asyncio.Future[None]:
    """Fill in what must not hold up the loop, then enqueue; what the exchange has reserved is held as long."""
    ex = closing.ex

    async def done() -> None:
        try:
            await fill_in
        finally:  # a row that lacks something is better than one that stays open, and its key with it
            ex.counting -= 1
            on_disk = _enqueue(closing, runtime)
        await on_disk

    ex.counting += 1
    return runtime.spawn(done())


def _facts(ex: Exchange, row: LedgerRow, answer: Answer | None) -> str | None:
    """Copy what the meter has read into the row. Returns the text to count if counts are owed, else None."""
    if answer is None:
        return None
    row.upstream_request_id = upstream_request_id(answer.headers)
    if answer.first_at is not None:
        row.ttft_ms = round((answer.first_at - ex.began) * 1000, 3)
    if answer.meter is not None:
        reading = answer.meter.read()
        row.upstream_model = reading.model or row.upstream_model
        row.service_tier = reading.service_tier
        row.finish_reason = next((reason for _, reason in sorted(reading.finish_reasons.items()) if reason), None)
        if reading.usage is not None:
            row.usage, row.tokens_source = reading.usage, Source.UPSTREAM
            return None
    if answer.call is None:  # nothing was sent: it ended while it waited for a connection
        return None
    if row.state is State.DONE or (row.error in WORKING and answer.status < 400):
        return answer.meter.produced() if answer.meter is not None else ""
    return None


async def _count(closing: _Closing, text: str, runtime: Runtime) -> None:
    """Count prompt and answer with a tokenizer, off the loop, and price them."""
    ex, row = closing.ex, closing.row
    prompt, completion, source = await asyncio.to_thread(_counted, ex, row, text, runtime)
    row.usage = Usage(prompt, completion, prompt + completion)
    row.tokens_source = source
    if not price_now(ex, row, closing.address, runtime):
        await price_later(row, closing.address, runtime)


def _counted(ex: Exchange, row: LedgerRow, text: str, runtime: Runtime) -> tuple[int, int, Source]:
    """Runs in a thread. The less certain of the two sources stands for both."""
    ask = ex.ask
    assert ask is not None  # noqa: S101
    prompt, prompt_source = runtime.tokenizers.count_prompt(ask, row.upstream_model)
    if ask.endpoint is Endpoint.EMBEDDINGS:
        return prompt, 0, prompt_source
    completion, source = runtime.tokenizers.count(text, row.upstream_model)
    return prompt, completion, Source.ESTIMATED if Source.ESTIMATED in {prompt_source, source} else source
