"""The nouns that rooms exchange. Values only: nothing here does anything."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msgspec import Raw


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed; None is not limited."""

    rpm: int | None = None
    """Requests a minute; as many at once from rest."""
    tpm: int | None = None
    """Tokens a minute; as many at once from rest."""
    concurrency: int | None = None
    """Exchanges at once."""

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self.rpm is not None or self.tpm is not None or self.concurrency is not None


UNLIMITED = Limits()


class Per(enum.StrEnum):
    """How often a budget begins anew, at midnight where its time zone is."""

    DAY = "day"
    MONTH = "month"


TOKENS = "tokens"
"""The unit of a budget that is not money."""
LONGEST = ("max_completion_tokens", "max_tokens")
"""The two names that an answer's greatest length has in a request, the newer one first."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a caller may use up in a day or a month."""

    amount: int
    """Tokens, or 10⁻⁹ of the currency."""
    unit: str
    """TOKENS, or a currency."""
    per: Per
    warn_at: float | None = 0.8
    """The share of it at which the owner is told; None for never."""


@dataclass(frozen=True, slots=True)
class DeliveryDefaults:
    """How answers leave where the request does not say; None is left to who is asked next, at last to the answer's format."""

    max_delay_ms: int | None = None
    """Text is held so long, to share packets."""
    max_bytes: int | None = None
    """Held text leaves early once it is so much."""
    compress: bool | None = None
    """True: whenever the client takes it; False: never."""

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return self.max_delay_ms is not None or self.max_bytes is not None or self.compress is not None


AS_USUAL = DeliveryDefaults()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name under which exchanges are recorded, and what that name may do."""

    name: str
    models: tuple[str, ...] = ("*",)
    """Patterns (`*` at the end only) of the model names that this caller may use."""
    admin: bool = False
    limits: Limits = UNLIMITED
    budget: Budget | None = None
    default_model: str | None = None
    """What a request without a model means."""
    expires_at: int | None = None
    """Microseconds since the epoch; nobody is let in by this key from then on."""
    delivery: DeliveryDefaults = AS_USUAL


class Endpoint(enum.StrEnum):
    """The relayed endpoints, by the path that clients use; the value is also the ledger's `endpoint`."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


STREAMED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
"""Those whose answers may be streams."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as parsed: the few fields that proxyd reads, and all top-level members as raw JSON."""

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool
    """The client itself asked for the usage event of its stream."""
    max_tokens: int | None
    """The largest answer per choice that the client asked for, by whichever of its two names."""
    choices: int
    """`n`, at least 1."""
    fields: dict[str, Raw]
    """Every top-level member, in the client's order, its value as the client wrote it."""


class Format(enum.StrEnum):
    """How the bytes of an answer are framed."""

    SSE = "sse"
    NDJSON = "ndjson"
    JSON = "json"
    PROTOBUF = "protobuf"
    """Frames: each message behind its length. Never an upstream's."""


class Source(enum.StrEnum):
    """Where a token count comes from; every count says so."""

    UPSTREAM = "upstream"
    COUNTED = "counted"
    ESTIMATED = "estimated"
    NONE = "none"


class State(enum.StrEnum):
    """The life of a ledger row: `open` before dispatch, then exactly one of the others."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as one source gave them; None is unknown, never 0."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens in all, as limits and budgets count them: the total, else what is known of its parts."""
        return self.total_tokens or (self.prompt_tokens or 0) + (self.completion_tokens or 0)


@dataclass(slots=True)
class Reading:
    """What the meter has read out of one answer so far. Its text is asked for apart: to put it together costs."""

    model: str | None = None
    usage: Usage | None = None
    """The last report that was not null and not all zero."""
    finish_reasons: dict[int, str | None] = field(default_factory=dict)
    """Last non-empty raw value per choice index; None for a choice that was seen unfinished."""
    had_error: bool = False
    complete: bool = False
    """A whole successful answer arrived."""
    service_tier: str | None = None
    """What the answer was served as (`flex`, `priority`, …), as the upstream last said."""


@dataclass(slots=True)
class LedgerRow:
    """One attempt at one upstream: a row of `usage_events`, written `open`, then settled once."""

    id: int
    request_id: str
    attempt: int
    caller: str
    endpoint: str
    protocol: str
    """What the client speaks: `json`, `sse`, `ndjson`, `protobuf`, …"""
    model: str
    """As the client named it."""
    upstream: str
    upstream_model: str
    """As the upstream was asked; after settling, as the upstream named itself."""
    streamed: bool
    created_at: int
    """Microseconds since the epoch."""
    state: State = State.OPEN
    conversation_id: str | None = None
    upstream_request_id: str | None = None
    usage: Usage = Usage()
    tokens_source: Source = Source.NONE
    service_tier: str | None = None
    """As the upstream said; a price may depend on it."""
    cost_nano: int | None = None
    """10⁻⁹ of the currency; None, never 0, where no price is known."""
    currency: str | None = None
    price_source: str | None = None
    """`config`, or the list and its version (`genai-prices 0.2.3`)."""
    price_version: str | None = None
    """A digest of the very rates that were applied."""
    status: int | None = None
    """The HTTP status of the answer; 499 when the client left before there was one."""
    error: str | None = None
    """A code of `errors.TABLE`."""
    finish_reason: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    ttft_ms: float | None = None
    """From the arrival of the request to the first byte of the answer's body."""
    latency_ms: float | None = None
    settled_at: int | None = None


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for every exchange, and freezing doubles what that costs
class Ending:
    """How one exchange ended, whatever its way: what the access line and the metrics tell of it, and nothing secret.

    `model`, `caller` and `request_id` may hold what a client wrote; `route`, `upstream` and `endpoint` never do.
    """

    at_us: int
    """Wall time of the end, microseconds since the epoch."""
    request_id: str
    endpoint: str
    """A path of the table of endpoints, not of the request line."""
    status: int
    """As the client got it; 499 when it left before there was one."""
    state: State
    duration_ms: float
    """From the arrival of the request to its settlement."""
    caller: str | None = None
    """None when the exchange was refused before its caller was known."""
    model: str | None = None
    """As the client named it."""
    route: str | None = None
    """As the route table names it (a pattern stays a pattern); None when there was no route."""
    upstream: str | None = None
    """A name of the configuration; None when no upstream answered (refused, replayed, cached)."""
    streamed: bool = False
    error: str | None = None
    """A code of `errors.TABLE`."""
    attempts: int = 0
    """Upstream calls; 0 for refused, replayed and cached."""
    usage: Usage = Usage()
    tokens_source: Source = Source.NONE
    cost_nano: int | None = None
    currency: str | None = None
    ttft_ms: float | None = None
    """From the arrival of the request to the first byte of the answer's body."""
    stream_ms: float | None = None
    """From the first to the last event of a streamed answer."""
    events: int = 0
    """Events of a streamed answer that passed."""
    overhead_ms: float | None = None
    """Time inside proxyd: up to the upstream call, and from the upstream's last byte to the end; None when not measured."""
