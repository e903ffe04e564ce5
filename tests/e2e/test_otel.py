"""OpenTelemetry, as a receiver of OTLP over HTTP sees it."""

import contextlib
import gzip
import http.server
import json
import re
import threading
from dataclasses import dataclass

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from bench.children import free_port
from tests.e2e.client import Visit, ask, becomes, chat
from tests.e2e.conftest import at
from tests.origin import DONE, Ending, Gate, Origin, completion, delta, event, stream, whole
from tests.process import HANG, ROOT, Child, Daemon, settings

PATH = "/v1/chat/completions"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PROMPT = "nobody but the model reads this"


class Receiver:
    """A collector: keeps what it is sent, parsed. With a `gate` it accepts, and answers nothing until that opens."""

    def __init__(self, gate=None):
        self.spans, self.metrics, self.services, self.headers, self.raw = [], {}, set(), [], b""
        self.reached = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.reached.set()
                if gate is not None:
                    gate.wait(HANG)
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
                receiver.take(self.path, self.headers, body)
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def take(self, path, headers, body):
        self.headers.append(headers)
        self.raw += body
        if path == "/v1/traces":
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services.add(values(each.resource.attributes)["service.name"])
                self.spans += [span for scope in each.scope_spans for span in scope.spans]
        else:
            assert path == "/v1/metrics"
            for each in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics |= {metric.name: metric for scope in each.scope_metrics for metric in scope.metrics}

    def of(self, model):
        return [span for span in self.spans if values(span.attributes)["gen_ai.request.model"] == model]

    def points(self, metric, model):
        found = [(values(point.attributes), point) for point in self.metrics[metric].histogram.data_points]
        return [(labels, point) for labels, point in found if labels["gen_ai.request.model"] == model]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(HANG)


def value(any_value):
    kind = any_value.WhichOneof("value")
    found = getattr(any_value, kind)
    return [value(each) for each in found.values] if kind == "array_value" else found


def values(attributes):
    return {each.key: value(each.value) for each in attributes}


@dataclass
class Scene:
    daemon: Daemon
    origin: Origin
    receiver: Receiver

    @property
    def url(self):
        return self.daemon.url


@pytest.fixture
def scene(tmp_path):
    origin, receiver = Origin(), Receiver()
    models = {
        **{name: {"upstream": "origin", "retry": {"attempts": 2}} for name in ("unary", "streamed", "broken", "again", "apart", "mute")},
        "limited": {"upstream": "origin", "limits": {"rpm": 1}},
        "embedded": "echo",
        "*": "origin",
    }
    otel = {"endpoint": receiver.url, "service_name": "gate", "headers": {"X-Tenant": "seven"}}
    upstreams = {"origin": at(origin), "echo": {"kind": "echo"}}
    daemon = Daemon(tmp_path, settings(upstreams=upstreams, models=models, otel=otel))
    try:
        yield Scene(daemon.start(), origin, receiver)
        daemon.stop()
    finally:
        daemon.child.end()
        receiver.close()
        origin.close()
    assert origin.violations == []


def asked(name, **more):
    return {**chat(name, **more), "messages": [{"role": "user", "content": PROMPT}]}


async def test_an_exchange_is_a_client_span_of_the_clients_trace_which_the_upstream_continues(scene):
    scene.origin.on("unary", whole(completion("an answer that is secret", prompt=11, produced=3)))
    answer = await ask(scene.url, PATH, asked("unary"), traceparent=PARENT, tracestate="vendor=1")
    assert answer.status == 200
    scene.daemon.stop()
    (span,) = scene.receiver.of("unary")
    (seen,) = scene.origin.asked("unary")
    assert (span.name, span.kind) == ("chat unary", Span.SPAN_KIND_CLIENT)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert seen.header("traceparent") == f"00-{PARENT[3:35]}-{span.span_id.hex()}-01"
    assert [(name, text) for name, text in seen.headers if name == "tracestate"] == [("tracestate", "vendor=1")]
    facts = values(span.attributes)
    assert facts.pop("gen_ai.response.finish_reasons") == ["stop"]
    assert facts == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "unary",
        "gen_ai.request.stream": False,
        "gen_ai.response.model": "origin-model",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 3,
        "server.address": "127.0.0.1",
        "server.port": scene.origin.port,
        "proxyd.request_id": answer.headers["x-request-id"],
        "proxyd.upstream": "origin",
        "proxyd.attempts": 1,
        "proxyd.tokens_source": "upstream",
    }
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert span.start_time_unix_nano < span.end_time_unix_nano
    assert scene.receiver.services == {"gate"}
    assert {headers["X-Tenant"] for headers in scene.receiver.headers} == {"seven"}


