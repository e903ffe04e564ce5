"""Slows down who guesses keys: so many failures a minute from one address, and it has to wait.

The law of this file: who got in before from the same address, with the same credential, gets in. Many share an address (an
office, a mobile network), and one of them must not be able to lock the others out.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.model import Limits
from proxyd.rules import ratelimit

if TYPE_CHECKING:
    from proxyd.clock import Clock

MOST = 10_000
"""Addresses with failures, and credentials that got in, that are remembered; beyond it the oldest are forgotten."""


class Brake:
    """Failures by address. `check` before a credential is looked at, then `failed` or `succeeded`. An empty address is a Unix socket."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, ratelimit.Level] = OrderedDict()
        self._known: OrderedDict[int, None] = OrderedDict()

    def check(self, address: str, presented: bytes | None, most: int | None) -> None:
        """Refuse to look at a credential after too many failures: `most` a minute, None for no end.

        Raises ProxyError rate_limit_exceeded.
        """
        if not self._levels or most is None:
            return
        level = self._levels.get(_place(address))
        if level is None or hash((address, presented)) in self._known:
            return
        verdict = ratelimit.request({"": level}, {"": Limits(rpm=most)}, 0, self._clock.monotonic())
        if isinstance(verdict, ratelimit.Refused):
            raise ProxyError(
                "rate_limit_exceeded", "Too many requests with a wrong API key came from your address.", retry_after=verdict.retry_after
            )

    def failed(self, address: str, most: int | None) -> None:
        """Note a failure."""
        if not address or most is None:
            return
        place, limits = _place(address), Limits(rpm=most)
        level = ratelimit.decayed(self._levels.pop(place, ratelimit.FRESH), limits, self._clock.monotonic())
        self._levels[place] = ratelimit.Level(min(level.requests, most * ratelimit.MINUTE) + ratelimit.MINUTE, stamp=level.stamp)
        while len(self._levels) > MOST:
            self._levels.popitem(last=False)

    def succeeded(self, address: str, presented: bytes) -> None:
        """Note that a credential is good."""
        known = hash((address, presented))  # keyed anew in each process (PEP 456)
        if known in self._known:
            self._known.move_to_end(known)
            return
        self._known[known] = None
        if len(self._known) > MOST:
            self._known.popitem(last=False)


def _place(address: str) -> str:
    """What one guesser is likely to hold: an IPv4 address, or a /64 of IPv6 (RFC 6177)."""
    if ":" not in address:
        return address
    return str(int(IPv6Address(address.partition("%")[0])) >> 64)
