"""The upstream's events into frames of protobuf, held as long as the client allows: the timer around `ChunkEncoder`.

What it is fed and what it gives are bytes: events of SSE, whole ones, as the meter lets them pass; whole frames. What the
timer lets go is handed to `emit`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxyd.errors import TABLE, ProxyError
from proxyd.wire import faults
from proxyd.wire.dialects import decode
from proxyd.wire.proto_stream import ChunkEncoder
from proxyd.wire.sse import SSE, whole_events
from proxyd.wire.usage import fault_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.clock import Clock
    from proxyd.wire.delivery import Delivery
    from proxyd.wire.template import Template

KEPT_BYTES = 16 << 10
"""Of events that wait to be read together."""
EVENT_LIMIT = 64 << 20
"""Bytes of one event; a larger one is left out."""
LEAST_WAIT = 0.001
"""Seconds that a finish waits for the end of the answer that it comes with, so that both leave in one packet."""


GRID = 0.010
"""Seconds. What is held leaves at multiples of it, so that the timers of a crowd of streams ring together: a wake-up of the
loop costs more than everything that is done for a token."""


def together(now: float, moment: float) -> float:
    """Seconds from now until the last moment on the grid up to `moment`, if there is one to wait for; else until `moment`."""
    aligned = moment // GRID * GRID
    return (aligned if aligned > now else moment) - now


class Packer:
    """One stream. `feed`, `end` and `fail` return what leaves now; `emit` is called with what leaves later. `stop` it at the end."""

    def __init__(self, delivery: Delivery, clock: Clock, emit: Callable[[bytes], None], *, handle: bytes = b"") -> None:
        self._encoder = ChunkEncoder(delivery, handle=handle)
        self._delay = self._encoder.delay
        self._most = min(KEPT_BYTES, delivery.max_bytes)
        self._clock = clock
        self._emit = emit
        self._events = SSE(EVENT_LIMIT)
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._plain: Template | None = None
        """What events look like that may wait in `_kept`: it costs less to read them together than one by one."""
        self._kept: list[bytes] = []
        self._room = 0
        """Bytes that may still be kept: never more than text may be held."""
        self._tail = b""
        """Frames from the finish on, for as long as LEAST_WAIT."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the stream."""
        plain = self._plain
        if plain is not None and data.startswith(plain.first) and data.endswith(plain.last):
            self._kept.append(data)
            self._room -= len(data)
            if self._timer is None:
                self._wait(self._clock.monotonic() + self._delay)
            if self._room > 0:
                return b""
            data = b""
        now = self._clock.monotonic()
        encoder = self._encoder
        out = self._take_kept()
        for event in self._split(data):
            out += encoder.feed(event, now)
        self._learn()
        if encoder.finished:
            self._tail += b"".join(out)
            self._wait(now)
            return b""
        if encoder.deadline is not None:
            self._wait(encoder.deadline)
        return b"".join(out)

    def ping(self) -> bytes:
        """Give an empty frame, which tells that the line is open."""
        return self._encoder.keepalive()

    def end(self, data: bytes) -> bytes:
        """Take the stream's last bytes; everything that is held leaves with them."""
        self._plain = None  # nothing is kept any more
        out = [self.feed(data)]
        last = self._events.end()
        if last is not None and (payload := faults.payload(last)) is not None:
            out += self._encoder.feed(payload, self._clock.monotonic())
        self.stop()
        return b"".join([*out[:1], self._take_tail(), *out[1:], *self._encoder.end()])

    def fail(self, data: bytes) -> bytes:
        """Take the last bytes of a stream that breaks; an error of ours that stands in them keeps its code and status."""
        out = self._take_kept()
        for event in self._split(data):
            error = _own_error(event)
            out += self._encoder.feed(event, self._clock.monotonic()) if error is None else self._encoder.fail(error)
        self.stop()
        return self._take_tail() + b"".join(out + self._encoder.end())

    def stop(self) -> None:
        """Nothing is emitted from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _learn(self) -> None:
        """Know what may be kept from now on."""
        self._plain = self._encoder.template if self._events.idle else None
        self._room = min(self._most, self._encoder.room) if self._plain is not None else 0

    def _take_kept(self) -> list[bytes]:
        """Have the encoder read what was kept; returns the frames that are due."""
        kept, self._kept = self._kept, []
        if not kept:
            return []
        out = self._encoder.absorb(kept, self._rings_at)
        if out is None:  # some of it only looked plain: one by one then, and nothing of it was due before
            out = [frame for event in self._split(b"".join(kept)) for frame in self._encoder.feed(event, 0.0)]
        return out

    def _split(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        events = self._events
        if events.idle and (payloads := whole_events(data)) is not None:
            return payloads
        return [payload for frame in events.feed(data) if (payload := faults.payload(frame)) is not None]

    def _take_tail(self) -> bytes:
        tail, self._tail = self._tail, b""
        return tail

    def _wait(self, moment: float) -> None:
        """Ring at a moment, or before."""
        if self._timer is not None:
            if self._rings_at <= moment + LEAST_WAIT:
                return
            self._timer.cancel()
        wait = max(LEAST_WAIT, together(self._clock.monotonic(), moment))
        self._rings_at = moment
        self._timer = asyncio.get_running_loop().call_later(wait, self._ring)

    def _ring(self) -> None:
        self._timer = None
        encoder = self._encoder
        if self._kept and encoder.deadline is None and not self._tail and (frame := encoder.at_once(self._kept)):
            self._kept = []
            self._room = self._most
            self._emit(frame)
            return
        # At the moment that was asked for, though the grid may have rung a little before it.
        out = self._take_tail() + b"".join(self._take_kept())
        out += b"".join(encoder.tick(max(self._clock.monotonic(), self._rings_at)))
        self._learn()
        if encoder.deadline is not None:
            self._wait(encoder.deadline)
        if out:
            self._emit(out)


def unpackable() -> ProxyError:
    """The upstream's answer is no stream of events that could be read."""
    return ProxyError("upstream_bad_response", "The upstream's answer came in a form that cannot be written as protobuf.")


def _own_error(event: bytes) -> ProxyError | None:
    """The error that an event of ours tells; None for anything else."""
    fault = fault_of(decode(event))
    return ProxyError(fault.code, fault.message, body=event) if fault is not None and fault.code in TABLE else None
