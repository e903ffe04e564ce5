"""Signed tokens (JWT, RFC 7519): whose they are, whether they hold, and who calls with them.

The laws, each against an attack that has worked somewhere: the algorithm comes from the key, never from the token; only
asymmetric ones; nothing that the token brings along (`jwk`, `jku`, `x5u`) is looked at; what it declares critical is refused,
as nothing is understood here; what it claims is read after its signature has been verified, but for the issuer's name, which
only chooses among the configured ones.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import math
import re
from dataclasses import dataclass, replace
from importlib import util
from typing import TYPE_CHECKING, Any

from proxyd.config.issuers import name_of
from proxyd.config.schema import MOST
from proxyd.model import Caller, Limits
from proxyd.rules.auth import budget_of, limits_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxyd.config.schema import Jwt

SKEW = 60
"""Seconds that the clocks of issuer and proxyd may differ."""
MAX_TOKEN = 16_384
MAX_KEYS = 100
MAX_CALLER = 200
LEAST_RSA = 2048

# By key type and curve; RFC 7518 3.1, RFC 8037 3.1. What is not here is not accepted: no HMAC, no `none`.
_ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_LIMITS = frozenset({"rpm", "tpm", "concurrency"})
_TOKEN = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Refused(Exception):  # noqa: N818 - it is a verdict on a token
    """The token does not hold. The message is for the log: no value of the token is in it."""


class UnknownKey(Refused):
    """It is signed by a key that is not in the set: the issuer may have a new one."""


class Expired(Refused):
    """It has held once."""


class Malformed(Refused):
    """It holds, and says something that means nothing here: for its issuer to mend, and no attack."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it reads, of which nothing is believed yet."""

    raw: bytes
    algorithm: str
    kid: str | None
    issuer: str


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of an issuer."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any
    """As the package `cryptography` has it."""
    thumbprint: str
    """What tells two keys apart, whatever they are called."""


def installed() -> bool:
    """Whether the extra `jwt` is there. Cheap: nothing is imported."""
    return util.find_spec("jwt") is not None and util.find_spec("cryptography") is not None


def looks_signed(presented: bytes) -> bool:
    """Whether a credential can be a token: three parts, and the first one begins like the base64 of `{"`."""
    return presented.startswith(b"ey") and presented.count(b".") == 2


def read_token(presented: bytes) -> Token:
    """Take a token apart. Raises Refused."""
    if len(presented) > MAX_TOKEN or not _TOKEN.fullmatch(presented):
        raise Refused("it is not a signed token")
    first, second, _ = presented.split(b".")
    head, claims = _object(first), _object(second)
    algorithm, kid, issuer = head.get("alg"), head.get("kid"), claims.get("iss")
    if not isinstance(algorithm, str) or not any(algorithm in names for names in _ALGORITHMS.values()):
        raise Refused("its algorithm is none that is accepted here: RS256 to RS512, ES256 to ES512, EdDSA")
    if "crit" in head or "b64" in head:
        raise Refused("it demands extensions that are not understood here")
    if kid is not None and not isinstance(kid, str):
        raise Refused("the name of its key is no text")
    if not isinstance(issuer, str):
        raise Refused("it names no issuer")
    return Token(presented, algorithm, kid, issuer)


def read_keys(document: bytes) -> tuple[SigningKey, ...]:
    """Read a key set (RFC 7517). Keys that cannot be used are left out. Raises ValueError where it is no key set at all.

    Left out are secrets (`oct`), keys that hold their private half, keys for other uses, weak ones, and unknown kinds.
    """
    found = json.loads(document)
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it is not a key set: it has no list `keys`")  # noqa: TRY004 - it is what was sent that is wrong
    return tuple(key for jwk in keys[:MAX_KEYS] if isinstance(jwk, dict) and (key := _signing_key(jwk)) is not None)


def verify(token: Token, keys: Sequence[SigningKey]) -> dict[str, Any]:
    """Check the signature, and return the claims. Raises UnknownKey, Refused.

    A set may have two keys of the same name (RFC 7517 4.5): each is one of the issuer's, so either may have signed.
    """
    jwt = importlib.import_module("jwt")
    fitting = [key for key in keys if token.algorithm in key.algorithms]
    named = fitting if token.kid is None else [key for key in fitting if key.kid == token.kid]
    if token.kid is None and len(fitting) > 1:
        raise Refused("it does not say which of its issuer's keys has signed it")
    if not named:
        raise UnknownKey("it is signed by no key that its issuer publishes")
    # The time is checked by `judge`, which is told it; the library would look at the clock itself.
    checks = ("verify_aud", "verify_exp", "verify_iat", "verify_iss", "verify_nbf", "verify_sub", "verify_jti")
    options = {"verify_signature": True, **dict.fromkeys(checks, False)}
    for one in named:
        try:
            claims: dict[str, Any] = jwt.decode(token.raw.decode("ascii"), one.key, algorithms=[token.algorithm], options=options)
        except jwt.exceptions.PyJWTError:
            continue
        return claims
    raise Refused("its signature is not by its issuer's key")


