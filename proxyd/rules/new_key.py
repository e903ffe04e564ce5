"""What an owner wishes of a new key, as text: read, checked, or refused with what to write instead."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import msgspec

from proxyd.config import units
from proxyd.config.issuers import name_of
from proxyd.config.schema import Delivery
from proxyd.model import TOKENS, Budget, Caller, Limits, Per
from proxyd.rules.auth import delivery_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxyd.config.schema import Auth
    from proxyd.model import DeliveryDefaults

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,63}")
_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kM]?) ?([A-Za-z]*)/([a-z]+)")
_MOST = 10**12


class WishError(ValueError):
    """A wish that cannot be granted; the message says what to write."""


def caller(wish: Mapping[str, object], now_us: int) -> Caller:
    """Make the caller of a new key from what _KEYS names.

    `delivery` is an object as in the configuration, in bare numbers; `expires` is a duration from `now_us` or a moment. Raises WishError.
    """
    unknown = sorted(set(wish) - _KEYS)
    if unknown:
        raise WishError(f"{unknown[0]!r} is not something that a key has; those are {', '.join(sorted(_KEYS))}")
    admin = wish.get("admin")
    if admin is not None and not isinstance(admin, bool):
        raise WishError("'admin' must be true or false")
    default = _text(wish, "default_model")
    if default is not None and ("*" in default or not default.isprintable() or len(default) > 256):
        raise WishError("'default_model' is the name of one model")
    budget_text, expires_text = _text(wish, "budget"), _text(wish, "expires")
    return Caller(
        name(wish.get("name")),
        models(wish.get("models")),
        admin=bool(admin),
        limits=Limits(*(_count(wish, each) for each in ("rpm", "tpm", "concurrency"))),
        budget=None if budget_text is None else budget(budget_text),
        default_model=default,
        expires_at=None if expires_text is None else expiry(expires_text, now_us),
        delivery=delivery(wish.get("delivery")),
    )


def name(given: object) -> str:
    """Check the name of a caller. Raises WishError."""
    if not isinstance(given, str) or not NAME.fullmatch(given):
        raise WishError("a name has 1 to 64 letters, digits and ._@:+- and begins with a letter or digit")
    return given


def taken(wanted: str, auth: Auth | None) -> str | None:
    """Say why the file leaves no room for a key of that name; None where it does."""
    if in_file(wanted, auth):
        return f"{wanted!r} has a key in the configuration; take another name"
    if auth is not None and any(wanted.endswith(f"@{name_of(rule)}") for rule in auth.jwt):
        return f"{wanted!r} is how a caller of an issuer under auth.jwt is called; take another name"
    return None


def in_file(wanted: str, auth: Auth | None) -> bool:
    """Whether the file has a key of that name."""
    return auth is not None and any(key.name == wanted for key in auth.keys)


def refused(why: str, wanted: str, auth: Auth | None) -> str:
    """Say why a caller's keys in the database stay as they are, and where else to look."""
    return f"{why.rstrip('.')} in the database: the configuration has one, change it there." if in_file(wanted, auth) else why


def models(given: object) -> tuple[str, ...]:
    """Check patterns of model names; none means all. Raises WishError."""
    if given is None:
        return ("*",)
    listed: Sequence[object] = given if isinstance(given, list) else ()
    found = tuple(each for each in listed if isinstance(each, str) and each and "*" not in each[:-1] and each.isprintable())
    if not found or len(found) != len(listed) or len(found) > 256 or any(len(each) > 256 for each in found):
        raise WishError("'models' is a list of names or patterns (a * at the end only)")
    return found


def budget(text: str) -> Budget:
    """Read `20/month` (US dollars), `20EUR/month` or `1M tokens/day`. Raises WishError."""
    found = _BUDGET.fullmatch(text.strip())
    if found is None or found[4] not in {per.value for per in Per}:
        raise WishError(f"{text!r} is not a budget; write 20/month, 5EUR/day or 1M tokens/month")
    number, scale, unit, per = found.groups()
    try:
        amount = Decimal(number) * {"": 1, "k": 1000, "M": 1_000_000}[scale]
    except InvalidOperation:
        raise WishError(f"{text!r} is not a budget") from None
    if unit.lower() in {TOKENS, "token"}:
        unit = TOKENS
    else:
        unit = unit.upper() or "USD"
        amount *= 10**9
        if len(unit) != 3:
            raise WishError(f"{text!r}: a currency has three letters, as in USD or EUR")
    if amount != int(amount) or not 0 < amount <= _MOST * 10**6:
        raise WishError(f"{text!r} is not a budget: more than nothing, whole tokens, at most nine decimals of money")
    return Budget(int(amount), unit, Per(per))


def delivery(given: object) -> DeliveryDefaults:
    """Check how answers are to leave. Raises WishError."""
    try:
        return delivery_of(msgspec.convert({} if given is None else given, Delivery))
    except msgspec.ValidationError as error:
        wrong, _, key = str(error)[:200].replace("`", "").partition(" - at $.")
        raise WishError(f"{key or 'delivery'!r}: {wrong[:1].lower()}{wrong[1:]}") from None


def expiry(text: str, now_us: int) -> int:
    """Read `30d` from now on, or a day or time. Raises WishError, also for what is past."""
    try:
        moment = now_us + int(units.duration(text) * 1e6)
    except ValueError:
        try:
            moment = units.moment(text)
        except ValueError as error:
            raise WishError(f"{text!r} {error}, or a time from now, as in 30d") from None
    if moment <= now_us:
        raise WishError(f"{text!r} is past")
    return moment


def _count(wish: Mapping[str, object], key: str) -> int | None:
    given = wish.get(key)
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = units.count(given)
        except ValueError as error:
            raise WishError(f"'{key}': {given!r} {error}") from None
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= _MOST:
        raise WishError(f"'{key}' is a whole number of at least 1")
    return given


def _text(wish: Mapping[str, object], key: str) -> str | None:
    given = wish.get(key)
    if given is not None and not isinstance(given, str):
        raise WishError(f"'{key}' is a text")
    return given


_KEYS = frozenset({"name", "models", "rpm", "tpm", "concurrency", "budget", "expires", "admin", "default_model", "delivery"})
