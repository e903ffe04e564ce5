"""The doctor's look at the upstreams: their name, their port, their certificate, the credential, the models. Not a command itself."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxyd.cli.doctor_access import SOON
from proxyd.cli.finding import Finding, fail, ok, warn
from proxyd.config.schema import Kind
from proxyd.upstream import kinds

if TYPE_CHECKING:
    from proxyd.config.schema import Config, Upstream

PATIENCE = 5.0
"""Seconds that a connection may take, and each silence in an answer."""
MOST = 16 * 1024 * 1024
"""Bytes of a list of models that are read."""


@dataclass(slots=True)
class Visit:
    """What came of a look at one upstream."""

    findings: list[Finding] = field(default_factory=list)
    date: float | None = None
    """The upstream's clock, seconds since the epoch, by its own `Date` header."""


def visit(config: Config) -> list[Visit]:
    """Look at every upstream, all at once."""
    asked = {name: _wanted(config, name) for name in config.upstreams}
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(lambda name: _visit(name, config.upstreams[name], asked[name]), config.upstreams))


def _wanted(config: Config, name: str) -> list[str]:
    """The models that routes ask of an upstream by their whole names."""
    found = set()
    for route, model in config.models.items():
        for target in model.upstreams:
            if target.upstream == name and (target.model or not route.endswith("*")):
                found.add(target.model or route.removeprefix(model.strip_prefix or ""))
    return sorted(found)


def _visit(name: str, spec: Upstream, wanted: list[str]) -> Visit:
    about, found = f"upstream {name}", Visit()
    if spec.kind is Kind.ECHO:
        found.findings.append(ok(about, "embedded"))
        return found
    url = urlsplit(kinds.base_url(spec))
    host, tls = url.hostname or "", url.scheme == "https"
    port = url.port or (443 if tls else 80)
    connected = _connect(about, host, port, found)
    if connected is None:
        return found
    with connected:
        if tls:
            secured = _secure(about, connected, host, found)
            if secured is None:
                return found
            with secured:
                _ask(about, spec, secured, wanted, found)
        else:
            _ask(about, spec, connected, wanted, found)
    return found


def _connect(about: str, host: str, port: int, found: Visit) -> socket.socket | None:
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        advice = "is its base_url right, and does this machine's resolver work (/etc/resolv.conf)?"
        found.findings.append(fail(about, f"the name {host} cannot be resolved: {error.strerror}", advice))
        return None
    try:
        return socket.create_connection((host, port), PATIENCE)
    except OSError as error:
        why = "it does not answer" if isinstance(error, TimeoutError) else str(error.strerror or error).lower()
        where = ", ".join(sorted({str(place[4][0]) for place in places}))
        found.findings.append(
            fail(about, f"{host}:{port} ({where}) cannot be reached: {why}", "is it running, and does a firewall let it be reached?")
        )
        return None


def _secure(about: str, connected: socket.socket, host: str, found: Visit) -> ssl.SSLSocket | None:
    context = ssl.create_default_context()
    try:
        secured = context.wrap_socket(connected, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        advice = (
            "let it have one of an authority that this machine trusts; for your own authority set SSL_CERT_FILE (in the unit: Environment=)"
        )
        found.findings.append(fail(about, f"its certificate is not good: {error.verify_message}", advice))
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        found.findings.append(fail(about, f"TLS fails: {reason}", "is it https at all? An http server needs http:// in its base_url"))
        return None
    certificate = secured.getpeercert() or {}
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    found.findings.append(_validity(about, ends))
    return secured


def _validity(about: str, ends: float) -> Finding:
    from proxyd.clock import Clock  # noqa: PLC0415 - one reading

    days = int((ends - Clock().now_us() / 1e6) // 86_400)
    if days < SOON:
        return warn(about, f"its certificate ends in {days} days", "have it renewed; when it has ended, no request gets through")
    return ok(about, f"TLS, its certificate is good for {days} days")


def _ask(about: str, spec: Upstream, connected: socket.socket, wanted: list[str], found: Visit) -> None:
    """Ask for its models, with its credential, as a request would."""
    connection = http.client.HTTPConnection(urlsplit(kinds.base_url(spec)).netloc, timeout=PATIENCE)
    connection.sock = connected
    connected.settimeout(PATIENCE)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if spec.api_key is not None:
        name, value = kinds.traits(spec).credential(spec.api_key)
        headers[name.decode()] = value.decode()
    try:
        connection.request("GET", kinds.models_path(spec), headers=headers)
        answer = connection.getresponse()
        if date := answer.getheader("Date"):
            found.date = _moment(date)
        body = answer.read(MOST)
    except (OSError, http.client.HTTPException) as error:
        advice = "is the right program behind its base_url, and is it well?"
        found.findings.append(fail(about, f"it broke off while it was asked for its models: {error or type(error).__name__}", advice))
        return
    found.findings.append(_judge(about, spec, answer.status, body, wanted))


def _judge(about: str, spec: Upstream, status: int, body: bytes, wanted: list[str]) -> Finding:
    """Tell what an answer to GET models means. Nothing of it is shown but names of models that the configuration has: 401s echo the key."""
    if status in {401, 403}:
        if spec.api_key is None:
            return fail(about, f"it wants a credential (status {status})", "give it an api_key")
        advice = "check its api_key: is it whole, of this provider, and still valid?"
        return fail(about, f"it refuses the credential (status {status})", advice)
    if status != 200:
        advice = "is its base_url right? Most end with /v1; a few servers have no such list" if status == 404 else "look at its own log"
        return warn(about, f"it answers with status {status} when it is asked for its models", advice)
    try:
        there = {str(model["id"]) for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return warn(about, "what it answers is no list of models", "is its base_url right? A web page answers there, or another API")
    return _models(about, spec, there, wanted)


def _models(about: str, spec: Upstream, there: set[str], wanted: list[str]) -> Finding:
    """Hold what routes ask for against what an upstream lists."""
    if spec.kind is Kind.AZURE:  # it lists what could be deployed, not what is
        return ok(about, "answers, and takes the credential")
    missing = [name for name in wanted if name not in there and f"{name}:latest" not in there]
    if not missing:
        return ok(about, f"answers, with {len(there)} models" + (f", {len(wanted)} of them routed" if wanted else ""))
    names = ", ".join(missing)
    if spec.kind is Kind.OLLAMA:
        return fail(about, f"it has no model {names}", "; ".join(f"ollama pull {name}" for name in missing))
    advice = "is the name right? `model:` of the route's target renames it; some providers list not all they serve"
    return warn(about, f"it does not list the model {names}", advice)


def _moment(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
