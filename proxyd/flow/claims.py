"""Which answers outlive their clients: claimed under an Idempotency-Key, or asked for with `Prefer: resumable`.

Running ones are found here by key and by request id; finished ones, if they were claimed, on disk. A key is claimed on disk
before the upstream hears of the request, and finished together with the ledger's row.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.broadcast import Broadcast
from proxyd.model import Endpoint
from proxyd.rules.idempotency import ClaimState, Request, Standing, Verdict, fingerprint, judge, kept, key_of
from proxyd.store.db import StoreError
from proxyd.store.idempotency import Claim, Kept
from proxyd.wire.headers import to_client
from proxyd.wire.proto_ask import canonical, normal
from proxyd.wire.tape import gone

if TYPE_CHECKING:
    from collections.abc import Iterable

    Headers = Iterable[tuple[bytes, bytes]]

    from proxyd.flow.exchange import Exchange
    from proxyd.flow.runtime import Runtime
    from proxyd.store.idempotency import Claims

REPLAYED = ((b"Idempotent-Replayed", b"true"),)
REFUSED = ((b"Content-Type", b"application/json"), (b"x-should-retry", b"false"))


class Running:
    """The answers that are under way, or have ended within their grace."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        self._by_key: dict[tuple[str, str], asyncio.Future[Exchange]] = {}
        self._by_id: dict[str, Exchange] = {}

    def find(self, caller: str, name: str) -> Exchange | None:
        """The running exchange of that request id (whoever it belongs to), or under that key of the caller."""
        ex = self._by_id.get(name)
        if ex is None and (entry := self._by_key.get((caller, name))) is not None and entry.done() and not entry.cancelled():
            ex = entry.result()
        return ex

    async def enter(self, ex: Exchange, key: str, runtime: Runtime) -> Verdict:
        """Claim a key for an exchange, or find what stands under it.

        RUN: the claim is on disk and `ex.broadcast` is its own. JOIN, REPLAY: `ex.broadcast` is the other's, to be listened to.
        Raises ProxyError idempotency_key_reused, idempotency_broken, ledger_unavailable.
        """
        assert ex.ask is not None  # noqa: S101 - admit has parsed it
        assert ex.caller is not None  # noqa: S101
        request = Request(
            ex.endpoint.value, ex.ask.stream, fingerprint(canonical(ex.raw) if ex.endpoint is Endpoint.CHAT else normal(ex.raw))
        )
        place = (ex.caller.name, key)
        while (entry := self._by_key.get(place)) is not None:
            first = await _other(entry)
            if first is None:
                continue  # it did not come to run: look again
            standing = Standing(first.request, ClaimState.RUNNING, first.attempt)  # type: ignore[arg-type]  # set beside the key
            verdict = judge(standing, request, ex.snapshot.config.idempotency.on_broken)
            if verdict is Verdict.JOIN:
                ex.broadcast = first.broadcast
                return verdict
        mine: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self._by_key[place] = mine
        try:
            taken = await self._take(ex, key, request, runtime)
        except BaseException:
            self._vacate(place, mine)
            raise
        if taken is not None:
            self._vacate(place, mine)
            ex.broadcast = _again(taken)
            return Verdict.REPLAY
        ex.key, ex.request = key, request
        self.open(ex)
        mine.set_result(ex)
        return Verdict.RUN

    def open(self, ex: Exchange) -> None:
        """Let an exchange outlive its client."""
        assert ex.caller is not None  # noqa: S101
        resume = ex.snapshot.config.resume
        broadcast = ex.broadcast = Broadcast(ex.request_id, ex.caller.name, resume.tape, resume.grace)
        broadcast.on_silence = lambda: self._silent(ex)
        if ex.key is not None:
            broadcast.on_begun = lambda: self.claims.begun(ex.request_id)
        self._by_id[ex.request_id] = ex

    def finish(self, ex: Exchange, runtime: Runtime) -> asyncio.Future[None] | None:
        """Write what has become of the exchange's claim, and let its key go. Called once, when the exchange is settled."""
        if ex.key is None or ex.request is None or ex.broadcast is None:
            return None
        assert ex.caller is not None  # noqa: S101
        self._by_key.pop((ex.caller.name, ex.key), None)
        end = _end(ex)
        record = Kept(
            ex.caller.name,
            ex.key,
            ex.request.endpoint,
            ex.request.streamed,
            ex.request.fingerprint,
            ex.request_id,
            ex.attempt,
            end.state.value,
            end.status,
            end.headers,
            end.body if end.body is None or len(end.body) <= ex.broadcast.tape.limit else None,
        )
        return self.claims.finish(record, runtime.clock.now_us() + int(ex.snapshot.config.storage.retain.idempotency * 1e6))

    async def stored(self, caller: str, name: str, now_us: int) -> Broadcast | None:
        """A finished answer from disk, by key or request id. Raises ProxyError stream_forbidden for another caller's."""
        found = await self.claims.find(caller, name, now_us)
        if found is None or found.state != ClaimState.DONE:
            return None
        if found.caller != caller:
            raise forbidden()
        return _again(found)

    async def _take(self, ex: Exchange, key: str, request: Request, runtime: Runtime) -> Kept | None:
        assert ex.caller is not None  # noqa: S101
        config = ex.snapshot.config
        now = runtime.clock.now_us()
        expires = now + int(config.storage.retain.idempotency * 1e6)
        claim = Claim(ex.caller.name, key, request.endpoint, request.streamed, request.fingerprint, ex.request_id, now, expires)

        def may_run(standing: Kept | None) -> bool:
            verdict = judge(_standing(standing), request, config.idempotency.on_broken)
            # What is `running` on disk and not here ended without being written (a failing disk): it is worth another try.
            return verdict is not Verdict.REPLAY

        try:
            ex.attempt, standing = await self.claims.take(claim, may_run)
        except StoreError:
            raise ProxyError(
                "ledger_unavailable", "proxyd cannot write its claims now; nothing was sent to an upstream.", retry_after=2
            ) from None
        return standing

    def _vacate(self, place: tuple[str, str], mine: asyncio.Future[Exchange]) -> None:
        self._by_key.pop(place, None)
        mine.cancel()

    def _silent(self, ex: Exchange) -> None:
        """Nobody has listened for long enough: stop what still runs, forget what has ended."""
        if ex.broadcast is not None and not ex.broadcast.ended and ex.task is not None:
            ex.task.cancel()
        self._by_id.pop(ex.request_id, None)


