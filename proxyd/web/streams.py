"""Resumable streams: go on with one, ask how far it is, stop it, forget it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.admit import authenticate
from proxyd.flow.claims import forbidden, request_id_of
from proxyd.web.document import tell
from proxyd.web.protobuf import Protobuf, write_chat
from proxyd.wire.negotiate import answer
from proxyd.wire.proto import name_bytes
from proxyd.wire.tape import gone

if TYPE_CHECKING:
    from proxyd.flow.broadcast import Broadcast
    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream


async def resume(runtime: Runtime, down: Downstream, name: str) -> None:
    """Send what follows the first `received` events, and go on live. For HEAD: say how far it is."""
    received = _received(down.query.get("received", "0"))
    usage = _usage(down.query.get("include_usage"))
    broadcast = await _find(runtime, down, name)
    down.request_id = broadcast.request_id
    framed = broadcast.frames is not None
    wants = answer(down.accept, speaks_protobuf=True, otherwise=framed)
    if wants != framed and received:
        form = "frames of protobuf" if framed else "events"
        raise ProxyError(
            "stream_conflict", f"This stream was begun as {form}, and is numbered so: ask for it in that form, or from its start."
        )
    down.encoder = Protobuf(write_chat, runtime.clock, streamed=True) if wants else None
    if down.method == "HEAD":
        _tell(broadcast, down, usage=usage)
    else:
        await broadcast.listen(down, received, usage=wants or usage)


async def go_on(runtime: Runtime, down: Downstream, name: str, received: int) -> None:
    """Send the frames that follow the first `received` ones, for a call whose encoder is made already."""
    broadcast = await _find(runtime, down, name)
    if broadcast.frames is None and received:
        raise ProxyError("stream_conflict", "This stream was begun as events, and is numbered so: ask for it from its start.")
    await broadcast.listen(down, received, usage=True)


async def forget(runtime: Runtime, down: Downstream, name: str) -> None:
    """Stop a running exchange, and forget what is kept of one that has ended."""
    broadcast = await _find(runtime, down, name, whole=True)
    if not runtime.running.stop(broadcast):
        await runtime.running.forget(broadcast)
    tell(down, {})


async def stop(runtime: Runtime, down: Downstream, name: str) -> None:
    """Stop a running stream: its upstream is cancelled, its row settled with what was produced."""
    broadcast = await _find(runtime, down, name)
    if not runtime.running.stop(broadcast):
        raise ProxyError("stream_conflict", "This stream has ended already.")
    tell(down, {"id": broadcast.request_id, "object": "stream", "stopped": True})


async def _find(runtime: Runtime, down: Downstream, name: str, *, whole: bool = False) -> Broadcast:
    """The stream of that request id or key. Raises ProxyError not_found, stream_forbidden, stream_conflict, stream_gone."""
    caller = await authenticate(runtime, down)
    found = None
    for known in (name, *_told_name(name)):
        found = (
            found or runtime.running.find(caller.name, known) or await runtime.running.stored(caller.name, known, runtime.clock.now_us())
        )
    if found is None:
        raise ProxyError("not_found", "There is no such stream, or it is kept no longer.")
    if found.caller != caller.name:
        raise forbidden()
    if not (found.resumable or whole):
        raise ProxyError("stream_conflict", "This exchange is not a stream; repeat its request to get its answer.")
    return found


def _tell(broadcast: Broadcast, down: Downstream, *, usage: bool | None) -> None:
    """Say how far a stream is, as `Stream-Events` and `Stream-State`; what its GET would answer."""
    source = broadcast if broadcast.frames is None or down.encoder is None else broadcast.frames
    if source.tape.overflowed:
        raise gone()
    events = source.tape.events(() if (source.wants_usage if usage is None else usage) else source.apart)
    state = b"broken" if broadcast.broken else b"done" if broadcast.ended else b"running"
    headers = [*broadcast.headers, (b"Stream-Events", b"%d" % events), (b"Stream-State", state)]
    down.begin(broadcast.status or 200, headers, b"")


def _told_name(name: str) -> list[str]:
    """The request id that a protobuf client was told as its handle, if it is one."""
    try:
        return [request_id_of(name_bytes(name))]
    except ProxyError:
        return []


def _usage(text: str | None) -> bool | None:
    """Whether the usage event is wanted; None: as it was begun."""
    if text not in {None, "true", "false"}:
        raise ProxyError("invalid_request", "`include_usage` is true or false.", param="include_usage")
    return None if text is None else text == "true"


def _received(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ProxyError("invalid_request", "`received` is the number of events that have arrived: 0 or more.", param="received")
    return int(text)
