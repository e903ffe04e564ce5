"""Which upstream answers: attempts, one after the other, until one has said its first word or nothing is left to try.

The law of this file: the commit point is its return. Until then nothing has reached the client and another upstream may be
tried; afterwards there is no way back here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING

from proxyd.errors import Blame, ProxyError
from proxyd.flow.answer import REFUSAL_LIMIT, Answer
from proxyd.flow.settle import settle_attempt
from proxyd.model import LedgerRow
from proxyd.rules import retry, routes
from proxyd.store.db import StoreError
from proxyd.upstream import kinds
from proxyd.wire.body import Edits, route_asks_usage, upstream_body
from proxyd.wire.faults import in_band, refusal, refuses_usage
from proxyd.wire.headers import retry_after, should_retry

if TYPE_CHECKING:
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.health import Health
    from proxyd.flow.runtime import Runtime
    from proxyd.rules.routes import Target

log = logging.getLogger(__name__)
REFUSAL_TIME = 5.0
"""Seconds that an error document may take from its first byte to its last."""
_ERROR = re.compile(rb'\{\s*"error"\s*:\s*[{"\[]')


async def dispatch(ex: Exchange, runtime: Runtime) -> Answer:
    """Get an answer under way. Returns it with its first event in hand; raises the last attempt's ProxyError."""
    plan = None
    history: list[retry.Attempt] = []
    told = 0
    while True:
        now = runtime.clock.monotonic()
        step: retry.Try | retry.GiveUp | None = _only(ex, now) if plan is None else None
        if step is None:
            plan = plan or _plan(ex, runtime)
            step = await _next(ex, runtime, plan, history)
        told += _tell(ex, runtime, history[told:], again=not isinstance(step, retry.GiveUp))
        if isinstance(step, retry.GiveUp):
            raise _given_up(ex, history, step)
        if step.wait > 0:
            await asyncio.sleep(step.wait)
        health = ex.snapshot.health[step.target.upstream]
        ticket = health.begin(runtime.clock.monotonic(), spends=step.spends)
        if ticket is None:
            continue  # its breaker opened while we waited: decide anew
        ex.ticket = (health, ticket)
        try:
            answer = await _attempt(ex, runtime, step.target, fresh=step.fresh)
        except ProxyError as error:
            settle_attempt(ex, error, runtime)
            if error.blame is Blame.US:
                raise  # no upstream's failure, and no other could do better
            if _asked_too_much(ex, health, error):
                continue  # the same one again, without
            plan = plan or _plan(ex, runtime)
            history.append(retry.Attempt(step.target, error, runtime.clock.monotonic()))
        else:
            now = runtime.clock.monotonic()
            health.spoke(ticket, now, now - answer.sent_at)
            return answer


async def _next(ex: Exchange, runtime: Runtime, plan: retry.Plan, history: list[retry.Attempt]) -> retry.Try | retry.GiveUp:
    """Decide the next call; none, where those that failed have cost what the caller had left."""
    now = runtime.clock.monotonic()
    step = retry.next_step(plan, history, _facts(ex, now), now, runtime.chance.random())
    if history and isinstance(step, retry.Try) and not await runtime.allowances.affords(ex):
        return retry.GiveUp("allowance")
    return step


def _tell(ex: Exchange, runtime: Runtime, failed: list[retry.Attempt], *, again: bool) -> int:
    """Count and log attempts once it is known whether another follows, and not twice where a breaker makes us decide anew."""
    for attempt in failed:
        error, upstream = attempt.error, attempt.target.upstream
        runtime.metrics.attempt_failed(ex.label, upstream, error.code, again=again)
        if error.blame is Blame.UPSTREAM:
            told = {"request_id": ex.request_id, "upstream": upstream, "error": error.code, "status": error.status}
            log.warning("an attempt failed: %s", _why(error), extra=told)
    return len(failed)


def _why(error: ProxyError) -> str:
    """What the operator should know of a failure. An upstream's own words are not it: they may quote the prompt, or a key."""
    if error.inside:
        return "the upstream's answer began with an error"
    if error.body is not None:
        return f"the upstream answered with status {error.status}"
    cause = error.__cause__
    return error.message if cause is None else f"{error.message} {type(cause).__name__}: {cause}"


