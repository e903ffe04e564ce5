"""The metrics keep the names that operators were promised, and labels that no client can make up."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from proxyd.errors import TABLE
from proxyd.metrics import BREAKER_STATES, LIMITS, PHASES, Metrics
from proxyd.model import Ending, Source, State, Usage
from proxyd.series import LINES, Distributions
from proxyd.web.ops import metrics as scraped

MONITORING = Path(__file__).parent.parent / "systemd" / "monitoring"

PROMISED = {
    "proxyd_requests_total": {"endpoint", "model", "upstream", "status"},
    "proxyd_request_duration_seconds": None,
    "proxyd_time_to_first_token_seconds": None,
    "proxyd_inter_token_seconds": None,
    "proxyd_tokens_total": {"model", "direction", "source"},
    "proxyd_cost_usd_total": None,
    "proxyd_streams_active": None,
    "proxyd_upstream_state": None,
    "proxyd_retries_total": None,
    "proxyd_client_disconnects_total": None,
    "proxyd_ledger_queue": None,
    "proxyd_ledger_commit_seconds": None,
    "proxyd_idempotent_replays_total": None,
    "proxyd_ratelimited_total": {"reason"},
    "proxyd_overhead_seconds": None,
    "proxyd_config_reload_success": None,
}

ENDING = Ending(
    at_us=0,
    request_id="req_1",
    endpoint="/v1/chat/completions",
    status=200,
    state=State.DONE,
    duration_ms=2000.0,
    caller="laptop",
    model="whatever-the-client-wrote",
    route="fast",
    upstream="openai",
    streamed=True,
    attempts=1,
    usage=Usage(prompt_tokens=10, completion_tokens=21, total_tokens=31, cached_tokens=4, reasoning_tokens=5),
    tokens_source=Source.UPSTREAM,
    cost_nano=1_500_000,
    currency="USD",
    ttft_ms=300.0,
    stream_ms=1500.0,
    events=16,
    overhead_ms=0.4,
)

CHAT = {"endpoint": "/v1/chat/completions", "model": "fast", "upstream": "openai"}


def known() -> Metrics:
    metrics = Metrics("1.2.3")
    metrics.know(["fast", "hf/*"], ["openai", "ollama"])
    return metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample as Prometheus itself would read it."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def busy() -> Metrics:
    """Metrics to which everything has happened once."""
    metrics = known()
    metrics.exchange_begun()
    metrics.exchange_ended(replace(ENDING, error="upstream_cut"))
    metrics.exchange_begun()
    metrics.exchange_ended(replace(ENDING, cost_nano=None))
    metrics.attempt_failed("fast", "openai", "upstream_connect", again=True)
    metrics.replayed()
    metrics.ratelimited("requests")
    metrics.client_disconnected("stream")
    metrics.upstream_state("openai", "open")
    metrics.ledger_commit(0.001)
    metrics.ledger_failed()
    metrics.ledger_queue(3)
    metrics.ledger_recovered(2)
    metrics.reload(ok=False)
    metrics.loop_lag(0.01)
    metrics.log_dropped(7)
    return metrics


def families(metrics: Metrics) -> dict[str, set[str]]:
    """Name, as one queries it, to label names."""
    names: dict[str, set[str]] = {}
    for name, labels in samples(metrics):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        names.setdefault(base, set()).update(key for key, _ in labels if key != "le")
    return names


def test_every_promised_name_is_there_with_its_labels() -> None:
    there = families(busy())
    assert set(PROMISED) - set(there) == set()
    for name, labels in PROMISED.items():
        assert labels is None or there[name] == labels


def test_an_ended_exchange_is_counted_with_all_that_is_known_of_it() -> None:
    metrics = known()
    metrics.exchange_begun()
    assert value(metrics, "proxyd_streams_active") == 1
    metrics.exchange_ended(ENDING)
    route = {"model": "fast", "upstream": "openai"}
    expected = {
        ("proxyd_streams_active", ()): 0,
        ("proxyd_requests_total", (*CHAT.items(), ("status", "200"))): 1,
        ("proxyd_request_duration_seconds_sum", (*CHAT.items(),)): 2.0,
        ("proxyd_time_to_first_token_seconds_sum", (*route.items(),)): 0.3,
        ("proxyd_inter_token_seconds_sum", (*route.items(),)): 0.1,
        ("proxyd_tokens_total", (("model", "fast"), ("direction", "input"), ("source", "upstream"))): 10,
        ("proxyd_tokens_total", (("model", "fast"), ("direction", "output"), ("source", "upstream"))): 21,
        ("proxyd_cached_tokens_total", (("model", "fast"),)): 4,
        ("proxyd_reasoning_tokens_total", (("model", "fast"),)): 5,
        ("proxyd_cost_usd_total", (*route.items(),)): 0.0015,
        ("proxyd_overhead_seconds_sum", ()): 0.0004,
    }
    there = samples(metrics)
    assert {(name, labels): there.get((name, frozenset(labels))) for name, labels in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("events", "completion", "reasoning", "gap"),
    [
        (16, 21, 5, 0.1),  # as many visible tokens as events
        (4, 16, None, 0.1),  # several tokens an event
        (16, None, None, 0.1),  # no count: events
        (16, 3, None, 0.1),  # a count too small
        (1, 1, None, None),  # one token has no gap
        (0, 40, 40, None),  # all reasoning, none visible
    ],
)
def test_the_gap_between_tokens_is_the_streams_mean(events: int, completion: int | None, reasoning: int | None, gap: float | None) -> None:
    metrics = known()
    metrics.exchange_ended(replace(ENDING, events=events, usage=Usage(completion_tokens=completion, reasoning_tokens=reasoning)))
    seen = value(metrics, "proxyd_inter_token_seconds_sum", model="fast", upstream="openai")
    assert seen == (pytest.approx(gap) if gap is not None else 0)


def test_an_unary_answer_has_no_first_token() -> None:
    metrics = known()
    metrics.exchange_ended(replace(ENDING, streamed=False))
    assert value(metrics, "proxyd_time_to_first_token_seconds_count", model="fast", upstream="openai") == 0


def test_an_unknown_price_is_counted_as_unknown_and_other_currencies_are_not_dollars() -> None:
    metrics = known()
    metrics.exchange_ended(replace(ENDING, cost_nano=None))
    metrics.exchange_ended(replace(ENDING, currency="EUR"))
    assert value(metrics, "proxyd_unpriced_total", model="fast") == 1
    assert value(metrics, "proxyd_cost_usd_total", model="fast", upstream="openai") == 0


def test_a_refused_exchange_is_counted_without_an_upstream() -> None:
    metrics = known()
    refused = Ending(
        at_us=0, request_id="r", endpoint="/v1/embeddings", status=401, state=State.FAILED, duration_ms=1.0, error="invalid_api_key"
    )
    metrics.exchange_ended(refused)
    assert value(metrics, "proxyd_requests_total", endpoint="/v1/embeddings", model="other", upstream="", status="401") == 1
    assert value(metrics, "proxyd_errors_total", error="invalid_api_key", blame="client") == 1


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.integers(-1, 99_999), st.text()), min_size=1, max_size=20))
def test_no_client_and_no_upstream_can_make_up_a_label(written: list[tuple[str, str, str, int, str]]) -> None:
    metrics = known()
    for endpoint, route, upstream, status, word in written:
        metrics.exchange_ended(replace(ENDING, endpoint=endpoint, route=route, upstream=upstream, status=status, error=word))
        metrics.attempt_failed(route, upstream, word, again=True)
        metrics.ratelimited(word)
        metrics.client_disconnected(word)
        metrics.upstream_state(upstream, word)
    allowed = {"fast", "hf/*", "openai", "ollama", "other", "", "client", "upstream", "us", "input", "output", "ok", "bad"}
    allowed |= {*TABLE, *LIMITS, *PHASES, *BREAKER_STATES, "1.2.3"}
    for name, labels in samples(metrics):
        for key, label in labels:
            if key == "status":
                assert re.fullmatch(r"\d\d\d|\d?-?\dxx", label)
            elif name != "proxyd_build_info" and key != "le":
                assert label in allowed | {"upstream", "counted", "estimated"}, (name, key, label)


@pytest.mark.parametrize("count", [-5, 1 << 70, 10**400, -(10**400)])
def test_absurd_reports_of_an_upstream_break_nothing(count: int) -> None:
    metrics = known()
    metrics.exchange_ended(replace(ENDING, usage=Usage(count, count, count, count, count), cost_nano=count, events=2))
    assert value(metrics, "proxyd_requests_total", **CHAT, status="200") == 1
    metrics.exchange_ended(replace(ENDING, usage=Usage(count, count, count, count, -count), cost_nano=count, events=2))


def test_what_ends_after_a_reload_has_the_names_that_it_began_with() -> None:
    metrics = known()
    metrics.know(["new"], ["newer"])
    metrics.exchange_ended(ENDING)
    metrics.attempt_failed("fast", "ollama", "upstream_connect", again=False)
    assert value(metrics, "proxyd_requests_total", **CHAT, status="200") == 1
    assert value(metrics, "proxyd_attempts_failed_total", upstream="ollama", error="upstream_connect") == 1
    assert value(metrics, "proxyd_upstream_state", upstream="openai", state="closed") is None


def test_a_reload_keeps_the_counters_and_drops_the_state_of_upstreams_that_are_gone() -> None:
    metrics = busy()
    metrics.know(["fast"], ["ollama", "new"])
    assert value(metrics, "proxyd_upstream_state", upstream="openai", state="open") is None
    assert value(metrics, "proxyd_upstream_state", upstream="new", state="closed") == 1
    assert value(metrics, "proxyd_requests_total", **CHAT, status="200") == 2
    metrics.know(["fast"], ["ollama", "openai"])
    assert value(metrics, "proxyd_upstream_state", upstream="openai", state="closed") == 1


def test_an_upstream_is_in_exactly_one_state() -> None:
    metrics = known()
    for state in (*BREAKER_STATES, "open"):
        metrics.upstream_state("ollama", state)
        assert [value(metrics, "proxyd_upstream_state", upstream="ollama", state=each) for each in BREAKER_STATES] == [
            float(each == state) for each in BREAKER_STATES
        ]


def test_reload_tells_the_last_verdict_and_counts_both() -> None:
    metrics = known()
    assert value(metrics, "proxyd_config_reload_success") == 1
    metrics.reload(ok=False)
    assert value(metrics, "proxyd_config_reload_success") == 0
    metrics.reload(ok=True)
    assert value(metrics, "proxyd_config_reload_success") == 1
    assert [value(metrics, "proxyd_config_reloads_total", result=each) for each in ("ok", "bad")] == [1, 1]


def test_the_count_of_lost_log_lines_is_taken_over_not_added_up() -> None:
    metrics = known()
    for total in (3, 3, 10, 9):
        metrics.log_dropped(total)
    assert value(metrics, "proxyd_log_lines_dropped_total") == 10


def test_limits_and_phases_are_there_before_their_first_event() -> None:
    metrics = known()
    assert value(metrics, "proxyd_ratelimited_total", reason="tokens") == 0
    assert value(metrics, "proxyd_client_disconnects_total", phase="wait") == 0


def test_two_daemons_in_one_process_do_not_share_a_number() -> None:
    one, other = known(), known()
    one.replayed()
    assert value(one, "proxyd_idempotent_replays_total") == 1
    assert value(other, "proxyd_idempotent_replays_total") == 0


def test_ten_thousand_series_are_told_in_small_pieces_between_which_exchanges_end() -> None:
    metrics = Metrics("1")
    models = [f"m{n}" for n in range(200)]
    metrics.know([*models, "late"], ["openai"])
    for model in models:
        metrics.exchange_begun()
        metrics.exchange_ended(replace(ENDING, route=model))
    pieces = []
    for piece in metrics.pieces():
        pieces.append(piece)
        metrics.exchange_ended(replace(ENDING, route="late", upstream=f"u{len(pieces)}", status=200 + len(pieces) % 7))
    assert max(piece.count(b"\n") for piece in pieces) < LINES * 1.1
    page = list(text_string_to_metric_families(b"".join(pieces).decode()))
    assert sum(len(family.samples) for family in page) > 10_000
    assert sum(count for (name, labels), count in samples(metrics).items() if name == "proxyd_requests_total") == 200 + len(pieces)


async def test_a_scrape_lets_others_run_between_its_pieces() -> None:
    runtime = SimpleNamespace(metrics=SimpleNamespace(pieces=lambda: iter([b"a", b"b", b"c"])), measure=lambda: None)
    sent: list[bytes] = []
    down = SimpleNamespace(reply=lambda _status, _headers, body: sent.append(body))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while not sent:
            turns += 1
            await asyncio.sleep(0)

    await asyncio.gather(other(), scraped(runtime, down, ""))
    assert (sent, turns) == ([b"abc"], 4)


def test_a_distribution_counts_what_is_at_a_bound_under_it() -> None:
    seen = Distributions("d", "about", ("route",), (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        seen.labels('a\\b"c\nd').observe(value)
    page = "".join(seen.pieces())
    assert page.startswith("# HELP d about\n# TYPE d histogram\n")
    (family,) = text_string_to_metric_families(page)
    assert {sample.labels["route"] for sample in family.samples} == {'a\\b"c\nd'}
    assert [sample.value for sample in family.samples] == [2, 4, 5, 5, pytest.approx(8.65)]
    assert [sample.labels.get("le") for sample in family.samples] == ["0.1", "1.0", "+Inf", None, None]


def test_the_process_and_the_build_are_told_and_nothing_twice() -> None:
    page = known().render().decode()
    assert "process_resident_memory_bytes" in page
    assert 'proxyd_build_info{python="' in page
    assert "_created" not in page


# --- what watches the metrics


def asked_for(text: str) -> set[str]:
    """The metrics that a query or rule names, without the suffixes of a histogram."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:proxyd|process)_[a-z0-9_]+", text)}


