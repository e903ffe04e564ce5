"""Keys over the operator's port: made, listed, rotated and revoked by the one process that writes, in effect at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.keyring import document
from proxyd.rules import new_key
from proxyd.store.db import StoreError
from proxyd.store.keys import KeyRefusedError
from proxyd.web.document import asked, tell

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import TypeVar

    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream

    T = TypeVar("T")

GRACE = 86_400.0
"""Seconds that a rotated key lives on."""
_ROTATE = "/rotate"


def listed(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """List all keys of the database."""
    now_us = runtime.clock.now_us()
    _tell(down, {"object": "list", "data": [document(key, now_us) for key in runtime.keyring.listed()]})


def shown(runtime: Runtime, down: Downstream, name: str) -> None:
    """Show a caller's keys, oldest first."""
    now_us = runtime.clock.now_us()
    found = [document(key, now_us) for key in runtime.keyring.listed() if key.caller.name == name]
    if not found:
        raise ProxyError("not_found", f"There is no key of the name {name[:64]!r}.")
    _tell(down, {"object": "list", "data": found})


async def create(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Make a key. The answer holds it, this once."""
    wish = await asked(down)
    try:
        caller = new_key.caller(wish, runtime.clock.now_us())
    except new_key.WishError as error:
        raise ProxyError("invalid_request", f"{error}.") from None
    taken = new_key.taken(caller.name, runtime.snapshot.config.auth)
    if taken is not None:
        raise ProxyError("conflict", f"{taken}.")
    secret, key = await _done(runtime, caller.name, runtime.keyring.create(caller))
    _tell(down, {**document(key, runtime.clock.now_us()), "key": secret}, status=201)


async def change(runtime: Runtime, down: Downstream, argument: str) -> None:
    """Rotate: make a key that replaces a caller's; the old one lives on for `grace` seconds. The answer holds the new one, this once."""
    if not argument.endswith(_ROTATE):
        raise ProxyError("not_found", "What can be done with a key is POST /keys/NAME/rotate.")
    grace = (await asked(down)).get("grace", GRACE)
    if not isinstance(grace, int | float) or isinstance(grace, bool) or not 0 <= grace <= 366 * 86_400:
        raise ProxyError("invalid_request", "`grace` is a number of seconds, at most a year.", param="grace")
    name = argument.removesuffix(_ROTATE)
    secret, key = await _done(runtime, name, runtime.keyring.rotate(name, grace))
    _tell(down, {**document(key, runtime.clock.now_us()), "key": secret}, status=201)


async def revoke(runtime: Runtime, down: Downstream, name: str) -> None:
    """End a caller's live keys, or the one whose first characters are `prefix`; in effect at once."""
    ended = await _done(runtime, name, runtime.keyring.revoke(name, down.query.get("prefix")))
    now_us = runtime.clock.now_us()
    _tell(down, {"object": "list", "data": [document(key, now_us) for key in ended]})


async def _done(runtime: Runtime, name: str, change: Awaitable[T]) -> T:
    """Map what the database says."""
    try:
        return await change
    except KeyRefusedError as error:
        raise ProxyError("conflict", new_key.refused(str(error), name, runtime.snapshot.config.auth)) from None
    except StoreError as error:
        raise ProxyError("ledger_unavailable", f"The database cannot be written now: {error}", retry_after=2) from None


def _tell(down: Downstream, found: dict[str, object], status: int = 200) -> None:
    tell(down, found, (b"Cache-Control", b"no-store"), status=status)