def _asked_too_much(ex: Exchange, health: Health, error: ProxyError) -> bool:
    """Whether the upstream refuses what proxyd had added to the request, not the client; it is remembered."""
    if not (ex.asked_usage and refuses_usage(error)):
        return False
    if not health.refuses_usage:
        log.warning("upstream %s refuses stream_options: its streams are not asked for their usage", ex.target)
    health.refuses_usage = True
    return True


def _only(ex: Exchange, now: float) -> retry.Try | None:
    """The first try where there is nothing to choose: one upstream, and it takes calls. None where the rules must decide."""
    assert ex.route is not None  # noqa: S101 - admit has run
    targets = ex.route.targets
    return retry.Try(targets[0]) if len(targets) == 1 and ex.snapshot.health[targets[0].upstream].ready(now) else None


def _plan(ex: Exchange, runtime: Runtime) -> retry.Plan:
    route = ex.route
    assert route is not None  # noqa: S101 - admit has run
    facts = _facts(ex, runtime.clock.monotonic())
    totals = [ex.snapshot.config.upstreams[target.upstream].timeouts.total for target in route.targets]
    limits = [total for total in totals if total is not None]
    deadline = ex.began + max(limits) if limits and len(limits) == len(totals) else None
    return retry.Plan(route.model.retry, tuple(routes.order(route, facts, runtime.chance.random())), deadline)


def _facts(ex: Exchange, now: float) -> dict[str, routes.Facts]:
    """What is known now of the upstreams of the exchange's route."""
    assert ex.route is not None  # noqa: S101 - admit has run
    return {target.upstream: ex.snapshot.health[target.upstream].facts(now) for target in ex.route.targets}


def _given_up(ex: Exchange, history: list[retry.Attempt], step: retry.GiveUp) -> ProxyError:
    """The last attempt's error tells best; without one, every upstream rests."""
    log.debug("nothing more is tried: %s", step.reason, extra={"request_id": ex.request_id})
    if not history:
        return ProxyError("upstream_overloaded", "Every upstream of this model is resting after failures.", retry_after=step.retry_after)
    error = history[-1].error
    if step.retry_after is not None:
        error.retry_after = step.retry_after
    return error


async def _attempt(ex: Exchange, runtime: Runtime, target: Target, *, fresh: bool) -> Answer:
    """Call one upstream and wait for its first event. Raises ProxyError if it fails before that."""
    ask, model = ex.ask, ex.model
    assert ask is not None  # noqa: S101 - admit has run
    ex.target = target.upstream
    spec = ex.upstream = ex.snapshot.config.upstreams[target.upstream]
    willing = kinds.may_ask_usage(spec) and not ex.snapshot.health[target.upstream].refuses_usage
    said = route_asks_usage(model.force, model.drop)
    heard = ask.wants_usage and "stream_options" not in model.force  # the client's own word reaches the upstream
    ask_usage = ex.asked_usage = ask.stream and said is None and willing and not heard
    unasked = (ask_usage or said is True) and not ask.wants_usage
    rename = kinds.traits(spec).rename_max_tokens
    edits = Edits(target.model, model.set, model.force, model.drop, ask_usage=ask_usage, rename_max_tokens=rename)
    body = upstream_body(ask, edits)
    ex.attempt += 1
    ex.answer = None
    row = _row(ex, runtime, target)
    try:
        claimed = runtime.running.write(ex, runtime)  # in one commit with the row
        opened = runtime.ledger.open(row)
        try:
            await opened  # on disk before the upstream hears of it: what may cost has a row
        finally:
            if opened.done() and not opened.cancelled() and opened.exception() is None:
                ex.row = row  # also where we were stopped just before we heard of it: a row that stands must be settled
        if claimed is not None:
            await claimed
    except StoreError:
        raise ProxyError(
            "ledger_unavailable", "proxyd cannot write its ledger now; nothing was sent to an upstream.", retry_after=2
        ) from None
    # One that others may join keeps its usage event: each of them is given it or not. One of protobuf always ends with it.
    strip, note = (False, unasked or ask.wants_usage) if ex.broadcast is not None else (unasked and not ex.tells_usage, False)
    answer = ex.answer = Answer(runtime.clock, ask.endpoint, streamed=ask.stream, strip_usage=strip, note_usage=note)
    answer.asked_size = len(body)
    answer.call = await ex.snapshot.doors[target.upstream].call(ask.endpoint, target.model, ex.headers, body, answer, fresh=fresh)
    await _first_word(answer, spec.timeouts.first_byte, ex.snapshot.config.streams.ping)
    return await _judge(answer, spec.api_key, runtime)