def dashboard() -> Any:
    return json.loads((MONITORING / "grafana-dashboard.json").read_text())


def queries(panels: list[Any]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def test_the_dashboard_asks_only_for_metrics_that_exist() -> None:
    wanted = asked_for("\n".join(queries(dashboard()["panels"])))
    assert len(wanted) > 12
    assert wanted - set(families(busy())) == set()


def test_the_dashboard_asks_only_for_labels_that_exist() -> None:
    there = families(busy())
    every = set().union(*there.values()) | {"le", "job", "instance"}
    for query in queries(dashboard()["panels"]):
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert {name.strip() for name in group.split(",")} <= every, query
        for name, matcher in re.findall(r"(proxyd_[a-z0-9_]+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matcher))
            assert labels <= there[re.sub(r"_(bucket|sum|count)$", "", name)] | {"job", "instance"}, query


def test_the_dashboard_can_be_imported_anywhere() -> None:
    board = dashboard()
    assert board["uid"] == "proxyd"
    assert {variable["name"]: variable["type"] for variable in board["templating"]["list"]}["datasource"] == "datasource"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in panels)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_alerts_ask_only_for_metrics_that_exist_and_say_what_to_do() -> None:
    there = set(families(busy()))
    for rule in rules():
        assert asked_for(rule["expr"]) - there == set(), rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_alerts() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(MONITORING / "alerts.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    filled = [
        query.replace("$__rate_interval", "5m").replace("$__range", "6h").replace("$instance", ".*")
        for query in queries(dashboard()["panels"])
    ]
    records = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_fault_with_the_metrics() -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=busy().render(), capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