def judge(claims: dict[str, Any], rules: Iterable[Jwt], now: float) -> tuple[Caller, float]:
    """Say who calls by verified claims, and until when (seconds since the epoch). Raises Expired, Malformed, Refused."""
    expires = _moment(claims, "exp")
    if expires is None:
        raise Refused("it never expires")
    if now >= expires + SKEW:
        raise Expired("it has expired")
    for name, why in (("nbf", "it does not hold yet"), ("iat", "it was issued in the future")):
        moment = _moment(claims, name)
        if moment is not None and now < moment - SKEW:
            raise Refused(why)
    audience = claims.get("aud")
    heard = [audience] if isinstance(audience, str) else audience if isinstance(audience, list) else []
    rule = next((rule for rule in rules if rule.issuer == claims.get("iss") and rule.audience in heard), None)
    if rule is None:
        raise Refused("it is meant for another audience")
    return _caller(claims, rule), expires


def _caller(claims: dict[str, Any], rule: Jwt) -> Caller:
    """The name is put under the issuer's, so that nobody can be called like the holder of a key, or like another issuer's user."""
    name = _claim(claims, rule.caller)
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_CALLER or _CONTROL.search(name):
        raise Refused("the claim that names its caller is missing, or is no name")
    models = rule.models
    if rule.models_claim is not None:
        models = tuple(_words(_claim(claims, rule.models_claim)))
    admin = False
    if rule.admin_claim is not None:
        claim, _, value = rule.admin_claim.partition("=")
        admin = value in _words(_claim(claims, claim))
    budget = None if rule.budget is None else budget_of(rule.budget)
    return Caller(f"{name}@{name_of(rule)}", models, admin, _limits(claims, rule), budget)


def _limits(claims: dict[str, Any], rule: Jwt) -> Limits:
    """What the token says of its limits, as far as it does; a slip there must not mean that nothing is limited. Raises Malformed."""
    limits = limits_of(rule.limits)
    said = None if rule.limits_claim is None else _claim(claims, rule.limits_claim)
    if said is None:
        return limits
    if not isinstance(said, dict) or not said.keys() <= _LIMITS:
        raise Malformed(f"its claim {rule.limits_claim} is no object of {', '.join(sorted(_LIMITS))}")
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise Malformed(f"in its claim {rule.limits_claim}, {name} is no whole number from 1 up")
    return replace(limits, **said)


def _claim(claims: dict[str, Any], name: str) -> object:
    """A claim by its name, which may hold dots (`https://example.com/models`), else by its path (`realm_access.roles`)."""
    if name in claims:
        return claims[name]
    value: object = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _words(value: object) -> list[str]:
    """A claim of several words: a list of text, or one text with blanks between them (as `scope` has it)."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return [word for word in words[:MAX_KEYS] if isinstance(word, str) and 0 < len(word) <= MAX_CALLER]


def _moment(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"its {name} is no time")
    return float(value)


def _object(part: bytes) -> dict[str, Any]:
    """Decode a part of a token; the same member twice is a trick, not a token."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Refused("it says the same thing twice")
        return found

    try:
        found = json.loads(base64.b64decode(part + b"=" * (-len(part) % 4), b"-_", validate=True), object_pairs_hook=once)
    except (binascii.Error, ValueError, RecursionError):
        raise Refused("it cannot be read") from None
    if not isinstance(found, dict):
        raise Refused("it cannot be read")
    return found


def _signing_key(jwk: dict[str, Any]) -> SigningKey | None:
    """A key of a set, if it is one to verify signatures by."""
    jwt = importlib.import_module("jwt")
    kid, algorithm, operations = jwk.get("kid"), jwk.get("alg"), jwk.get("key_ops")
    algorithms = _ALGORITHMS.get((str(jwk.get("kty")), jwk.get("crv") if jwk.get("kty") != "RSA" else None), ())
    if algorithm is not None:
        algorithms = tuple(name for name in algorithms if name == algorithm)
    private = "d" in jwk or "k" in jwk
    other_use = jwk.get("use") not in (None, "sig") or (operations is not None and "verify" not in operations)
    if not algorithms or private or other_use or not (kid is None or isinstance(kid, str)):
        return None
    try:
        key = jwt.PyJWK.from_dict(jwk, algorithm=algorithms[0]).key
    except (jwt.exceptions.PyJWTError, ValueError, TypeError):
        return None
    if jwk["kty"] == "RSA" and key.key_size < LEAST_RSA:
        return None
    members = ("kty", "crv", "n", "e", "x", "y")
    return SigningKey(kid, algorithms, key, json.dumps([jwk.get(member) for member in members]))
