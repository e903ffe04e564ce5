"""The doctor's look at how clients get in: the certificate of their port, and the issuers of their tokens. Not a command itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import ssl
import stat
from typing import TYPE_CHECKING

from proxyd.cli.finding import Finding, fail, ok, warn
from proxyd.clock import Clock
from proxyd.config.issuers import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from proxyd.config.schema import Config, Tls

SOON = 14
"""Days that a certificate should still be good for: those that are renewed by themselves are renewed 30 days before their end."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime, as RFC 5280 4.1.2.5 has them in certificates."""


def certificate(config: Config, folder: Path, unit: Mapping[str, str] | None) -> Iterator[Finding]:
    """Whether the clients' port can greet with its certificate, and for how long. `unit`: the settings of systemd's, if there is one."""
    if config.tls is None:
        return
    from proxyd.daemon.boot import RefusedError  # noqa: PLC0415 - `proxyd doctor --help` imports no server
    from proxyd.daemon.tls import load  # noqa: PLC0415

    about = "tls"
    try:
        load(config.tls, folder)
    except RefusedError as error:
        for reason in error.reasons:
            yield fail(about, reason, _mend(reason))
        return
    try:
        begins, ends = validity((folder / config.tls.cert).read_text("ascii"))
    except (ValueError, OSError) as error:
        yield warn(about, f"its dates cannot be read: {error}", "look at it: openssl x509 -noout -dates -in FILE")
        return
    now = Clock().now_us() / 1e6
    days = int((ends - now) // 86_400)
    advice = "have it renewed; a new file in its place is taken by itself"
    if ends <= now:
        yield fail(about, f"its certificate ended on {_day(ends)}: no client gets in", advice)
    elif begins > now:
        yield fail(about, f"its certificate begins on {_day(begins)}", "is this machine's clock right? Else wait, or take another one")
    elif days < SOON:
        yield warn(about, f"its certificate ends in {days} days, on {_day(ends)}", advice)
    else:
        yield ok(about, f"its certificate is good for {days} days, and the key is its own")
    yield from _reachable(config.tls, folder, unit)


def _mend(reason: str) -> str:
    if "cannot be read" in reason:
        return "is the path right (a relative one begins at the configuration's folder), and may this user read it?"
    if "do not belong together" in reason:
        return "take both out of the same order: compare `openssl x509 -noout -pubkey -in CERT` with `openssl pkey -pubout -in KEY`"
    return "both are PEM files: the certificate first, then its chain; the key without a password"


def _reachable(spec: Tls, folder: Path, unit: Mapping[str, str] | None) -> Iterator[Finding]:
    """Whether the service's own user may read the key, which root of course may."""
    if unit is None or (unit.get("user", "root") == "root" and unit.get("dynamicuser", "no") not in {"yes", "true", "1", "on"}):
        return
    groups = f"{unit.get('supplementarygroups', '')} {unit.get('group', '')}".split()
    for name in dict.fromkeys((spec.cert, spec.key)):
        file = (folder / name).resolve()
        for place, wanted in ((file, 4), *((parent, 1) for parent in file.parents)):  # read the file, pass through its folders
            mode, group = stat.S_IMODE(place.stat().st_mode), place.group()
            if not (mode & wanted or (mode >> 3 & wanted and group in groups) or place.owner() == unit.get("user")):
                says = f"the unit's user may not read {file}: {place} has mode {mode:o} and the group {group}"
                yield warn("tls", says, "put a copy where a group may read it, and name that in SupplementaryGroups= (systemd/README.md)")
                break


def validity(pem: str) -> tuple[float, float]:
    """From when to when the first certificate of a PEM file is good, in seconds since the epoch. Raises ValueError."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    der = ssl.PEM_cert_to_DER_cert(found[0])
    try:
        (_, body), *_ = _parts(der)
        (_, told), *_ = _parts(body)
        fields = [part for part in _parts(told) if part[0] != 0xA0]  # the version; then serial, algorithm, issuer, validity
        begins, ends = (_moment(*part) for part in _parts(fields[3][1]))
    except (IndexError, KeyError) as error:
        raise ValueError("it is no X.509 certificate") from error
    return begins, ends


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What stands in a DER value, one after the other: (tag, content) (X.690 8.1)."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            more = size & 0x7F
            size, at = int.from_bytes(data[at : at + more], "big"), at + more
        yield tag, data[at : at + size]
        at += size


def _moment(tag: int, text: bytes) -> float:
    return dt.datetime.strptime(text.decode("ascii"), _TIMES[tag]).replace(tzinfo=dt.UTC).timestamp()


def _day(moment: float) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).date().isoformat()


def issuers(config: Config) -> Iterable[Finding]:
    """Whether the keys of each issuer of tokens can be had, by the same way that the daemon takes."""
    from proxyd.rules import bearer  # noqa: PLC0415

    rules = config.auth.jwt if config.auth is not None and bearer.installed() else ()
    wanted = {(rule.issuer, rule.jwks_url): name_of(rule) for rule in rules}
    return asyncio.run(_asked(wanted)) if wanted else []


async def _asked(wanted: Mapping[tuple[str, str | None], str]) -> list[Finding]:
    return await asyncio.gather(*(_ask(name, *place) for place, name in wanted.items()))


async def _ask(name: str, issuer: str, jwks_url: str | None) -> Finding:
    from proxyd.flow.bearers import Issuer  # noqa: PLC0415
    from proxyd.upstream.document import FetchError  # noqa: PLC0415

    about = f"issuer {name}"
    try:
        keys = await Issuer(issuer, jwks_url).fetch()
    except FetchError as error:
        advice = "is the issuer written as its tokens have it, and can this machine reach it? `jwks_url` says where its keys are"
        return fail(about, f"its keys cannot be had: {error}", advice)
    return ok(about, f"publishes {len(keys)} keys, of {', '.join(sorted({key.algorithms[0] for key in keys}))}")