async def test_without_a_parent_a_trace_begins_here(scene):
    scene.origin.on("apart", whole(completion("hi")))
    await ask(scene.url, PATH, asked("apart"))
    scene.daemon.stop()
    (span,) = scene.receiver.of("apart")
    assert span.parent_span_id == b""
    told = scene.origin.asked("apart")[0].header("traceparent")
    assert told[:-2] == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-"
    assert int(told[-2:], 16) & 1  # sampled; beside it the SDK may say that the id is random


async def test_a_trace_that_its_client_does_not_record_is_not_recorded_here_and_yet_passed_on(scene):
    scene.origin.on("mute", whole(completion("hi")))
    await ask(scene.url, PATH, asked("mute"), traceparent=PARENT[:-2] + "00")
    scene.daemon.stop()
    assert scene.receiver.of("mute") == []
    told = scene.origin.asked("mute")[0].header("traceparent")
    assert (told[:35], told[-2:]) == (PARENT[:35], "00")


async def test_a_stream_tells_all_its_tokens_and_when_it_began(scene):
    details = {"prompt_tokens_details": {"cached_tokens": 8}, "completion_tokens_details": {"reasoning_tokens": 5}}
    usage = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15, **details}})
    scene.origin.on("streamed", stream(delta("Hello"), delta("", finish="length"), usage, DONE))
    await ask(scene.url, PATH, asked("streamed", stream=True))
    scene.daemon.stop()
    (span,) = scene.receiver.of("streamed")
    facts = values(span.attributes)
    assert facts["gen_ai.request.stream"] is True
    assert facts["gen_ai.response.finish_reasons"] == ["length"]
    assert facts["gen_ai.usage.cache_read.input_tokens"] == 8
    assert facts["gen_ai.usage.reasoning.output_tokens"] == 5
    assert facts["gen_ai.response.time_to_first_chunk"] > 0
    tokens = {labels["gen_ai.token.type"]: point.sum for labels, point in scene.receiver.points("gen_ai.client.token.usage", "streamed")}
    assert tokens == {"input": 9, "output": 6}


async def test_a_failure_is_an_error_by_its_code_and_its_unknown_tokens_are_no_metric(scene):
    scene.origin.on("broken", whole(b'{"error":{"message":"' + PROMPT.encode() + b'"}}', status=500))
    assert (await ask(scene.url, PATH, asked("broken"))).status >= 500
    scene.daemon.stop()
    (span,) = scene.receiver.of("broken")
    facts = values(span.attributes)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert facts["error.type"] == "upstream_error"
    assert facts["proxyd.attempts"] == 2
    assert not [name for name in facts if name.startswith("gen_ai.usage")]
    ((labels, point),) = scene.receiver.points("gen_ai.client.operation.duration", "broken")
    assert (labels["error.type"], point.count) == ("upstream_error", 1)
    assert "gen_ai.client.token.usage" not in scene.receiver.metrics


async def test_both_attempts_of_an_exchange_continue_one_span(scene):
    scene.origin.on("again", whole(b"{}", status=503), whole(completion("hi")))
    assert (await ask(scene.url, PATH, asked("again"), traceparent=PARENT)).status == 200
    scene.daemon.stop()
    (span,) = scene.receiver.of("again")
    assert {seen.header("traceparent")[36:52] for seen in scene.origin.asked("again")} == {span.span_id.hex()}
    assert len(scene.origin.asked("again")) == 2


async def test_a_client_that_leaves_is_told_and_a_refusal_by_a_limit_too(scene):
    gate = Gate()
    scene.origin.on("unary", stream(delta("Hello"), gate, ending=Ending.HANG))
    visit = await (await Visit.open(scene.url)).post(PATH, asked("unary", stream=True))
    await visit.head()
    await visit.until(b"Hello")
    await visit.leave()
    scene.daemon.settled("unary")
    scene.origin.on("limited", whole(completion("hi")))
    assert [(await ask(scene.url, PATH, asked("limited"))).status for _ in range(2)] == [200, 429]
    gate.open()
    scene.daemon.stop()
    (left,) = scene.receiver.of("unary")
    assert values(left.attributes)["error.type"] == "client_gone"
    kinds = sorted(values(span.attributes).get("error.type", "") for span in scene.receiver.of("limited"))
    assert kinds == ["", "rate_limit_exceeded"]


