"""Resumable streams: go on with one, ask how far it is, stop it (SPEC: "lose your connection, keep your answer")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from proxyd.errors import ProxyError
from proxyd.flow.admit import authenticate
from proxyd.flow.claims import forbidden
from proxyd.wire.tape import gone

if TYPE_CHECKING:
    from proxyd.flow.broadcast import Broadcast
    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream

JSON = (b"Content-Type", b"application/json")


async def resume(runtime: Runtime, down: Downstream, name: str) -> None:
    """Send what follows the first `received` events, and go on live. For HEAD: say how far it is."""
    received = _received(down.query.get("received", "0"))
    broadcast = await _find(runtime, down, name)
    down.request_id = broadcast.request_id
    if down.method == "HEAD":
        _tell(broadcast, down)
    else:
        await broadcast.listen(down, received)


async def stop(runtime: Runtime, down: Downstream, name: str) -> None:
    """Stop a running stream: its upstream is cancelled, its row settled with what was produced."""
    broadcast = await _find(runtime, down, name)
    if not runtime.running.stop(broadcast):
        raise ProxyError("stream_conflict", "This stream has ended already.")
    down.reply(200, [JSON], orjson.dumps({"id": broadcast.request_id, "object": "stream", "stopped": True}))


async def _find(runtime: Runtime, down: Downstream, name: str) -> Broadcast:
    """The stream of that request id or key. Raises ProxyError not_found, stream_forbidden, stream_conflict, stream_gone."""
    caller = await authenticate(runtime, down)
    found = runtime.running.find(caller.name, name) or await runtime.running.stored(caller.name, name, runtime.clock.now_us())
    if found is None:
        raise ProxyError("not_found", "There is no such stream, or it is kept no longer.")
    if found.caller != caller.name:
        raise forbidden()
    if not found.resumable:
        raise ProxyError("stream_conflict", "This exchange is not a stream; repeat its request to get its answer.")
    return found


def _tell(broadcast: Broadcast, down: Downstream) -> None:
    """Say how far a stream is, as `Stream-Events` and `Stream-State`; what its GET would answer."""
    if broadcast.tape.overflowed:
        raise gone()
    state = b"broken" if broadcast.broken else b"done" if broadcast.ended else b"running"
    headers = [*broadcast.headers, (b"Stream-Events", b"%d" % broadcast.tape.events()), (b"Stream-State", state)]
    down.begin(broadcast.status or 200, headers, None, b"")


def _received(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ProxyError("invalid_request", "`received` is the number of events that have arrived: 0 or more.", param="received")
    return int(text)
