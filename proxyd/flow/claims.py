"""Which answers outlive their clients: claimed under an Idempotency-Key, or asked for with `Prefer: resumable`.

Running ones are found here by key and by request id, and so are streams that have ended within their grace; finished claims
on disk. A key is claimed on disk before the upstream hears of the request, and finished together with the ledger's row.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxyd.config.schema import OnBroken
from proxyd.errors import ProxyError
from proxyd.flow.broadcast import Broadcast
from proxyd.model import Endpoint, Format
from proxyd.rules.idempotency import ClaimState, Request, Standing, Verdict, fingerprint, judge, kept, key_of
from proxyd.store.db import StoreError
from proxyd.store.idempotency import SIZE_LIMIT, Claim, Kept
from proxyd.wire import canonical
from proxyd.wire.headers import first
from proxyd.wire.meter import format_of
from proxyd.wire.tape import Tape, gone

if TYPE_CHECKING:
    from collections.abc import Iterable

    Headers = Iterable[tuple[bytes, bytes]]

    from proxyd.clock import Clock
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.runtime import Runtime
    from proxyd.store.idempotency import Claims

REPLAYED = ((b"Idempotent-Replayed", b"true"),)
RESUMABLE = ((b"Preference-Applied", b"resumable"),)
REFUSED = ((b"Content-Type", b"application/json"), (b"x-should-retry", b"false"))
ENDED_BYTES = 64 << 20
"""Bytes of streams that have ended and are still kept in memory; beyond it the oldest go (claimed ones are on disk)."""
SLOW_BYTES = 64 << 10
"""A larger body is condensed off the event loop."""

Place = tuple[str, str]
"""A caller's name and an Idempotency-Key."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A stream that is over, and kept for those who come back."""

    broadcast: Broadcast
    place: Place | None
    size: int


