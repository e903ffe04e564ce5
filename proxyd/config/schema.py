"""What the YAML may say: one frozen struct a section, every default, and whether a reload applies it.

Durations are seconds, sizes are bytes; `load` has turned `30s` and `32MiB` into them before these are made. None stands
for `none` and `off`. Field metadata: `boot` marks what a reload cannot change; `description` is shown by editors.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, get_args

from msgspec import Meta, Struct, field
from msgspec.structs import fields

from proxyd.config.units import LONGEST
from proxyd.model import Per  # noqa: TC001 - msgspec reads the annotations

TEST_KEY = "test-key"  # known to everybody, on purpose
"""The one API key, of the caller `test`, that `environment: test` has when the file names none."""


FIXED_MEMBERS = frozenset({"model", "stream"})
"""What a route's `set`, `force` and `drop` must leave alone: the exchange is run by them."""


def _about(text: str, *, boot: bool = False, unit: str | None = None, secret: bool = False) -> Meta:
    """Describe a field; `unit` is a key of `units.UNITS`, or absent. A `secret` is shown nowhere."""
    return Meta(description=text, extra={"boot": boot, "unit": unit, "secret": secret})


Seconds = Annotated[float, Meta(gt=0, le=LONGEST)]
Bytes = Annotated[int, Meta(ge=1, le=2**31)]
Amount = Annotated[float, Meta(ge=0, le=1_000_000)]


class Kind(enum.StrEnum):
    """What an upstream speaks."""

    OPENAI = "openai"
    AZURE = "azure"
    OLLAMA = "ollama"
    HUGGINGFACE = "huggingface"
    ECHO = "echo"


class Environment(enum.StrEnum):
    """How strict to be at start; `safety` has the rules."""

    DEVELOPMENT = "development"
    TEST = "test"
    STAGING = "staging"
    PRODUCTION = "production"


class Durability(enum.StrEnum):
    """When a row is on disk: before the client sees the end, or within one group commit."""

    STRICT = "strict"
    RELAXED = "relaxed"


class OnFailure(enum.StrEnum):
    """What new work gets while the database cannot be written."""

    REFUSE = "refuse"
    SERVE = "serve"


class Strategy(enum.StrEnum):
    """How a route with several upstreams picks the first one to try."""

    FAILOVER = "failover"
    WEIGHTED = "weighted"
    LEAST_BUSY = "least_busy"
    LOWEST_LATENCY = "lowest_latency"


class Reuse(enum.StrEnum):
    """Whether pooled connections carry requests."""

    SAFE = "safe"
    NEVER = "never"


