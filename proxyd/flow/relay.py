"""Bytes pass: the upstream's connection pushes them through the meter into the client's; this only waits for the end.

A streamed answer is committed with its first event. An unstreamed one is held whole, so that one that breaks can still be
answered with a proper error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.watch import Watch
from proxyd.wire.faults import in_band

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.flow.answer import Answer
    from proxyd.flow.broadcast import Broadcast
    from proxyd.flow.exchange import Exchange
    from proxyd.web.downstream import Downstream

STREAM_HEADERS = ((b"Cache-Control", b"no-cache"), (b"X-Accel-Buffering", b"no"))
"""What keeps caches and nginx from holding a stream back."""


async def relay(ex: Exchange, answer: Answer, down: Downstream | Broadcast) -> None:
    """Pass the answer on, all but its end, which is left in `ex.held`. Raises ProxyError if it breaks or is not whole."""
    watch = Watch(ex, answer, down)
    down.steer(answer)
    try:
        if answer.streams:
            _begin(ex, answer, down, STREAM_HEADERS)
        else:
            answer.push = lambda data: _overflow(ex, answer, down, data)
        if not answer.over:
            watch.start()
            await answer.ended()
    finally:
        watch.stop()
        answer.push = None  # it knows the answer: together they would wait for the garbage collector
        ex.bytes_out, ex.committed = down.bytes_out, down.committed
    if answer.failure is not None:
        raise answer.failure
    if answer.streams and not answer.finished_whole and not answer.had_error:
        # Ollama's /v1 swallows errors, others just stop; both end cleanly and look like short answers
        raise ProxyError("upstream_incomplete", "The upstream ended its answer before it was complete.")
    assert answer.meter is not None  # noqa: S101 - it has a head
    if not answer.streams and answer.had_error and not down.committed:
        # OpenRouter's 200 that holds only an error: the SDKs would see an answer without choices
        raise in_band(answer.meter.last_error, ex.upstream.api_key if ex.upstream else None)
    if not (answer.streams or down.committed or answer.finished_whole):
        # another server's page, say, where a base_url leads astray: no client of these endpoints could read it
        raise ProxyError("upstream_bad_response", "The upstream's answer is not a JSON document.")
    ex.held = answer.meter.take_held()
    ex.bytes_out = down.prepare(ex.held)


def finish(ex: Exchange, down: Downstream | Broadcast) -> None:
    """Send the end of the answer; the row is on disk."""
    answer = ex.answer
    assert answer is not None  # noqa: S101 - relay has run
    if down.committed:
        down.finish(ex.held)
    else:
        down.reply(answer.status, ex.told(), ex.held)


async def unheard(ex: Exchange, answer: Answer) -> None:
    """Read an answer to its end though the client has left (`on_disconnect: drain`)."""
    watch = Watch(ex, answer, None)
    hear = _forget if ex.recalled is None else ex.recalled.transcript.feed
    ready, answer.ready = b"".join(answer.ready), []
    hear(ready)  # it came before the answer was begun, or since its client left
    answer.push = hear
    answer.resume()
    watch.start()
    try:
        await answer.ended()
    finally:
        watch.stop()
        ex.error = answer.failure


def _begin(ex: Exchange, answer: Answer, down: Downstream | Broadcast, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Commit with what has arrived so far, and let the rest be pushed straight through."""
    ready, answer.ready = b"".join(answer.ready), []
    down.begin(answer.status, answer.told() + extra, ready)
    answer.push = down.write if ex.recalled is None else _heard(ex.recalled.transcript.feed, down.write)
    if ex.recalled is not None:
        ex.recalled.transcript.feed(ready)


def _heard(note: Callable[[bytes], None], pass_on: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Pass bytes on, and note them for the conversation that they belong to."""

    def push(data: bytes) -> None:
        pass_on(data)
        note(data)

    return push


def _overflow(ex: Exchange, answer: Answer, down: Downstream | Broadcast, data: bytes) -> None:
    """A document larger than the meter holds passes as it comes."""
    answer.ready.append(data)
    _begin(ex, answer, down)


def _forget(_data: bytes) -> None:
    """Where bytes go that nobody hears."""