class Running:
    """The answers that are under way, or have ended within their grace."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        self._by_key: dict[Place, asyncio.Future[Exchange | Kept]] = {}
        """Who has, or is about to have, a key; from before its claim is written until it is finished."""
        self._by_id: dict[str, Exchange] = {}
        self._names: dict[Place, str] = {}
        """The request id of the exchange that has a key, as long as it is here."""
        self._ended: dict[str, _Ended] = {}
        self._ended_bytes = 0

    def find(self, caller: str, name: str) -> Broadcast | None:
        """The answer under that key of the caller, else the one of that request id (whoever it belongs to: the asker must check)."""
        request_id = self._names.get((caller, name), name)
        ex = self._by_id.get(request_id)
        if ex is not None:
            return ex.broadcast
        ended = self._ended.get(request_id)
        return None if ended is None else ended.broadcast

    def describe(self) -> dict[str, int]:
        """How much there is, for operators: exchanges that outlive their clients, streams kept in memory, answers kept on disk."""
        return {
            "running": len(self._by_id),
            "ended": len(self._ended),
            "ended_bytes": self._ended_bytes,
            "kept_bytes": self.claims.size,
            "kept_bytes_limit": SIZE_LIMIT,
        }

    def stop(self, broadcast: Broadcast) -> bool:
        """Stop a running exchange; False if it has come to its end."""
        ex = self._by_id.get(broadcast.request_id)
        if ex is None or ex.settled or ex.task is None:
            return False
        return ex.task.cancel()

    async def enter(self, ex: Exchange, key: str, runtime: Runtime) -> Verdict:
        """Claim a key for an exchange, or find what stands under it.

        RUN: `ex.broadcast` is its own; `write` must follow before an upstream is called. (Who is refused before uses up no key.)
        JOIN, REPLAY: `ex.broadcast` is the other's, to be listened to.
        Raises ProxyError idempotency_key_reused, idempotency_broken, ledger_unavailable.
        """
        assert ex.ask is not None  # noqa: S101 - admit has parsed it
        assert ex.caller is not None  # noqa: S101
        write = canonical.chat if ex.endpoint is Endpoint.CHAT else canonical.plain
        short = len(ex.raw) <= SLOW_BYTES
        condensed = fingerprint(write(ex.raw)) if short else await asyncio.to_thread(lambda: fingerprint(write(ex.raw)))
        request = Request(ex.endpoint.value, ex.ask.stream, condensed)
        place = (ex.caller.name, key)
        on_broken = ex.snapshot.config.idempotency.on_broken
        while (entry := self._by_key.get(place)) is not None:
            first = await _other(entry)
            if first is None:
                continue  # it did not come to run: look again
            found = standing(first) if isinstance(first, Kept) else Standing(first.request, ClaimState.RUNNING, first.attempt)  # type: ignore[arg-type]  # set beside the key
            verdict = judge(found, request, on_broken)
            ex.broadcast = _again(first) if isinstance(first, Kept) else first.broadcast
            return verdict
        mine: asyncio.Future[Exchange | Kept] = asyncio.get_running_loop().create_future()
        self._by_key[place] = mine
        ex.key, ex.request = key, request
        try:
            taken = await self._standing_answer(ex, place, runtime)
        except BaseException:
            self._vacate(ex, place)
            mine.cancel()
            raise
        if taken is not None:
            self._vacate(ex, place)
            mine.set_result(taken)  # those who waited meanwhile need not look for themselves
            ex.broadcast = _again(taken)
            return Verdict.REPLAY
        self._names[place] = ex.request_id
        ex.unwritten = True
        self.open(ex, runtime.clock)
        mine.set_result(ex)
        return Verdict.RUN

    def _vacate(self, ex: Exchange, place: Place) -> None:
        del self._by_key[place]
        ex.key = ex.request = None

    def open(self, ex: Exchange, clock: Clock) -> None:
        """Let an exchange outlive its client. `close` must follow, once."""
        assert ex.caller is not None  # noqa: S101
        assert ex.ask is not None  # noqa: S101
        resume = ex.snapshot.config.resume
        broadcast = ex.broadcast = Broadcast(ex.request_id, ex.caller.name, Tape(resume.tape), resume.grace, resumable=ex.ask.stream)
        broadcast.wants_usage = ex.ask.wants_usage
        if ex.framed:
            handle = handle_of(ex.request_id) if ex.key is None else b""  # without a name of its own the client is told one
            broadcast.pack(ex.wishes.delivery, clock, handle)
        broadcast.on_silence = lambda: self._silent(ex)
        if ex.key is not None and ex.snapshot.config.idempotency.on_broken is OnBroken.CONFLICT:  # else it makes no difference
            broadcast.on_begun = lambda: self.claims.begun(ex.request_id)
        self._by_id[ex.request_id] = ex

    def finish(self, ex: Exchange, runtime: Runtime) -> asyncio.Future[None] | None:
        """Write what has become of the exchange's claim, and let its key go. When the exchange is settled; later calls do nothing."""
        if ex.key is None or ex.request is None or ex.broadcast is None or ex.released:
            return None
        assert ex.caller is not None  # noqa: S101
        ex.released = True
        del self._by_key[ex.caller.name, ex.key]
        end, claim = _end(ex), _claim(ex, runtime)
        body = end.body if end.body is None or len(end.body) <= ex.broadcast.tape.limit else None
        kept = claim.kept(end.state.value, end.status, end.headers, body)
        kept = replace(kept, frames=end.frames, usage_at=tuple(ex.broadcast.apart), wants_usage=ex.broadcast.wants_usage)
        return self.claims.finish(kept, claim.expires_at)

    async def begun(self, ex: Exchange) -> None:
        """Make sure that no client sees a byte of which a crash would leave no trace, where that would make it run twice."""
        if (
            ex.key is not None
            and ex.answer is not None
            and ex.answer.streams
            and ex.snapshot.config.idempotency.on_broken is OnBroken.CONFLICT
        ):
            await self.claims.begun(ex.request_id, wait=True)

    def close(self, ex: Exchange) -> None:
        """Let go of an exchange that is over; a stream stays for those who come back within its grace."""
        if self._by_id.pop(ex.request_id, None) is None:
            return
        broadcast = ex.broadcast
        assert broadcast is not None  # noqa: S101 - opened with one
        assert ex.caller is not None  # noqa: S101
        place = None if ex.key is None else (ex.caller.name, ex.key)
        broadcast.on_begun = None
        if not broadcast.resumable or not broadcast.ended:
            broadcast.on_silence = None
            self._unname(place, ex.request_id)
            return
        broadcast.on_silence = lambda: self._forget(broadcast.request_id)
        size = broadcast.tape.size + (broadcast.frames.tape.size if broadcast.frames is not None else 0)
        self._ended[ex.request_id] = _Ended(broadcast, place, size)
        self._ended_bytes += size
        while self._ended_bytes > ENDED_BYTES:
            self._forget(next(iter(self._ended)))

    async def forget(self, broadcast: Broadcast) -> None:
        """Forget an answer that has ended, in memory and on disk. Raises ProxyError ledger_unavailable."""
        ex = self._by_id.get(broadcast.request_id)
        if ex is not None and ex.task is not None:
            await asyncio.wait([ex.task])  # its end is being written, and kept after that
        self._forget(broadcast.request_id)
        try:
            await self.claims.forget(broadcast.request_id)
        except StoreError:
            raise ProxyError("ledger_unavailable", "proxyd cannot write its claims now.", retry_after=2) from None

    def _forget(self, request_id: str) -> None:
        """Its grace is over, or its room is needed."""
        ended = self._ended.pop(request_id, None)
        if ended is not None:
            ended.broadcast.on_silence = None
            self._ended_bytes -= ended.size
            self._unname(ended.place, request_id)

    def _unname(self, place: Place | None, request_id: str) -> None:
        if place is not None and self._names.get(place) == request_id:
            del self._names[place]

    async def stored(self, caller: str, name: str, now_us: int) -> Broadcast | None:
        """A finished answer from disk, by key or request id. Raises ProxyError stream_forbidden for another caller's, stream_gone."""
        found = await self.claims.find(caller, name, now_us)
        if found is None:
            return None
        if found.caller != caller:
            raise forbidden()
        if found.state == ClaimState.BROKEN:
            raise ProxyError(
                "stream_gone", "This stream broke off. Repeat its request to run it anew; where its key is refused, under a new one."
            )
        return _again(found) if found.state == ClaimState.DONE else None

    def write(self, ex: Exchange, runtime: Runtime) -> asyncio.Future[None] | None:
        """Write a claim that is not on disk yet; call it in the same moment as `Ledger.open`, so that both are one commit."""
        if not ex.unwritten:
            return None
        ex.unwritten = False
        written = self.claims.write(_claim(ex, runtime))
        written.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever awaits the row may be told first
        return written

    async def _standing_answer(self, ex: Exchange, place: Place, runtime: Runtime) -> Kept | None:
        """Look what stands under the key: an answer to be sent again, or nothing that keeps the exchange from running."""
        assert ex.request is not None  # noqa: S101
        if self.claims.fresh(*place):
            return None
        try:
            found = await self.claims.look(*place, runtime.clock.now_us())
        except StoreError:
            raise ProxyError(
                "ledger_unavailable", "proxyd cannot read its claims now; nothing was sent to an upstream.", retry_after=2
            ) from None
        # What is `running` on disk and not here ended without being written (a failing disk): it is worth another try.
        if judge(standing(found), ex.request, ex.snapshot.config.idempotency.on_broken) is Verdict.REPLAY:
            return found
        ex.attempt = found.attempt if found is not None else 0
        return None

    def _silent(self, ex: Exchange) -> None:
        """Nobody has listened for long enough: stop what still runs, unless its route has answers read on to their end."""
        if ex.broadcast is not None and not ex.reads_on:
            self.stop(ex.broadcast)


