"""When not to start, however well the file is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.config.address import parse_address
from proxyd.config.schema import Environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxyd.config.schema import Config

LEAST_KEY = 16
"""Characters of a key that staging and production accept."""

_GUARDED = (Environment.STAGING, Environment.PRODUCTION)
_MAKE = "make one with `proxyd keys create NAME`"


@dataclass(frozen=True, slots=True)
class Made:
    """Keys that let somebody in and are not in the file."""

    keys: int = 0
    admins: int = 0


def refusals(config: Config, listen: Sequence[str] | None = None, made: Made | None = None) -> list[str]:
    """Tell why this configuration must not be served; nothing if it may. No message holds a key.

    `made` are the keys of the database, if there is one. `listen` are the addresses that are really listened on, if they
    are not `config.listen` (systemd's sockets). The key that development makes for itself, and the fixed one of test, do
    not count as auth: the first is no answer to whoever opened the port to the world, the second is known to all.
    """
    keys = config.auth.keys if config.auth is not None else ()
    made = made or Made()
    anybody = bool(keys or made.keys or (config.auth is not None and config.auth.jwt))
    found = []
    if config.environment in _GUARDED:
        if not anybody:
            found.append(f"environment {config.environment} needs a key: name one under auth.keys, or {_MAKE}; or an issuer under auth.jwt")
        found += [
            f"environment {config.environment} needs keys of at least {LEAST_KEY} characters; that of {key.name!r} is shorter"
            for key in keys
            if len(key.key) < LEAST_KEY
        ]
    if config.auth is not None and not anybody:
        found += [
            f"{text} is reached by other machines, and there is no auth: add a key under auth.keys, "
            f"{_MAKE}, listen on 127.0.0.1, or write auth: none to let everybody in"
            for text in ([config.listen] if listen is None else listen)
            if not parse_address(text).loopback
        ]
    far = config.ops.listen is not None and not parse_address(config.ops.listen).loopback
    if far and not made.admins and not any(key.admin for key in keys):
        found.append(
            f"{config.ops.listen} (ops.listen) is reached by other machines and needs an admin key: write admin: true at one under "
            f"auth.keys, {_MAKE} --admin, or listen on 127.0.0.1"
        )
    return found
