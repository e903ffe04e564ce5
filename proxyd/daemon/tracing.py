"""OpenTelemetry: what each exchange was, told to a receiver of OTLP over HTTP, by the semantic conventions for GenAI.

Imported only where the configuration has a section `otel`. The law of this file: no prompt, no answer, no credential, and
nothing that waits: spans and metrics are queued, bounded, and leave from threads of their own. The conventions are "in
development" (github.com/open-telemetry/semantic-conventions-genai), so their names are here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxyd import __version__
from proxyd.config.schema import Kind
from proxyd.model import Endpoint, Source, Usage
from proxyd.upstream import kinds

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.util.types import AttributeValue

    from proxyd.config.schema import Otel, Upstream
    from proxyd.flow.exchange import Exchange
    from proxyd.model import Ending, LedgerRow

    Attributes = dict[str, AttributeValue]

QUEUE = 2048
"""Spans that wait for their receiver; the newest are dropped beyond that."""
BATCH = 512
QUIET_SECONDS = 60.0
"""Between two lines of the log that tell of the same exporter: away for a night, it would fill the log with its retries."""
FLUSH_SECONDS = 2.0
"""How long the last spans and metrics may take at the end of the process; a receiver that is away costs that, once."""
TOKEN_BUCKETS = tuple(4**power for power in range(14))
"""1 … 67108864, as the conventions have them."""
SECOND_BUCKETS = tuple(0.01 * 2**power for power in range(14))
"""0.01 … 81.92, as the conventions have them."""

_OPERATIONS = {Endpoint.CHAT: "chat", Endpoint.COMPLETIONS: "text_completion", Endpoint.EMBEDDINGS: "embeddings"}
# The well-known values where there is one; `openai` is also what speaks like it, as the conventions ask for.
_PROVIDERS = {
    Kind.OPENAI: "openai",
    Kind.AZURE: "azure.ai.openai",
    Kind.OLLAMA: "ollama",
    Kind.HUGGINGFACE: "hugging_face",
    Kind.ECHO: "proxyd",
}
_PORTS = {"http": 80, "https": 443}
_TRACE_CONTEXT = (b"traceparent", b"tracestate")


class Tracing:
    """A client span and the client metrics of each exchange that is served. `close` it last."""

    def __init__(self, settings: Otel) -> None:
        """Nothing is sent yet. The rest is as the SDK's own OTEL_* variables say: samplers, intervals, certificates."""
        identity = {"service.name": settings.service_name, "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create(identity)
        base, headers = settings.endpoint.rstrip("/"), dict(settings.headers)
        spans = OTLPSpanExporter(endpoint=f"{base}/v1/traces", headers=headers)
        # Not at exit by themselves: that has no bound but the exporter's patience.
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(spans, max_queue_size=QUEUE, max_export_batch_size=BATCH))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{base}/v1/metrics", headers=headers))
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._tracer = self._traces.get_tracer("proxyd", __version__)
        meter = self._metrics.get_meter("proxyd", __version__)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of an operation", explicit_bucket_boundaries_advisory=TOKEN_BUCKETS
        )
        self._seconds = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "Duration of an operation", explicit_bucket_boundaries_advisory=SECOND_BUCKETS
        )
        self._context = TraceContextTextMapPropagator()
        for exporter in (OTLPSpanExporter, OTLPMetricExporter):  # for good: their threads may have something to say after `close`
            logging.getLogger(exporter.__module__).addFilter(_Seldom())

    def begin(self, ex: Exchange) -> None:
        """Open the exchange's span under the client's, and let the upstream continue it."""
        sent = {name.decode(): value.decode("ascii") for name, value in ex.headers if name in _TRACE_CONTEXT}
        assert ex.route is not None  # noqa: S101 - admit has run
        first = ex.snapshot.config.upstreams[ex.route.targets[0].upstream]
        streamed = ex.ask is not None and ex.ask.stream
        attributes = {**_asked(ex, first), "gen_ai.request.stream": streamed, "proxyd.request_id": ex.request_id}
        span = self._tracer.start_span(
            f"{_OPERATIONS[ex.endpoint]} {ex.label}",
            context=self._context.extract(sent, Context()),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=ex.began_us * 1000,
        )
        ours: dict[str, str] = {}
        self._context.inject(ours, set_span_in_context(span, Context()))
        kept = [header for header in ex.headers if header[0] not in _TRACE_CONTEXT]
        ex.headers = (*kept, *((name.encode(), value.encode()) for name, value in ours.items()))
        ex.span = span

    def end(self, ex: Exchange, ending: Ending, row: LedgerRow | None) -> None:
        """Close the span with what the exchange came to, and count it."""
        span, ex.span = ex.span, None
        assert isinstance(span, Span)  # noqa: S101 - ours, of `begin`
        took_ms = row.latency_ms if row is not None and row.latency_ms is not None else ending.duration_ms
        common = {} if ex.upstream is None else _asked(ex, ex.upstream)
        if span.is_recording():
            span.set_attributes({**common, **_answered(ex), **_used(ending)})
            if ending.error is not None:
                span.set_attribute("error.type", ending.error)
                span.set_status(Status(StatusCode.ERROR))
        span.end(ex.began_us * 1000 + round(took_ms * 1e6))
        self._measure(ex, ending, took_ms / 1000)

    def _measure(self, ex: Exchange, ending: Ending, seconds: float) -> None:
        """Labels are names of the configuration only, so their number is bounded; unknown tokens are not told at all."""
        assert ex.route is not None  # noqa: S101
        labels = _asked(ex, ex.upstream or ex.snapshot.config.upstreams[ex.route.targets[0].upstream])
        self._seconds.record(seconds, labels if ending.error is None else {**labels, "error.type": ending.error})
        if ending.tokens_source is Source.NONE:
            return
        for kind, count in (("input", ending.usage.prompt_tokens), ("output", ending.usage.completion_tokens)):
            if count is not None:
                self._tokens.record(count, {**labels, "gen_ai.token.type": kind, "proxyd.tokens_source": ending.tokens_source.value})

    async def close(self) -> None:
        """Send what waits, for at most FLUSH_SECONDS; what cannot be sent by then is lost."""
        # Threads that do not keep the process: a receiver that accepts and says nothing would hold an executor's at exit.
        spans = _apart(self._traces.shutdown)
        metrics = _apart(lambda: self._metrics.shutdown(FLUSH_SECONDS * 1000))
        await asyncio.wait([spans, metrics], timeout=FLUSH_SECONDS)


