"""When not to start, however well the file is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.config.address import parse_address
from proxyd.config.schema import Environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxyd.config.schema import Config

LEAST_KEY = 16
"""Characters of a key that staging and production accept."""

_GUARDED = (Environment.STAGING, Environment.PRODUCTION)


def refusals(config: Config, listen: Sequence[str] | None = None) -> list[str]:
    """Tell why this configuration must not be served; nothing if it may. No message holds a key.

    `listen` are the addresses that are really listened on, if they are not `config.listen` (systemd's sockets). The key
    that development makes for itself, and the fixed one of test, do not count as auth: the first is no answer to
    whoever opened the port to the world, the second is known to all.
    """
    keys = config.auth.keys if config.auth is not None else ()
    found = []
    if config.environment in _GUARDED:
        if not keys:
            found.append(f"environment {config.environment} needs a key under auth.keys")
        found += [
            f"environment {config.environment} needs keys of at least {LEAST_KEY} characters; that of {key.name!r} is shorter"
            for key in keys
            if len(key.key) < LEAST_KEY
        ]
    if config.auth is not None and not keys:
        found += [
            f"{text} is reached by other machines, and there is no auth: add a key under auth.keys, "
            "listen on 127.0.0.1, or write auth: none to let everybody in"
            for text in ([config.listen] if listen is None else listen)
            if not parse_address(text).loopback
        ]
    return found