def _secrets(section: type[Struct]) -> frozenset[str]:
    """The fields of a section that `_about` calls secret."""
    return frozenset(
        f.name for f in fields(section) if any(isinstance(x, Meta) and (x.extra or {}).get("secret") for x in get_args(f.type))
    )


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the YAML; unknown keys are errors."""

    def __repr__(self) -> str:
        """Show every field but the secrets: a struct in a log or an assertion tells none."""
        secrets = _secrets(type(self))
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        shown = (f"{name}={'…' if value and name in secrets else repr(value)}" for name, value in values)
        return f"{type(self).__name__}({', '.join(shown)})"


class Timeouts(_Section, frozen=True):
    """The four timeouts of an upstream, in seconds; None waits for ever."""

    connect: Annotated[Seconds | None, _about("to a connected socket, TLS included", unit="duration")] = 5.0
    first_byte: Annotated[Seconds | None, _about("from the request to the first byte of the answer's body", unit="duration")] = 300.0
    between_bytes: Annotated[Seconds | None, _about("longest silence inside an answer", unit="duration")] = 120.0
    total: Annotated[Seconds | None, _about("the whole exchange", unit="duration")] = None


class Probe(_Section, frozen=True):
    """Asking an upstream how it is, before a client finds out."""

    every: Annotated[Seconds, _about("between two probes", unit="duration")] = 30.0
    path: Annotated[str | None, _about("a path of its host, as in /health; none: its list of models")] = None
    timeout: Annotated[Seconds, _about("for an answer", unit="duration")] = 5.0


class Upstream(_Section, frozen=True):
    """One provider account or server."""

    kind: Annotated[Kind, _about("what it speaks: openai (and all that speak like it), azure, ollama, huggingface, echo")]
    base_url: Annotated[str | None, _about("where it is; required for openai and azure, the others know their own; echo has none")] = None
    api_key: Annotated[str | None, _about("its credential; write ${VAR}, never the key itself", secret=True)] = None
    api_version: Annotated[str | None, _about("azure only: the date of the API, as in 2024-10-21; without it the v1 API is used")] = None
    include_usage: Annotated[bool | None, _about("whether proxyd may ask streams for their usage; default by kind")] = None
    timeouts: Annotated[Timeouts, _about("connect, first_byte, between_bytes, total")] = Timeouts()
    max_connections: Annotated[
        int, _about("connections open at once; more requests wait, bounded by the connect timeout"), Meta(ge=1, le=100_000)
    ] = 256
    probe: Annotated[Probe | None, _about("ask it regularly how it is; two failed probes in a row open its breaker")] = None
    reuse: Annotated[Reuse, _about("safe: keep connections for the next request; never: a new one each time")] = Reuse.SAFE


class Target(_Section, frozen=True):
    """One upstream of a route, with the name the model has there."""

    upstream: Annotated[str, _about("a name under `upstreams`")]
    model: Annotated[str | None, _about("the model's name there; default: the name the client used")] = None
    weight: Annotated[int, _about("share of requests with strategy weighted"), Meta(ge=1, le=1_000_000)] = 1


class Retry(_Section, frozen=True):
    """When to try again, and how often, before a byte of the answer went out."""

    attempts: Annotated[int, _about("upstream calls in all"), Meta(ge=1, le=10)] = 3
    on: Annotated[tuple[str | int, ...], _about("connect, timeout, 5xx, and HTTP statuses from 400 to 599")] = (
        *("connect", "timeout"),
        *(429, "5xx"),
    )


class Delivery(_Section, frozen=True):
    """How answers are delivered where the client does not say; None leaves it to the next one, at last to their format."""

    max_delay_ms: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        _about("text is held so long, to share packets; default: 100 for protobuf, 0 for JSON"),
    ] = None
    max_bytes: Annotated[Annotated[int, Meta(ge=1, le=65_536)] | None, _about("held text leaves early once it is so much", unit="size")] = (
        None
    )
    compress: Annotated[bool | None, _about("true: whenever the client takes it; false: never; none: when the client asks")] = None


class OnDisconnect(enum.StrEnum):
    """What becomes of the upstream when the client leaves."""

    CANCEL = "cancel"
    DRAIN = "drain"


class Rates(_Section, frozen=True):
    """What tokens cost, each kind; none: not known, or as what they are a part of."""

    input: Annotated[Amount | None, _about("tokens of the prompt", unit="money")] = None
    output: Annotated[Amount | None, _about("tokens of the answer", unit="money")] = None
    cached_input: Annotated[Amount | None, _about("of the prompt, what the provider had cached; none: as input", unit="money")] = None
    cache_write: Annotated[Amount | None, _about("of the prompt, what it put into its cache; none: as input", unit="money")] = None
    reasoning: Annotated[Amount | None, _about("of the answer, what was thought; none: as output", unit="money")] = None
    audio_input: Annotated[Amount | None, _about("of the prompt, sound; none: as input", unit="money")] = None
    audio_output: Annotated[Amount | None, _about("of the answer, sound; none: as output", unit="money")] = None


class Tier(Rates, frozen=True, kw_only=True):
    """Other rates for whole requests with a long prompt."""

    above: Annotated[int, _about("prompt tokens beyond which they hold", unit="count"), Meta(ge=1, le=10**9)]


class Price(Rates, frozen=True, kw_only=True):
    """What a model costs."""

    per: Annotated[int, _about("how many tokens the amounts are for: 1M, 1k, 1", unit="count"), Meta(ge=1, le=10**9)] = 1_000_000
    currency: Annotated[str, _about("three letters, as in USD or EUR (ISO 4217)")] = "USD"
    tiers: Annotated[tuple[Tier, ...], _about("other rates beyond a length of the prompt; what they leave out is as above")] = ()
    services: Annotated[
        dict[str, Rates], _about("other rates by the answer's service_tier: flex, priority; what they leave out is as above")
    ] = field(default_factory=dict)


Share = Annotated[float, Meta(gt=0, le=1)]
MOST = 10**12
"""Of a limit: what is more is a slip of the pen."""
Count = Annotated[int, Meta(ge=1, le=MOST)]


class Allowance(_Section, frozen=True):
    """How much may pass; none is no limit."""

    rpm: Annotated[Count | None, _about("requests a minute; as many at once from rest", unit="count")] = None
    tpm: Annotated[Count | None, _about("tokens a minute, prompt and answer; as many at once from rest", unit="count")] = None
    concurrency: Annotated[Count | None, _about("exchanges at once")] = None


class RouteLimits(Allowance, frozen=True):
    """How much may pass on a route: of all callers together, and of each one."""

    per_caller: Annotated[Allowance, _about("of each caller on this route")] = Allowance()


class Queue(_Section, frozen=True):
    """Waiting instead of being refused, where only `concurrency` is in the way; callers take turns."""

    max: Annotated[int, _about("requests that wait at once; more are refused"), Meta(ge=1, le=100_000)] = 50
    wait: Annotated[Seconds, _about("the longest wait", unit="duration")] = 20.0


class Model(_Section, frozen=True):
    """A route: what a model name (or a pattern ending in `*`) means."""

    upstreams: Annotated[tuple[Target, ...], _about("in order of preference")] = ()
    strategy: Annotated[Strategy, _about("failover: in order; weighted; least_busy; lowest_latency")] = Strategy.FAILOVER
    strip_prefix: Annotated[str | None, _about("taken off the client's name before the upstream sees it")] = None
    retry: Annotated[Retry, _about("attempts and what is worth one")] = Retry()
    set: Annotated[dict[str, Any], _about("fields added where the client sent none")] = field(default_factory=dict)
    force: Annotated[dict[str, Any], _about("fields that replace the client's")] = field(default_factory=dict)
    drop: Annotated[tuple[str, ...], _about("fields removed")] = ()
    delivery: Annotated[Delivery, _about("how answers leave where neither the request nor the caller's key says")] = Delivery()
    on_disconnect: Annotated[OnDisconnect, _about("cancel: stop the upstream when the client leaves; drain: read on, for exact usage")] = (
        OnDisconnect.CANCEL
    )
    price: Annotated[
        Price | None, _about("what its tokens cost; none: as the list of the extra `prices` has it, if it knows the model")
    ] = None
    limits: Annotated[RouteLimits, _about("rpm, tpm and concurrency of all callers together, and of each")] = RouteLimits()
    required: Annotated[bool, _about("whether /ready says no while none of its upstreams takes calls")] = True
    queue: Annotated[Queue | None, _about("wait for a place instead of being refused for concurrency")] = None


class Budget(_Section, frozen=True, kw_only=True):
    """How much a caller may use up: money or tokens, in a day or a month."""

    amount: Annotated[Amount | None, _about("money, where prices are known; none: `tokens` counts", unit="money")] = None
    currency: Annotated[str, _about("of the amount; only what is priced in it counts")] = "USD"
    tokens: Annotated[Count | None, _about("tokens, prompt and answer; none: `amount` counts", unit="count")] = None
    per: Annotated[Per, _about("day or month, by the `timezone`")]
    warn_at: Annotated[Share | None, _about("the share of it at which the log and a metric tell; none for never", unit="share")] = 0.8


class Key(_Section, frozen=True):
    """A static API key."""

    name: Annotated[str, _about("the caller's name in the ledger")]
    key: Annotated[str, _about("the secret; write ${VAR}", secret=True)]
    models: Annotated[tuple[str, ...], _about("model names or patterns that it may use")] = ("*",)
    limits: Annotated[Allowance, _about("rpm, tpm and concurrency of this caller")] = Allowance()
    budget: Annotated[Budget | None, _about("how much it may use up in a day or a month")] = None
    admin: Annotated[bool, _about("whether it may use the operator's port from other machines")] = False
    expires: Annotated[str | None, _about("the day or time from which on it lets nobody in, as in 2027-01-31")] = None
    default_model: Annotated[str | None, _about("what a request without a model means")] = None
    delivery: Annotated[Delivery, _about("how this caller's answers leave where the request does not say")] = Delivery()


class Jwt(_Section, frozen=True):
    """An issuer of signed tokens (OIDC), and what its tokens allow. Its callers are recorded as caller@name."""

    issuer: Annotated[str, _about("as the claim `iss` has it, to the letter")]
    audience: Annotated[str, _about("what the claim `aud` must hold")]
    jwks_url: Annotated[str | None, _about("where its keys are; none: as its /.well-known/openid-configuration says")] = None
    name: Annotated[str | None, _about("what stands behind the @ of its callers; none: the issuer without https://")] = None
    caller: Annotated[str, _about("the claim that names the caller; a path has dots")] = "sub"
    models: Annotated[tuple[str, ...], _about("model names or patterns that its callers may use")] = ("*",)
    models_claim: Annotated[str | None, _about("the claim that lists them instead: a list, or words with blanks between")] = None
    limits: Annotated[Allowance, _about("rpm, tpm and concurrency of each of its callers")] = Allowance()
    limits_claim: Annotated[
        str | None, _about("the claim that says them instead: an object of rpm, tpm and concurrency; what it leaves out is as in `limits`")
    ] = None
    budget: Annotated[Budget | None, _about("how much each of its callers may use up in a day or a month")] = None
    admin_claim: Annotated[str | None, _about("CLAIM=VALUE: who has that value in that claim is an admin")] = None


class Auth(_Section, frozen=True):
    """Who may call."""

    jwt: Annotated[tuple[Jwt, ...], _about("issuers of signed tokens")] = ()
    keys: Annotated[tuple[Key, ...], _about("static keys")] = ()


class Cors(_Section, frozen=True):
    """Web pages that may call from a browser."""

    origins: Annotated[tuple[str, ...], _about("exact origins, as in https://example.com; * for every page, without credentials")] = ()
    credentials: Annotated[bool, _about("whether pages may send cookies and other credentials of the browser's own")] = False


class Ops(_Section, frozen=True):
    """The operator's port."""

    listen: Annotated[str | None, _about("the operator's listener, never on the clients' port; off for none", boot=True)] = "127.0.0.1:9464"