async def test_what_is_replayed_calls_no_model_and_has_no_span(scene):
    scene.origin.on("unary", whole(completion("hi")))
    for _ in range(2):
        assert (await ask(scene.url, PATH, asked("unary"), **{"Idempotency-Key": "k1"})).status == 200
    scene.daemon.stop()
    assert len(scene.receiver.of("unary")) == 1


async def test_nothing_of_prompts_answers_keys_and_made_up_names_is_told(scene):
    scene.origin.on("whatever-the-client-writes", whole(completion("an answer that is secret")))
    await ask(scene.url, PATH, asked("whatever-the-client-writes"))
    await ask(scene.url, PATH, asked("embedded"))
    await ask(scene.url, "/v1/embeddings", {"model": "embedded", "input": PROMPT})
    scene.daemon.stop()
    assert sorted(span.name for span in scene.receiver.spans) == ["chat *", "chat embedded", "embeddings embedded"]
    assert "server.address" not in values(scene.receiver.of("embedded")[0].attributes)
    assert {values(span.attributes)["gen_ai.provider.name"] for span in scene.receiver.of("embedded")} == {"proxyd"}
    for secret in (PROMPT, "an answer that is secret", "tester-key", "upstream-secret", "whatever-the-client-writes"):
        assert secret.encode() not in scene.receiver.raw


async def test_metrics_have_the_buckets_of_the_conventions(scene):
    scene.origin.on("unary", whole(completion("hi")))
    await ask(scene.url, PATH, asked("unary"))
    scene.daemon.stop()
    (_, tokens), _ = scene.receiver.points("gen_ai.client.token.usage", "unary")
    assert [*tokens.explicit_bounds] == [4**power for power in range(14)]
    ((_, seconds),) = scene.receiver.points("gen_ai.client.operation.duration", "unary")
    assert [*seconds.explicit_bounds] == pytest.approx([0.01 * 2**power for power in range(14)])
    assert {metric: found.unit for metric, found in scene.receiver.metrics.items()} == {
        "gen_ai.client.token.usage": "{token}",
        "gen_ai.client.operation.duration": "s",
    }


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_a_receiver_that_is_away_holds_up_neither_answers_nor_the_end(tmp_path, how):
    """`Daemon.stop` fails where the end is not sound; that it comes at all, well within the exporter's own patience, is the claim."""
    gate = threading.Event()
    receiver = Receiver(gate) if how == "is silent" else None
    endpoint = receiver.url if receiver is not None else f"http://127.0.0.1:{free_port()}"
    config = settings(upstreams={"echo": {"kind": "echo"}}, models={"*": "echo"}, otel={"endpoint": endpoint})
    # A batch each millisecond: the exporter is at it, and stuck, while requests are served.
    daemon = Daemon(tmp_path, config, {"OTEL_BSP_SCHEDULE_DELAY": "1", "OTEL_EXPORTER_OTLP_TIMEOUT": "3600"}).start()
    try:
        assert (await ask(daemon.url, PATH, asked("x"))).status == 200
        if receiver is not None:
            assert receiver.reached.wait(HANG)
        assert (await ask(daemon.url, PATH, asked("x"))).status == 200
        if receiver is None:
            await becomes(lambda: "Connection refused" in daemon.log)
        daemon.stop()
        assert daemon.log.count("opentelemetry.exporter") <= 2  # a line for spans, one for metrics, however often they try
    finally:
        daemon.child.end()
        gate.set()
        if receiver is not None:
            receiver.close()


async def test_without_the_section_the_clients_trace_passes_as_it_is(tmp_path):
    origin = Origin()
    origin.on("plain", whole(completion("hi")))
    daemon = Daemon(tmp_path, settings(upstreams={"origin": at(origin)}, models={"*": "origin"})).start()
    try:
        await ask(daemon.url, PATH, asked("plain"), traceparent=PARENT)
        assert origin.asked("plain")[0].header("traceparent") == PARENT
        daemon.stop()
    finally:
        daemon.child.end()
        origin.close()


def test_it_needs_an_extra_and_the_start_says_which(tmp_path):
    """As it is without the SDK: the finder is told that it is not there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nf = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name.startswith('opentelemetry') else f(name, *a)\n"
    )
    config = settings(upstreams={"e": {"kind": "echo"}}, models={"m": "e"}, otel={})
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for command in ("serve", "check"):
        child = Child([command, "-c", "config.yaml"], tmp_path, {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
        child.expect(re.compile(r"otel needs the extra `otel`: pip install 'proxyd\[otel\]'"))
        assert child.wait() == 1
        child.end()
