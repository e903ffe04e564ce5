"""Who asks, for what, and may they: everything that is decided before an upstream hears of the request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.claims import key_in, one_name, wants_resumable
from proxyd.model import Endpoint
from proxyd.rules.bearer import looks_signed
from proxyd.rules.idempotency import Verdict
from proxyd.wire import body, headers, wishes
from proxyd.wire.delivery import combined, with_defaults

if TYPE_CHECKING:
    from proxyd.flow.exchange import Exchange
    from proxyd.flow.runtime import Runtime
    from proxyd.model import Caller
    from proxyd.web.downstream import Downstream
    from proxyd.wire.wishes import Asked


async def admit(ex: Exchange, runtime: Runtime, down: Downstream) -> Verdict:
    """Fill in caller, ask and route; say whether to run it, or to listen to another's answer (`ex.broadcast`).

    Raises ProxyError where the request is refused; nothing is left behind then.
    """
    # Room first: what cannot be served is refused before a byte of its body is read.
    runtime.check_room()
    # Who, before what: nobody unknown makes us read or parse a body.
    ex.caller = await authenticate(runtime, down)
    # What.
    key = key_in(down.headers)
    limits = ex.snapshot.config.limits
    asked = await down.asked(ex.endpoint, limits.body, limits.body_timeout)
    ex.asked_at = runtime.clock.monotonic()
    ex.raw, ex.bytes_in = asked.body, asked.size
    name = wishes.nameless_turn(asked) if ex.endpoint is Endpoint.CHAT else None
    model = None if name is None else await runtime.memory.model_of(ex.caller.name, name)
    ex.ask = body.parse_ask(ex.endpoint, asked.body, model or ex.caller.default_model)
    _heed(ex, asked, down)
    key = one_name(key, ex.wishes.handle)
    # Where to, and may they. A model that the caller may not use is told apart from one that does not exist only
    # where the caller could know it: both lists come from the route table.
    routes = ex.snapshot.routes
    ex.route = routes.resolve(ex.ask.model)
    if ex.route is None:
        hint = routes.suggest(ex.caller, ex.ask.model)
        near = f" Did you mean {hint!r}?" if hint else ""
        raise ProxyError("model_not_found", f"The model {ex.ask.model!r} does not exist here.{near}", param="model")
    if not routes.allowed(ex.caller, ex.ask.model):
        raise ProxyError("model_not_allowed", f"This key may not use the model {ex.ask.model!r}.", param="model")
    _agree(ex, down)
    ex.headers = headers.to_upstream(down.headers, stream=ex.ask.stream)
    # Had it before? The claim comes last, so that no refusal uses up a key.
    if key is not None:
        return await runtime.running.enter(ex, key, runtime)
    if ex.ask.stream and (ex.wishes.delivery.resumable or wants_resumable(down.headers)):
        runtime.running.open(ex, runtime.clock)
    return Verdict.RUN


def _heed(ex: Exchange, asked: Asked, down: Downstream) -> None:
    """Learn what the request says to proxyd alone."""
    assert ex.ask is not None  # noqa: S101 - parsed before
    if asked.wishes is None:
        ex.ask, ex.wishes = wishes.taken(ex.ask, down.headers)
    else:
        ex.wishes = asked.wishes
    if ex.wishes.conversation is not None:
        ex.raw = wishes.told_apart(ex.ask, ex.wishes)


def _agree(ex: Exchange, down: Downstream) -> None:
    """Settle how the answer is to be delivered, and in which form. Raises ProxyError invalid_request."""
    assert ex.ask is not None  # noqa: S101 - parsed before
    assert ex.caller is not None  # noqa: S101 - found before
    default = combined(ex.caller.delivery, ex.model.delivery, ex.snapshot.config.delivery)
    if default:
        ex.wishes = replace(ex.wishes, delivery=with_defaults(ex.wishes.delivery, default))
    framed = down.encoder is not None
    ex.protocol = down.wish(ex.wishes, streamed=ex.ask.stream, may_compress=default.compress is not False)
    if framed and ex.ask.stream and ex.ask.endpoint is Endpoint.CHAT:
        ex.framed = True


async def authenticate(runtime: Runtime, down: Downstream) -> Caller:
    """Find the caller by the one credential of the request. Raises ProxyError invalid_api_key, auth_unavailable, rate_limit_exceeded.

    Awaits, for a credential may be signed with a key that has to be fetched first.
    """
    snapshot = runtime.snapshot
    if snapshot.anyone is not None:
        return snapshot.anyone
    brake, most = runtime.brake, snapshot.config.limits.auth_failures
    presented = headers.credential(down.headers)
    brake.check(down.address, presented, most)
    if presented is None:
        brake.failed(down.address, most)
        raise ProxyError("invalid_api_key", "No API key was given. Send it as `Authorization: Bearer KEY`, `X-Api-Key` or `api-key`.")
    caller = _known(runtime, presented)
    if caller is None and snapshot.issuers and looks_signed(presented):
        caller = await runtime.bearers.find(presented, snapshot.issuers)
    if caller is None:
        brake.failed(down.address, most)
        raise ProxyError("invalid_api_key", "The API key is not valid here.")
    brake.succeeded(down.address, presented)
    return caller


def administrator(runtime: Runtime, client: tuple[tuple[bytes, bytes], ...], address: str) -> Caller:
    """Find the admin by the credential in these headers, whatever `auth` lets in elsewhere.

    Raises ProxyError invalid_api_key, rate_limit_exceeded.
    """
    brake, most = runtime.brake, runtime.snapshot.config.limits.auth_failures
    presented = headers.credential(client)
    brake.check(address, presented, most)
    caller = None if presented is None else _known(runtime, presented)
    if presented is None or caller is None or not caller.admin:
        brake.failed(address, most)
        raise ProxyError("invalid_api_key", "This needs an admin key: `proxyd keys create NAME --admin` makes one.")
    brake.succeeded(address, presented)
    return caller


def _known(runtime: Runtime, presented: bytes) -> Caller | None:
    """Find the caller of a key, in the file or in the database. All that fails costs and says the same."""
    caller = runtime.snapshot.keys.find(presented) or runtime.keyring.find(presented)
    if caller is None or (caller.expires_at is not None and runtime.clock.now_us() >= caller.expires_at):
        return None
    return caller