class Retain(_Section, frozen=True):
    """How long rows are kept."""

    usage: Annotated[Seconds | None, _about("usage rows; forever for no end", unit="duration")] = None
    idempotency: Annotated[Seconds, _about("claims and the answers kept under them", unit="duration")] = 86400.0
    conversations: Annotated[Seconds | None, _about("conversations, from their last turn; forever for no end", unit="duration")] = None


class Storage(_Section, frozen=True):
    """The database."""

    url: Annotated[str, _about("sqlite:///FILE, relative to $STATE_DIRECTORY, else to the YAML file", boot=True)] = "sqlite:///proxyd.db"
    durability: Annotated[Durability, _about("strict: what a client saw whole is on disk; relaxed: in the next commit")] = Durability.STRICT
    on_failure: Annotated[OnFailure, _about("refuse new work, or serve it, while the disk fails")] = OnFailure.REFUSE
    retain: Annotated[Retain, _about("how long rows are kept")] = Retain()


class Streams(_Section, frozen=True):
    """Streamed answers."""

    ping: Annotated[Seconds | None, _about("silence before a keep-alive comment; off for none", unit="duration")] = 15.0
    drain: Annotated[
        float, _about("how long running streams may finish at SIGTERM; 0 stops at once", unit="duration"), Meta(ge=0, le=LONGEST)
    ] = 30.0


