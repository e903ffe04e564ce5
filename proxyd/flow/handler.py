"""The order of one exchange. This page is the road; only it knows which verb follows which.

admit      who asks, for what, and may they            refused, joined or replayed here: nothing was sent
reserve    room under every limit                      behind the claim: an answer from a tape uses up nothing
dispatch   which upstream answers; retries live here   until the first event is in hand
relay      bytes pass                                  from here on there is no second try
settle     the row on disk, then the answer's end
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from proxyd.config.schema import OnDisconnect
from proxyd.errors import ProxyError
from proxyd.flow.admit import admit
from proxyd.flow.claims import REPLAYED, RESUMABLE
from proxyd.flow.dispatch import dispatch
from proxyd.flow.exchange import Exchange
from proxyd.flow.relay import finish, relay, unheard
from proxyd.flow.settle import settle
from proxyd.rules.idempotency import Verdict
from proxyd.wire.faults import error_event
from proxyd.wire.headers import upstream_request_id

if TYPE_CHECKING:
    from proxyd.flow.answer import Answer
    from proxyd.flow.broadcast import Broadcast
    from proxyd.flow.runtime import Runtime
    from proxyd.model import Endpoint
    from proxyd.web.downstream import Downstream

    Headers = tuple[tuple[bytes, bytes], ...]

log = logging.getLogger(__name__)


async def handle(runtime: Runtime, endpoint: Endpoint, down: Downstream) -> None:
    """Serve one relayed request from its head to its end. Raises ProxyError for a refusal, and cancellation: the client left."""
    clock = runtime.clock
    ex = Exchange(down.request_id, endpoint, runtime.snapshot, clock.monotonic(), clock.now_us())  # keeps this snapshot
    runtime.active[ex.request_id] = ex
    runtime.metrics.exchange_begun()
    down.notes = lambda: runtime.allowances.headers(ex)  # with whichever answer it comes to
    try:
        verdict = await admit(ex, runtime, down)  # refused here: no upstream ever hears of it
    except BaseException as error:
        cut = None if isinstance(error, Exception) else runtime.cut  # not the client left: we do
        ex.error = error if isinstance(error, ProxyError) else cut
        ex.client_left = not isinstance(error, Exception) and cut is None
        if ex.broadcast is not None and ex.broadcast.request_id == ex.request_id:  # somebody may have joined it meanwhile
            break_off(ex.broadcast, ex.error or ProxyError("client_gone", "This exchange was stopped."))
        _leave(ex, runtime)
        if cut is not None:
            break_off(down, cut)  # in the middle of its body, say
        raise
    try:
        if ex.broadcast is None:
            down.on_leaving(lambda: _stop(ex))
            await serve(ex, runtime, down)
        elif verdict is Verdict.RUN:
            ex.task = runtime.spawn(serve(ex, runtime, ex.broadcast))  # it outlives this client, who listens like any other
            ex.task.add_done_callback(lambda _: _stillborn(ex, runtime))
            await ex.broadcast.listen(down, extra=RESUMABLE if ex.key is None else (), usage=ex.tells_usage)
        else:
            await _again(ex, ex.broadcast, runtime, down, extra=REPLAYED if verdict is Verdict.REPLAY else ())
    except asyncio.CancelledError:
        if runtime.cut is None and not down.broken_off:
            runtime.metrics.client_disconnected("unary" if ex.ask and not ex.ask.stream else "stream" if down.committed else "wait")
        raise


async def _again(ex: Exchange, broadcast: Broadcast, runtime: Runtime, down: Downstream, *, extra: Headers) -> None:
    """Give the answer of an earlier exchange, whether it has ended or runs."""
    ex.replayed = True
    runtime.metrics.replayed()
    down.request_id = broadcast.request_id  # the same headers as the first time
    try:
        await broadcast.listen(down, extra=extra, usage=ex.tells_usage)
    except ProxyError as error:
        ex.error = error
        raise
    finally:
        _leave(ex, runtime)


async def serve(ex: Exchange, runtime: Runtime, down: Downstream | Broadcast) -> None:
    """Run an admitted exchange. Raises only cancellation: who asked for it is gone."""
    drained = False
    try:
        runtime.trace(ex)  # one span, whatever comes of it; what is replayed or joined calls no model
        await runtime.memory.recall(ex)  # what was said before comes before what is asked
        await runtime.allowances.reserve(ex)  # here, for a refusal reaches those who joined too, and the claim is given back
        runtime.check_cut()  # nobody would wait for what is sent now
        ex.answer = await dispatch(ex, runtime)  # an upstream has said something; before this, others may be tried
        await runtime.running.begun(ex)
        await relay(ex, ex.answer, down)  # from here on there is no second try
        await settle(ex, runtime)  # on disk before the client sees the end
        finish(ex, down)
    except ProxyError as error:
        ex.error = error
        error.upstream_id = None if ex.answer is None else upstream_request_id(ex.answer.headers)
        try:
            await settle(ex, runtime)
        finally:
            break_off(down, error)  # also where we are stopped meanwhile: others may listen
    except asyncio.CancelledError:
        if runtime.cut is not None:  # not the client left: we do
            if not ex.settled:  # else it was whole, and is kept for who asks again
                ex.error = runtime.cut
            break_off(down, runtime.cut)
            raise
        ex.client_left = True
        if ex.row is not None and ex.answer is not None and ex.broadcast is None and ex.reads_on:
            drained = True
            runtime.spawn(_drain(ex, ex.answer, runtime))
        elif ex.broadcast is not None:
            break_off(ex.broadcast, ProxyError("client_gone", "This exchange was stopped."))
        raise
    except Exception:
        log.exception("exchange failed", extra={"request_id": ex.request_id})
        ex.error = ProxyError("internal", "proxyd failed to serve this request; its log says why.")
        break_off(down, ex.error)
    finally:
        down.steer(None)
        if not drained:
            if ex.answer is not None:
                ex.answer.close()  # closing is what stops an upstream that still generates
            _leave(ex, runtime)


async def _drain(ex: Exchange, answer: Answer, runtime: Runtime) -> None:
    """Read on for exact usage, then settle."""
    try:
        await unheard(ex, answer)
    finally:
        answer.close()
        _leave(ex, runtime)


def break_off(down: Downstream | Broadcast, error: ProxyError) -> None:
    """Say an error properly, or break off what has begun: a broken answer must look broken."""
    if down.committed:
        down.abort(error_event(error))
    else:
        down.refuse(error)


def _stop(ex: Exchange) -> None:
    """The client leaves: its upstream stops now. What else is to be done is done by the cancellation that follows, in its turn."""
    if ex.answer is not None and ex.model.on_disconnect is OnDisconnect.CANCEL:
        ex.answer.close()


def _leave(ex: Exchange, runtime: Runtime) -> None:
    """Settle once, always, without awaiting; whatever happened."""
    settle(ex, runtime)
    runtime.running.close(ex)
    runtime.memory.release(ex)
    runtime.active.pop(ex.request_id, None)


def _stillborn(ex: Exchange, runtime: Runtime) -> None:
    """It was stopped before its first step, so that not even its `finally` ran."""
    if not ex.settled and ex.broadcast is not None:
        ex.client_left = True
        break_off(ex.broadcast, ProxyError("client_gone", "This exchange was stopped."))
        _leave(ex, runtime)
