"""Callers by signed tokens: which issuer's keys are known, when they are fetched again, and who has been verified already."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import TYPE_CHECKING

from proxyd.config.issuers import private_enough
from proxyd.errors import ProxyError
from proxyd.rules import bearer
from proxyd.upstream.document import FetchError, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from proxyd.clock import Clock
    from proxyd.config.schema import Jwt
    from proxyd.model import Caller

log = logging.getLogger(__name__)

KEPT = 10_000
"""Verified tokens remembered, about 400 bytes each."""
AGAIN = 60.0
"""Seconds after which an issuer's keys may be fetched once more, whatever tokens ask for (CVE-2026-48524: a made-up `kid` fetches)."""
AT_ONCE = 3
"""Fetches that need not wait for that: keys that are rotated just after the start are found."""
AGAIN_EMPTY = 5.0
"""Seconds between two of them as long as there are no keys at all."""
FRESH = 3600.0
"""Seconds after which keys are fetched again even if none is missing: what an issuer withdraws is not believed for ever."""
STALE = 86_400.0
"""Seconds that keys are believed while they cannot be fetched."""
LIMIT = 256 * 1024
TIMEOUT = 5.0


class Issuer:
    """The keys of one issuer. Moments are monotonic seconds."""

    def __init__(self, issuer: str, jwks_url: str | None) -> None:
        self.issuer = issuer
        self.jwks_url = jwks_url
        self.keys: tuple[bearer.SigningKey, ...] = ()
        self.fetched: float | None = None
        self.tried: float | None = None
        self._left = AT_ONCE - 1.0
        """Fetches that it may have at once, as of `tried`; the first one is not among them."""
        self.fetching: asyncio.Future[None] | None = None

    def take(self, now: float) -> bool:
        """Take leave to fetch; False if it is too soon."""
        since = AT_ONCE * AGAIN if self.tried is None else now - self.tried
        if self.fetched is None:
            if since < AGAIN_EMPTY:
                return False
        else:
            left = min(AT_ONCE, self._left + since / AGAIN)
            if left < 1:
                return False
            self._left = left - 1
        self.tried = now
        return True

    def due(self, now: float) -> bool:
        """Whether the keys should be looked at again."""
        return self.fetched is None or now - self.fetched >= FRESH

    async def fetch(self) -> tuple[bearer.SigningKey, ...]:
        """Get the keys. Raises FetchError."""
        url = self.jwks_url or await self._discover()
        try:
            document = await fetch(url, limit=LIMIT, timeout=TIMEOUT)
            keys = await asyncio.to_thread(bearer.read_keys, document)  # it may be the first to need the extra: 0.1 s to import
        except (ValueError, RecursionError) as error:
            raise FetchError(f"{url} is no key set: {error}") from None
        if not keys:
            raise FetchError(f"{url} has no key that can be used")
        return keys

    async def _discover(self) -> str:
        """Where the keys are, as OpenID Connect Discovery 1.0 4 has it."""
        where = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
        try:
            document = json.loads(await fetch(where, limit=LIMIT, timeout=TIMEOUT))
        except (ValueError, RecursionError):
            raise FetchError(f"{where} is not JSON") from None
        if not isinstance(document, dict) or document.get("issuer") != self.issuer:
            raise FetchError(f"{where} is not about this issuer")
        url = document.get("jwks_uri")
        # An issuer out there may not send us to a service of this machine.
        if not isinstance(url, str) or not private_enough(url) or (url.startswith("http:") and self.issuer.startswith("https:")):
            raise FetchError(f"{where} names no https address of its keys")
        return url