def forbidden() -> ProxyError:
    """Another caller's stream."""
    return ProxyError("stream_forbidden", "This stream was begun by another caller.")


def handle_of(request_id: str) -> bytes:
    """A request id as the 14 bytes that a protobuf client is told it by."""
    return bytes.fromhex("0" + request_id.removeprefix("req_"))


def request_id_of(handle: bytes) -> str:
    """What `handle_of` was made of."""
    return f"req_{handle.hex()[1:]}"


def key_in(headers: Headers) -> str | None:
    """The request's Idempotency-Key. Raises ProxyError invalid_request."""
    return key_of([value for name, value in headers if name.lower() == b"idempotency-key"])


def one_name(key: str | None, handle: str | None) -> str | None:
    """The key of a request whose header and body may both name one. Raises ProxyError invalid_request where they differ."""
    if key is not None and handle is not None and key != handle:
        raise ProxyError("invalid_request", "The Idempotency-Key and the handle differ: send one of them.", param="handle")
    return key or handle


def wants_resumable(headers: Headers) -> bool:
    """`Prefer: resumable` (RFC 7240)."""
    values = b",".join(value for name, value in headers if name.lower() == b"prefer")
    return any(preference.split(b";")[0].strip().lower() == b"resumable" for preference in values.split(b","))


