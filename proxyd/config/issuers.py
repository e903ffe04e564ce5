"""What must be true of the issuers of tokens, beside their types."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxyd.config.address import parse_address

if TYPE_CHECKING:
    from proxyd.config.read import Draft, Path
    from proxyd.config.schema import Auth, Jwt

_VISIBLE = re.compile("[\x21-\x7e]{1,256}")


def check_issuers(draft: Draft) -> None:
    """Note every mistake in `auth.jwt`."""
    auth: Auth | None = draft.values["auth"]
    if auth is None:
        return
    pairs: set[tuple[str, str]] = set()
    names: dict[str, str] = {}
    for path, rule in draft.items(("auth", "jwt"), auth.jwt):
        if (rule.issuer, rule.audience) in pairs:
            draft.mistake((*path, "audience"), "this issuer is there twice with the same audience; remove one of them")
        pairs.add((rule.issuer, rule.audience))
        name = name_of(rule)
        if names.setdefault(name, rule.issuer) != rule.issuer:
            draft.mistake((*path, "name"), "another issuer has the same name; callers of both would be taken for each other")
        if not _VISIBLE.fullmatch(name) or "@" in name:
            draft.mistake((*path, "name"), "'name' must be of visible ASCII characters, without @")
        _addresses(draft, path, rule)
        claim, equals, value = (rule.admin_claim or "claim=value").partition("=")
        if not (claim and equals and value):
            draft.mistake((*path, "admin_claim"), "'admin_claim' names a claim and its value; write realm_access.roles=proxyd-admin, say")
    for path, key in draft.items(("auth", "keys"), auth.keys):
        if any(key.name.endswith(f"@{name}") for name in names):
            draft.mistake((*path, "name"), f"{draft.written((*path, 'name'))} is how a caller of an issuer under auth.jwt is called")


def name_of(rule: Jwt) -> str:
    """What stands behind the @ in the names of an issuer's callers."""
    return rule.name or rule.issuer.partition("://")[2].rstrip("/") or rule.issuer


def private_enough(url: str) -> bool:
    """Whether keys may be fetched from there: over TLS, or from this very machine."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "https":
            return bool(parts.hostname) and "@" not in parts.netloc
        return parts.scheme == "http" and "@" not in parts.netloc and parse_address(_with_port(parts.netloc)).loopback
    except ValueError:
        return False


def _addresses(draft: Draft, path: Path, rule: Jwt) -> None:
    where = "issuer" if rule.jwks_url is None else "jwks_url"
    url = rule.issuer if rule.jwks_url is None else rule.jwks_url
    if not _VISIBLE.fullmatch(url) or not private_enough(url):
        more = "; its keys are looked up there, unless 'jwks_url' says where they are" if where == "issuer" else ""
        draft.mistake((*path, where), f"{where!r} must begin with https:// (or http:// on this machine){more}")


def _with_port(netloc: str) -> str:
    return netloc if re.search(r":[0-9]+$", netloc) else f"{netloc}:80"
