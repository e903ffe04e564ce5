"""The order of one exchange. This page is the road; only it knows which verb follows which.

admit      who asks, for what, and may they            refused here: nothing was sent
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
from proxyd.flow.dispatch import dispatch
from proxyd.flow.exchange import Exchange
from proxyd.flow.relay import finish, relay, unheard
from proxyd.flow.settle import settle
from proxyd.wire.faults import error_event

if TYPE_CHECKING:
    from proxyd.flow.runtime import Runtime
    from proxyd.model import Endpoint
    from proxyd.web.downstream import Downstream

log = logging.getLogger(__name__)


async def handle(runtime: Runtime, endpoint: Endpoint, down: Downstream) -> None:
    """Serve one relayed request from its head to its settled row. Raises only cancellation: the client left."""
    clock = runtime.clock
    ex = Exchange(down.request_id, endpoint, runtime.snapshot, clock.monotonic(), clock.now_us())  # keeps this snapshot
    runtime.active[ex.request_id] = ex
    drained = False
    try:
        await admit(ex, runtime, down)  # refused here: no upstream ever hears of it
        ex.answer = await dispatch(ex, runtime)  # an upstream has said something; before this, others may be tried
        await relay(ex, ex.answer, down)  # from here on there is no second try
        await settle(ex, runtime)  # on disk before the client sees the end
        finish(ex, down)
    except ProxyError as error:
        ex.error = error
        await settle(ex, runtime)
        if down.committed:
            down.abort(error_event(error))  # a broken answer must look broken
        else:
            down.refuse(error)
    except asyncio.CancelledError:
        ex.client_left = True
        if ex.row is not None and ex.answer is not None and ex.model.on_disconnect is OnDisconnect.DRAIN:
            drained = True
            runtime.spawn(unheard(ex, ex.answer, runtime))  # reads on for exact usage, then settles
        raise
    except Exception:
        log.exception("exchange failed", extra={"request_id": ex.request_id})
        ex.error = ProxyError("internal", "proxyd failed to serve this request; its log says why.")
        if down.committed:
            down.abort(error_event(ex.error))
        else:
            down.refuse(ex.error)
    finally:
        down.steer(None)
        if not drained:
            if ex.answer is not None:
                ex.answer.close()  # closing is what stops an upstream that still generates
            settle(ex, runtime)  # once, always, without awaiting
            del runtime.active[ex.request_id]
