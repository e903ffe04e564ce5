"""An answer that outlives its client: it goes onto a tape, and to whoever listens.

To the road it is the client's side, as `Downstream` is. To clients it is what they listen to: from the first event on, or
from where they left off, each at its own pace. It ends the exchange when nobody has listened for `grace` seconds.

Of a stream that was begun as protobuf there are two: the upstream's events, and `frames`, made of them once, so that a frame's
number means the same to whoever comes back. Clients that want frames listen there, the others to the events.

The tape has the event of the stream's usage even where whoever began it did not ask for it (`apart`): each listener is given
it, or not, as it asked itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.packer import Packer, unpackable
from proxyd.model import Format
from proxyd.wire.headers import first
from proxyd.wire.meter import format_of
from proxyd.wire.tape import Tape, beyond, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxyd.clock import Clock
    from proxyd.flow.answer import Answer
    from proxyd.web.downstream import Downstream
    from proxyd.wire.delivery import Delivery
    from proxyd.wire.tape import Stretches

SLICE = 64 * 1024
"""Bytes given at once to a listener that catches up."""
LAG = 256 * 1024
"""How far a listener may fall behind an overflowed tape before the upstream is paused for it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that was said at once: a document, or a refusal."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Broadcast:
    """One answer for many listeners. The road calls begin, write, finish, reply, refuse or abort; clients call `listen`."""

    def __init__(self, request_id: str, caller: str, tape: Tape, grace: float, *, resumable: bool) -> None:
        self.request_id = request_id
        self.caller = caller
        self.resumable = resumable
        """A stream was asked for: others may go on with it in the middle."""
        self.tape = tape
        self.frames: Broadcast | None = None
        """The same answer as frames of protobuf, if it was begun so."""
        self._packer: Packer | None = None
        self._packed_end: bytes | None = None
        self._whole_of: Broadcast | None = None
        """What this one is the frames of."""
        self.streamed = False
        """It came piece by piece."""
        self.apart: Stretches = ()
        """Where on the tape events stand that only those are given who asked for the usage."""
        self.wants_usage = True
        """Whoever began it asked so."""
        # The answer, as the road's client's side
        self.committed = False
        self._size = 0
        self.status = 0
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        self.whole: Whole | None = None
        self.error: ProxyError | None = None
        self.ended = False
        """Nothing more will come."""
        self.broken = False
        """It ended without being complete."""
        # Who listens
        self.on_begun: Callable[[], object] | None = None
        self.on_silence: Callable[[], None] | None = None
        """Called when nobody has listened for `grace` seconds."""
        self._grace = grace
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: set[_Listener] = set()
        self._answer: Answer | None = None
        self._held_up = False

    def pack(self, delivery: Delivery, clock: Clock, handle: bytes) -> None:
        """Make frames of the stream that comes; `handle` is told in the first one."""
        frames = self.make_frames(self.tape.limit)
        self._packer = Packer(replace(delivery, pad_to=0), clock, frames.write, handle=handle)

    def make_frames(self, limit: int) -> Broadcast:
        """Give it frames, which somebody must write."""
        frames = Broadcast(self.request_id, self.caller, Tape(limit, Format.PROTOBUF), self._grace, resumable=self.resumable)
        frames._whole_of = self
        self.frames = frames
        return frames

    @property
    def bytes_out(self) -> int:
        """How large the body is so far, in the form that it was begun in."""
        if self.frames is not None:
            return self.frames.bytes_out
        return self._size - (0 if self.wants_usage else sum(end - begin for begin, end in self.apart))

    # The road's side.

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], data: bytes) -> None:
        """Take the head and the first bytes."""
        self.status, self.headers = status, tuple(headers)
        if self.tape.format is not Format.PROTOBUF:
            self.tape.format = format_of(first(self.headers, b"content-type"), streamed=True, head=data)
        if self._packer is not None and self.frames is not None:
            if self.tape.format is not Format.SSE or first(self.headers, b"content-encoding"):
                self.frames.refuse(unpackable())
                self._packer = None
            else:
                self.frames.begin(status, headers, b"")
        self.committed = self.streamed = True
        if self.on_begun is not None:
            self.on_begun()
        for listener in self._listeners:
            listener.begin(self)
        self.write(data)

    def write(self, data: bytes) -> None:
        """Take bytes of the body, and push them to those who are up to date."""
        self._size += len(data)
        if self._packer is not None and self.frames is not None and (packed := self._packer.feed(data)):
            self.frames.write(packed)
        before = self.tape.end
        self.tape.append(data)
        for listener in self._listeners:
            if listener.position == before and not listener.paused:
                listener.position += len(data)
                listener.write(data if listener.usage else without(data, before, self.apart))
        if self.tape.overflowed:
            self._trim()

    def ping(self, data: bytes) -> None:
        """Keep those alive who are up to date; this is no part of the answer, but for frames, which are counted."""
        if self._packer is not None and self.frames is not None:
            self.frames.write(self._packer.ping())
        for listener in self._listeners:
            if listener.position == self.tape.end and not listener.paused:
                listener.down.ping(data)

    def prepare(self, data: bytes) -> int:
        """Say how large the body will be with these last bytes."""
        if self._packer is None or self.frames is None:
            return self.bytes_out + len(data)
        self._packed_end = self._packer.end(data) if self.committed else data
        return self.bytes_out + len(self._packed_end)

    def packed(self) -> bytes | None:
        """All frames, once `prepare` has made the last ones; None where there are none, or too many."""
        frames = self.frames
        if frames is None or self._packed_end is None or frames.tape.overflowed:
            return None
        return frames.tape.whole() + self._packed_end

    def finish(self, data: bytes) -> None:
        """Take the end."""
        if self._packer is not None and self.frames is not None:
            self.frames.finish(self._packer.end(data) if self._packed_end is None else self._packed_end)
        self.tape.append(data)
        self._size += len(data)
        self.tape.closed = True
        self._end()
        for listener in list(self._listeners):
            listener.catch_up(self)

    def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Take an answer that is said at once."""
        self.status = status
        self.whole = Whole(status, tuple(headers), body)
        self._size += len(body)
        if self.frames is not None:
            self.frames.reply(status, self.whole.headers, body)
        self.committed = True
        self._end()
        self._wake()

    def refuse(self, error: ProxyError) -> None:
        """Take a refusal."""
        self.status = error.status
        self.error = error
        if self.frames is not None:
            self.frames.refuse(error)
        self.committed = True
        self._end()
        self._wake()

    def abort(self, data: bytes = b"") -> None:
        """Take a break: those who listen get these last bytes and a broken transport."""
        self.broken = True
        if self._packer is not None and self.frames is not None:
            self.frames.abort(self._packer.fail(data))
        self.tape.append(data)  # an event as any other to who counts them
        self._end()
        for listener in list(self._listeners):
            listener.catch_up(self)
        self._wake()

    def steer(self, answer: Answer | None) -> None:
        """Know whom to pause when the tape is full and a listener is slow."""
        self._answer = answer
        if self.frames is not None:
            self.frames.steer(answer)
        if self._whole_of is None and answer is not None and answer.usage_at is not None:
            self.apart = answer.usage_at  # the meter goes on to write into it

    def _end(self) -> None:
        """From now on the grace counts anew: who was away shall find the end, too."""
        self.ended = True
        if not self._heard:
            self._hush()
            self._silence()

    # The clients' side.

    async def listen(
        self, down: Downstream, received: int = 0, extra: tuple[tuple[bytes, bytes], ...] = (), *, usage: bool | None = None
    ) -> None:
        """Send the answer to one more client, from behind the first `received` events on, until it is over.

        `usage`: whether it is given the event of the stream's usage; None: as whoever began it.
        Raises ProxyError stream_gone, or invalid_request for more events than there are; nothing was sent then.
        """
        if self.frames is not None and down.take_frames():
            await self.frames.listen(down, received, extra)
            return
        listener = _Listener(down, extra, usage=self.wants_usage if usage is None else usage)
        listener.position = self._position(received, () if listener.usage else self.apart)
        self._listeners.add(listener)
        self._hush()
        try:
            down.steer(_Steered(listener, self))
            if self.streamed:
                listener.begin(self)
                listener.catch_up(self)
            while not listener.done and not (self.ended and not self.streamed):
                await listener.wait()
            if not self.streamed:
                self._say_whole(down, extra)
        finally:
            down.steer(None)
            self._listeners.discard(listener)
            if self.tape.overflowed and not self.ended:
                self._trim()
            self._silence()

    def _position(self, received: int, apart: Stretches) -> int:
        """Where to go on. Raises ProxyError."""
        if not self.streamed:
            if received and not self.ended:
                raise beyond(received, 0)
            return 0
        if received == 0 and self.tape.start == 0:
            return 0
        return self.tape.after(received, apart)

    def _say_whole(self, down: Downstream, extra: tuple[tuple[bytes, bytes], ...]) -> None:
        if self.whole is not None:
            down.reply(self.whole.status, [*self.whole.headers, *extra], self.whole.body)
        elif self.error is not None:
            down.refuse(self.error)
        else:
            down.abort()

    @property
    def _heard(self) -> bool:
        """Somebody listens, in whichever form."""
        return bool(self._listeners or (self.frames is not None and self.frames._listeners))  # noqa: SLF001 - one of a kind

    @property
    def _outgrown(self) -> bool:
        """Nobody who comes now can get it from its start, or go on with it, in whichever form."""
        return self.tape.overflowed and (self.frames is None or self.frames.tape.overflowed)

    def _silence(self) -> None:
        """Begin to count, if nobody listens any more."""
        if self._whole_of is not None:
            self._whole_of._silence()  # noqa: SLF001
            return
        if not self._heard and self._timer is None and self.on_silence is not None:
            # What has outgrown its tape can be given to nobody else: there is nothing to wait for.
            wait = 0.0 if self._outgrown and not self.ended else self._grace
            self._timer = asyncio.get_running_loop().call_later(wait, self._fell_silent)

    def _fell_silent(self) -> None:
        self._timer = None
        if self.on_silence is not None:  # as it is now: a stream that runs is stopped, one that has ended meanwhile is forgotten
            self.on_silence()

    def _hush(self) -> None:
        if self._whole_of is not None:
            self._whole_of._hush()  # noqa: SLF001
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.wake()

    def _trim(self) -> None:
        """Let go of what all listeners of an overflowed tape have had; hold the upstream up for one that lags."""
        slowest = min((listener.position for listener in self._listeners), default=self.tape.end)
        self.tape.let_go(slowest)
        if self._outgrown and not self._heard and not self.ended:
            self._hush()
            self._silence()  # nobody will ever get the whole of it
        lagging = self.tape.end - slowest > LAG
        if self._answer is not None and lagging != self._held_up:
            self._held_up = lagging
            (self._answer.pause if lagging else self._answer.resume)()


class _Listener:
    """A client that listens, and how far it is."""

    __slots__ = ("_waiter", "done", "down", "extra", "paused", "position", "usage")

    def __init__(self, down: Downstream, extra: tuple[tuple[bytes, bytes], ...], *, usage: bool) -> None:
        self.down = down
        self.extra = extra
        self.usage = usage
        self.position = 0
        self.paused = False
        self.done = False
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, source: Broadcast) -> None:
        if not self.down.committed:
            try:
                self.down.begin(source.status, [*source.headers, *self.extra], b"")
            except ProxyError as error:  # this client's own trouble: the others go on
                self.down.refuse(error)  # and what else comes is not sent: its encoder has nothing to write it with

    def catch_up(self, source: Broadcast) -> None:
        """Send what is on the tape, until the client's buffer is full or all is sent; then, if the answer is over, its end."""
        while not self.paused and not self.done:
            data = source.tape.since(self.position, SLICE)
            self.position += len(data)
            told = data if self.usage else without(data, self.position - len(data), source.apart)
            if source.ended and source.streamed and self.position == source.tape.end:
                self._end(source, told)
            elif data:
                self.write(told)
            else:
                return

    def write(self, data: bytes) -> None:
        if data:
            self.down.write(data)

    def _end(self, source: Broadcast, data: bytes) -> None:
        (self.down.abort if source.broken else self.down.finish)(data)
        self.done = True
        self.wake()

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Steered:
    """What a listener's connection pauses: the listener alone, not the upstream."""

    __slots__ = ("_listener", "_source")

    def __init__(self, listener: _Listener, source: Broadcast) -> None:
        self._listener = listener
        self._source = source

    def pause(self) -> None:
        self._listener.paused = True

    def resume(self) -> None:
        self._listener.paused = False
        self._listener.catch_up(self._source)
        if self._source.tape.overflowed and not self._source.ended:
            self._source._trim()  # noqa: SLF001 - one room