async def _other(entry: asyncio.Future[Exchange | Kept]) -> Exchange | Kept | None:
    """Wait until the other request has its claim; None if it did not get one."""
    await asyncio.wait([entry])
    return None if entry.cancelled() else entry.result()


def _claim(ex: Exchange, runtime: Runtime) -> Claim:
    """Its claim as of now."""
    assert ex.caller is not None  # noqa: S101 - it has a key
    assert ex.key is not None  # noqa: S101
    assert ex.request is not None  # noqa: S101
    now, request = runtime.clock.now_us(), ex.request
    expires = now + int(ex.snapshot.config.storage.retain.idempotency * 1e6)
    return Claim(ex.caller.name, ex.key, request.endpoint, request.streamed, request.fingerprint, ex.request_id, ex.attempt, now, expires)


def standing(found: Kept | None) -> Standing | None:
    """What a row says to `judge`."""
    if found is None:
        return None
    state = ClaimState(found.state)
    if state is ClaimState.RUNNING:
        state = ClaimState.FAILED
    return Standing(Request(found.endpoint, found.streamed, found.fingerprint), state, found.attempt)


@dataclass(frozen=True, slots=True)
class _End:
    """What a claim is finished with."""

    state: ClaimState
    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None
    frames: bytes | None = None


def _end(ex: Exchange) -> _End:
    """What becomes of a claim when its exchange has ended: only final outcomes are kept."""
    answer, broadcast, error = ex.answer, ex.broadcast, ex.error
    assert broadcast is not None  # noqa: S101 - it has a claim
    if error is not None and error.code == "upstream_refused" and kept(error.status) and not broadcast.committed:
        return _End(ClaimState.DONE, error.status, REFUSED, error.document())
    if error is None and answer is not None and answer.finished_whole and kept(answer.status):
        if not broadcast.streamed:
            return _End(ClaimState.DONE, answer.status, ex.told(), ex.held)
        body = None if broadcast.tape.overflowed else broadcast.tape.whole() + ex.held
        return _End(ClaimState.DONE, answer.status, broadcast.headers, body, broadcast.packed())
    return _End(ClaimState.BROKEN if broadcast.committed else ClaimState.FAILED)


def _again(found: Kept) -> Broadcast:
    """A kept answer as something to listen to. Raises ProxyError stream_gone if it was too large to keep."""
    if found.body is None:
        raise gone()
    broadcast = Broadcast(found.request_id, found.caller, Tape(len(found.body) + 1), 0.0, resumable=found.streamed)
    kind = format_of(first(found.headers, b"content-type"), streamed=found.streamed, head=found.body[:64])
    if kind is not Format.JSON and found.streamed and found.status is not None and found.status < 300:
        if found.frames is not None:
            frames = broadcast.make_frames(len(found.frames) + 1)
            frames.begin(found.status, found.headers, b"")
            frames.finish(found.frames)
        broadcast.apart, broadcast.wants_usage = found.usage_at, found.wants_usage
        broadcast.begin(found.status, found.headers, b"")
        broadcast.finish(found.body)
    else:
        broadcast.reply(found.status or 200, found.headers, found.body)
    return broadcast
