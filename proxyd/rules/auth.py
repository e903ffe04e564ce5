"""Who is calling: from the bytes that were presented to a caller."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

from proxyd.config.units import moment
from proxyd.model import TOKENS, Budget, Caller, DeliveryDefaults, Limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.config import schema
    from proxyd.config.schema import Allowance, Delivery, Key

ANONYMOUS = Caller("anonymous")
"""Who everybody is where `auth: none` is written."""
KEY_LENGTH = 22
"""Base62 characters of randomness in a made key: 131 bits."""
CHECK_LENGTH = 6
"""Base62 characters of CRC-32 after it, so that a scanner or a typo is told from a key without asking anybody."""

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def digest(presented: bytes) -> bytes:
    """Hash a key for storing and looking up. Keys are random, so no slow hash is needed (and one would be a lever to stall us)."""
    return hashlib.sha256(presented).digest()


def caller_of(key: Key) -> Caller:
    """Make the caller of a static key."""
    return Caller(
        key.name,
        key.models,
        admin=key.admin,
        limits=limits_of(key.limits),
        budget=None if key.budget is None else budget_of(key.budget),
        default_model=key.default_model,
        expires_at=None if key.expires is None else moment(key.expires),
        delivery=delivery_of(key.delivery),
    )


def limits_of(allowance: Allowance) -> Limits:
    """Make limits of what the file says."""
    return Limits(allowance.rpm, allowance.tpm, allowance.concurrency)


def delivery_of(written: Delivery) -> DeliveryDefaults:
    """Make defaults of what the file says."""
    return DeliveryDefaults(written.max_delay_ms, written.max_bytes, written.compress)


def budget_of(written: schema.Budget) -> Budget:
    """Make a budget of what the file says; money in 10⁻⁹ of its currency."""
    if written.tokens is not None:
        return Budget(written.tokens, TOKENS, written.per, written.warn_at)
    return Budget(round((written.amount or 0) * 10**9), written.currency.upper(), written.per, written.warn_at)


class Keys:
    """The static keys of one configuration. Raises ValueError for a key that is empty or that two callers share."""

    __slots__ = ("_callers",)

    def __init__(self, keys: Iterable[Key]) -> None:
        self._callers: dict[bytes, Caller] = {}
        for key in keys:
            # As the environment's bytes were decoded (PEP 383); what a client sends is compared as bytes.
            secret = key.key.encode("utf-8", "surrogateescape")
            if not secret:
                raise ValueError(f"key `{key.name}` is empty")
            other = self._callers.setdefault(digest(secret), caller_of(key))
            if other.name != key.name:
                raise ValueError(f"keys `{other.name}` and `{key.name}` have the same secret")

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, presented: bytes | None) -> Caller | None:
        """Find the caller of what a client presented; None for nothing, empty or unknown.

        In constant time as far as a client can use it: it is looked up by its hash, and how far two hashes agree says
        nothing about the keys behind them.
        """
        return self._callers.get(digest(presented)) if presented else None


def generate_dev_key(random_bytes: bytes) -> str:
    """Make the key of a development start: `dev_`, 22 base62 characters and 6 of check. Needs at least 24 random bytes."""
    return generate_key("dev_", random_bytes)


def generate_key(prefix: str, random_bytes: bytes) -> str:
    """Make a key: prefix, KEY_LENGTH characters of randomness, CHECK_LENGTH of checksum over both.

    24 bytes or more, so that reducing them to 131 bits favours no key; fewer raise ValueError.
    """
    if len(random_bytes) < 24:
        raise ValueError("a key needs 24 random bytes")
    body = prefix + _base62(int.from_bytes(random_bytes, "big") % 62**KEY_LENGTH, KEY_LENGTH)
    return body + _check(body)


def well_formed(key: str, prefix: str) -> bool:
    """Say whether a key could have been made by `generate_key`: prefix, length and checksum are right."""
    body, check = key[:-CHECK_LENGTH], key[-CHECK_LENGTH:]
    return key.isascii() and len(key) == len(prefix) + KEY_LENGTH + CHECK_LENGTH and key.startswith(prefix) and check == _check(body)


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