class Limits(_Section, frozen=True):
    """Bounds on what clients may send."""

    body: Annotated[Bytes, _about("largest request body, decoded", unit="size")] = 32 * 1024 * 1024
    streams: Annotated[int, _about("exchanges at once; more get 503"), Meta(ge=1)] = 10_000
    connections_per_address: Annotated[int, _about("client connections at once from one address; more get 429"), Meta(ge=1)] = 4096
    auth_failures: Annotated[Count | None, _about("wrong keys a minute from one address; who sends more waits; none for no end")] = 120
    body_timeout: Annotated[Seconds, _about("time to send a whole request body", unit="duration")] = 60.0
    header_timeout: Annotated[Seconds, _about("time to send a request head, and idle keep-alive", unit="duration")] = 60.0
    write_timeout: Annotated[Seconds, _about("how long a client may leave unread what it was sent", unit="duration")] = 60.0


class OnBroken(enum.StrEnum):
    """What a repeated request gets when the first one's answer broke off after its first byte."""

    RERUN = "rerun"
    CONFLICT = "conflict"


class Idempotency(_Section, frozen=True):
    """Once means once."""

    on_broken: Annotated[OnBroken, _about("rerun: run it anew, both are billed; conflict: 409, a new key is needed")] = OnBroken.RERUN