class _Seldom(logging.Filter):
    """Lets one line pass in QUIET_SECONDS."""

    def __init__(self) -> None:
        super().__init__()
        self._last: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self._last is not None and record.created - self._last < QUIET_SECONDS:
            return False
        self._last = record.created
        return True


def _apart(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run it in a daemon thread; the future is done when it is."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finished() -> None:
        if not done.done():
            done.set_result(None)

    def run() -> None:
        try:
            work()
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(finished)

    threading.Thread(target=run, name="otel-flush", daemon=True).start()
    return done


def _asked(ex: Exchange, spec: Upstream) -> Attributes:
    """What was asked of whom. The model is the route's name, never what a client made up."""
    found: Attributes = {
        "gen_ai.operation.name": _OPERATIONS[ex.endpoint],
        "gen_ai.provider.name": _PROVIDERS[spec.kind],
        "gen_ai.request.model": ex.label,
    }
    url = urlsplit(kinds.base_url(spec))
    if url.hostname:
        found["server.address"] = url.hostname
        found["server.port"] = url.port or _PORTS[url.scheme]
    return found


def _answered(ex: Exchange) -> Attributes:
    """What the answer said of itself."""
    meter = ex.answer.meter if ex.answer is not None else None
    if meter is None:
        return {}
    reading = meter.read()
    found: Attributes = {}
    if reading.model:
        found["gen_ai.response.model"] = reading.model
    if reasons := [reason for _, reason in sorted(reading.finish_reasons.items()) if reason]:
        found["gen_ai.response.finish_reasons"] = reasons
    return found


def _used(ending: Ending) -> Attributes:
    """What it used up, where that is known, and who says so."""
    found: Attributes = {"proxyd.attempts": ending.attempts}
    if ending.upstream is not None:
        found["proxyd.upstream"] = ending.upstream
    if ending.streamed and ending.ttft_ms is not None:
        found["gen_ai.response.time_to_first_chunk"] = ending.ttft_ms / 1000
    if ending.tokens_source is not Source.NONE:
        found["proxyd.tokens_source"] = ending.tokens_source.value
        found |= {name: count for name, count in _counts(ending.usage) if count is not None}
    return found


def _counts(usage: Usage) -> tuple[tuple[str, int | None], ...]:
    return (
        ("gen_ai.usage.input_tokens", usage.prompt_tokens),
        ("gen_ai.usage.output_tokens", usage.completion_tokens),
        ("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens),
        ("gen_ai.usage.cache_creation.input_tokens", usage.cache_write_tokens),
        ("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens),
    )