class Bearers:
    """Finds callers by their tokens. Outlives reloads: what it remembers belongs to the rules that it was found by."""

    def __init__(self, clock: Clock, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Future[None]]) -> None:
        self._clock = clock
        self._spawn = spawn
        self._rules: Sequence[Jwt] = ()
        self._issuers: dict[tuple[str, str | None], Issuer] = {}
        self._verified: dict[bytes, tuple[Caller, float]] = {}

    async def find(self, presented: bytes, rules: Sequence[Jwt]) -> Caller | None:
        """Say who presents a token; None for one that does not hold.

        Raises ProxyError invalid_api_key for one that has held and expired, or that says what means nothing here, both of which
        are no attack, and told to its client; auth_unavailable where its issuer's keys cannot be had.
        """
        if rules is not self._rules:
            self._rules = rules
            self._verified.clear()
        # By the whole token, never a part of it (CVE-2026-35030), and never past its end.
        place = hashlib.sha256(presented).digest()
        known = self._verified.get(place)
        if known is not None and self._clock.now_us() < known[1] * 1e6:
            return known[0]
        try:
            caller, expires = await self._judge(bearer.read_token(presented), rules)
        except bearer.Expired:
            raise ProxyError("invalid_api_key", "The token has expired.") from None
        except bearer.Malformed as refused:
            log.warning("a token of an issuer under auth.jwt was refused: %s", refused)
            raise ProxyError("invalid_api_key", f"The token cannot be used here: {refused}.") from None
        except bearer.Refused as refused:
            log.info("a token was refused: %s", refused)
            return None
        if rules is self._rules:  # else others came while keys were fetched, which may not let it in
            while len(self._verified) >= KEPT:
                del self._verified[next(iter(self._verified))]
            self._verified[place] = caller, expires
        return caller

    async def _judge(self, token: bearer.Token, rules: Sequence[Jwt]) -> tuple[Caller, float]:
        """Try the key sets of the issuer that the token names: rules for several audiences may have one each."""
        claims = None
        for url in dict.fromkeys(rule.jwks_url for rule in rules if rule.issuer == token.issuer):
            issuer = self._issuers.setdefault((token.issuer, url), Issuer(token.issuer, url))
            try:
                claims = await self._verify(token, issuer)
            except bearer.Refused as refused:
                last: bearer.Refused = refused
            else:
                mine = [rule for rule in rules if rule.issuer == token.issuer and rule.jwks_url == url]
                return bearer.judge(claims, mine, self._clock.now_us() / 1e6)
        if not any(rule.issuer == token.issuer for rule in rules):
            raise bearer.Refused("its issuer is not one under auth.jwt")
        raise last

    async def _verify(self, token: bearer.Token, issuer: Issuer) -> dict[str, object]:
        """Check the signature, with new keys where the old ones do not know it. Raises Refused, ProxyError auth_unavailable."""
        now = self._clock.monotonic()
        if issuer.due(now) and (fetching := self._refresh(issuer)) is not None and issuer.fetched is None:
            await asyncio.wait([fetching])
        believed = issuer.fetched is not None and self._clock.monotonic() - issuer.fetched < STALE
        if not believed:
            raise ProxyError("auth_unavailable", "The keys that this token is signed by cannot be checked now.", retry_after=AGAIN_EMPTY)
        try:
            return bearer.verify(token, issuer.keys)
        except bearer.UnknownKey:
            before = issuer.fetched
            if (fetching := self._refresh(issuer)) is not None:
                await asyncio.wait([fetching])
            if issuer.fetched == before:
                raise
            return bearer.verify(token, issuer.keys)

    def _refresh(self, issuer: Issuer) -> asyncio.Future[None] | None:
        """Fetch an issuer's keys, once for all who wait, and not again too soon; None where nothing comes of waiting.

        It is a task of its own: a client that leaves must not take away the keys that others wait for.
        """
        if issuer.fetching is None or issuer.fetching.done():
            if not issuer.take(self._clock.monotonic()):
                return None
            issuer.fetching = self._spawn(self._fetch(issuer))
        return issuer.fetching

    async def _fetch(self, issuer: Issuer) -> None:
        try:
            keys = await issuer.fetch()
        except FetchError as error:
            log.warning("the keys of %s could not be fetched: %s", issuer.issuer, error)
            return
        if {key.thumbprint for key in issuer.keys} - {key.thumbprint for key in keys}:
            self._verified.clear()  # a key was withdrawn: what it has signed is believed no longer
        issuer.keys, issuer.fetched = keys, self._clock.monotonic()