class Resume(_Section, frozen=True):
    """Streams that outlive their client."""

    grace: Annotated[Seconds, _about("how long an upstream runs on while nobody listens", unit="duration")] = 60.0
    tape: Annotated[Bytes, _about("bytes of one answer that are kept to be sent again", unit="size")] = 4 * 1024 * 1024


class Tls(_Section, frozen=True):
    """A certificate for the clients' port."""

    cert: Annotated[str, _about("the certificate and its chain, a PEM file; relative to this one"), Meta(min_length=1)]
    key: Annotated[str, _about("its private key, a PEM file without a password"), Meta(min_length=1)]


class Otel(_Section, frozen=True):
    """OpenTelemetry: a span and metrics of each exchange, by the conventions for GenAI, without prompts and answers."""

    endpoint: Annotated[str, _about("a receiver of OTLP over HTTP; /v1/traces and /v1/metrics are added", boot=True)] = (
        "http://127.0.0.1:4318"
    )
    service_name: Annotated[str, _about("what this proxyd is called there", boot=True), Meta(min_length=1)] = "proxyd"
    headers: Annotated[
        dict[str, Annotated[str, _about("its value; write ${VAR} where it is a credential", secret=True)]],
        _about("sent with each export, as the receiver asks for", boot=True, secret=True),
    ] = field(default_factory=dict)


class Config(_Section, frozen=True):
    """The whole file."""

    upstreams: Annotated[dict[str, Upstream], _about("providers, by name")]
    models: Annotated[dict[str, Model], _about("the route table: a model name or pattern → upstream")]
    listen: Annotated[str, _about("the clients' port: host:port, [v6]:port or unix:/path", boot=True)] = "127.0.0.1:8080"
    tls: Annotated[
        Tls | None, _about("HTTPS on the clients' port; new certificates are taken live, turning it on or off is not", boot=True)
    ] = None
    ops: Annotated[Ops, _about("the operator's port")] = Ops()
    environment: Annotated[Environment, _about("development, test, staging or production", boot=True)] = Environment.DEVELOPMENT
    storage: Annotated[Storage, _about("the database")] = Storage()
    streams: Annotated[Streams, _about("streamed answers")] = Streams()
    limits: Annotated[Limits, _about("bounds on what clients may send")] = Limits()
    idempotency: Annotated[Idempotency, _about("requests with an Idempotency-Key")] = Idempotency()
    resume: Annotated[Resume, _about("streams that outlive their client")] = Resume()
    delivery: Annotated[Delivery, _about("how answers leave where neither the request, nor the key, nor the route says")] = Delivery()
    aliases: Annotated[dict[str, str], _about("other names for models")] = field(default_factory=dict)
    timezone: Annotated[str, _about("where the days and months of budgets begin, as in Europe/Berlin")] = "UTC"
    cors: Annotated[Cors | None, _about("web pages that may call from a browser; none: only pages of proxyd's own origin")] = None
    auth: Annotated[Auth | None, _about("who may call; `none` lets everybody in")] = Auth()
    otel: Annotated[Otel | None, _about("spans and metrics over OTLP; needs the extra `otel`", boot=True)] = None
    watch: Annotated[bool, _about("reload when this file, the .env beside it, or a file that it points at changes")] = True