def forbidden() -> ProxyError:
    """Another caller's stream."""
    return ProxyError("stream_forbidden", "This stream was begun by another caller.")


def key_in(headers: Headers) -> str | None:
    """The request's Idempotency-Key. Raises ProxyError invalid_request."""
    return key_of([value for name, value in headers if name.lower() == b"idempotency-key"])


def wants_resumable(headers: Headers) -> bool:
    """`Prefer: resumable` (RFC 7240)."""
    values = b",".join(value for name, value in headers if name.lower() == b"prefer")
    return any(preference.split(b";")[0].strip().lower() == b"resumable" for preference in values.split(b","))


async def _other(entry: asyncio.Future[Exchange]) -> Exchange | None:
    """Wait until the other request has its claim; None if it did not get one."""
    await asyncio.wait([entry])
    return None if entry.cancelled() else entry.result()


def _standing(found: Kept | None) -> Standing | None:
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


def _end(ex: Exchange) -> _End:
    """What becomes of a claim when its exchange has ended: only final outcomes are kept."""
    answer, broadcast, error = ex.answer, ex.broadcast, ex.error
    assert broadcast is not None  # noqa: S101 - it has a claim
    if error is not None and error.code == "upstream_refused" and kept(error.status) and not broadcast.committed:
        return _End(ClaimState.DONE, error.status, REFUSED, error.document())
    if error is None and answer is not None and answer.finished_whole and kept(answer.status):
        if not broadcast.streamed:
            return _End(ClaimState.DONE, answer.status, tuple(to_client(answer.headers)), ex.held)
        body = None if broadcast.tape.overflowed else broadcast.tape.whole() + ex.held
        return _End(ClaimState.DONE, answer.status, broadcast.headers, body)
    return _End(ClaimState.BROKEN if broadcast.committed else ClaimState.FAILED)


def _again(found: Kept) -> Broadcast:
    """A kept answer as something to listen to. Raises ProxyError stream_gone if it was too large to keep."""
    if found.body is None:
        raise gone()
    broadcast = Broadcast(found.request_id, found.caller, len(found.body) + 1, 0.0)
    if found.streamed and found.status is not None and found.status < 300:
        broadcast.begin(found.status, found.headers, None, b"")
        broadcast.finish(found.body)
    else:
        broadcast.reply(found.status or 200, found.headers, found.body)
    return broadcast