async def _first_word(answer: Answer, limit: float | None, ping: float | None) -> None:
    """Wait for the head and the first event, and give the attempt up when they do not come in time."""
    timer = None
    if limit is not None:
        timer = asyncio.get_running_loop().call_later(limit, _late, answer, limit)
    try:
        await answer.started()
        await answer.begun(ping if answer.may_stream else None)
    finally:
        if timer is not None:
            timer.cancel()


def _late(answer: Answer, limit: float) -> None:
    answer.fail(ProxyError("upstream_timeout", f"The upstream did not begin its answer within {limit:g} seconds."))


async def _judge(answer: Answer, secret: str | None, runtime: Runtime) -> Answer:
    """Take the answer, or turn what it says into the error that it is."""
    if answer.failure is not None and not answer.status:
        raise answer.failure
    if 200 <= answer.status < 300:
        # Only an answer that begins so: whether a later error came in the same packet must not decide what the client sees.
        if answer.streams and answer.had_error and answer.meter is not None and not answer.meter.produced():
            raise in_band(answer.meter.last_error, secret)
        begun = answer.meter is not None and answer.meter.begun  # comments are no answer, and nobody has had them yet
        if answer.failure is not None and not (answer.ready and begun):
            raise answer.failure
        if answer.over and not begun:
            raise ProxyError("upstream_incomplete", "The upstream's answer is empty.")
        await _judge_document(answer, secret)
        return answer
    if 300 <= answer.status < 400:
        raise ProxyError("upstream_bad_response", "The upstream answered with a redirect, which proxyd does not follow.")
    body = await _refusal_body(answer)
    error = refusal(answer.status, body, secret)
    error.retry_after = retry_after(answer.headers, runtime.clock.now_us() / 1e6)
    if error.code != "upstream_auth":  # what that one says is about proxyd
        error.advice = should_retry(answer.headers)
    raise error


async def _judge_document(answer: Answer, secret: str | None) -> None:
    """Give up a document that begins as no answer does, while another upstream may be tried."""
    opening = answer.meter.opening if answer.meter is not None else b""
    if opening and opening[:1] not in b"{[":
        raise ProxyError("upstream_bad_response", "The upstream's answer is not a JSON document.")
    if _ERROR.match(opening):
        await _patiently(answer)
        if answer.over and answer.failure is None and answer.had_error and answer.meter is not None:
            raise in_band(answer.meter.last_error, secret)


async def _refusal_body(answer: Answer) -> bytes:
    """The upstream's error document, as far as it comes in time."""
    size = sum(map(len, answer.ready))

    def take(data: bytes) -> None:
        nonlocal size
        size += len(data)
        answer.ready.append(data)
        if size > REFUSAL_LIMIT:
            answer.fail(ProxyError("upstream_bad_response", "The upstream's error answer has no end."))

    answer.push = take
    await _patiently(answer)
    answer.close()
    meter = answer.meter
    if meter is not None and meter.decoded is not None:  # identity was asked for
        return meter.decoded
    held = meter.take_held() if meter is not None else b""
    return b"".join([*answer.ready, held])[:REFUSAL_LIMIT]


async def _patiently(answer: Answer) -> None:
    """Wait for the end of an error document: it is short, or it is cut short."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REFUSAL_TIME):
            await answer.ended()


def _row(ex: Exchange, runtime: Runtime, target: Target) -> LedgerRow:
    assert ex.ask is not None  # noqa: S101 - admit has run
    assert ex.caller is not None  # noqa: S101
    return LedgerRow(
        id=runtime.ledger.next_id(),
        request_id=ex.request_id,
        attempt=ex.attempt,
        caller=ex.caller.name,
        endpoint=ex.endpoint.value,
        protocol=ex.protocol,
        model=ex.ask.model,
        upstream=target.upstream,
        upstream_model=target.model,
        streamed=ex.ask.stream,
        created_at=runtime.clock.now_us(),
        bytes_in=ex.bytes_in,
        conversation_id=f"c_{ex.wishes.conversation}" if ex.wishes.conversation is not None else None,
    )
