"""Every answer of the wire corpus, served through the whole daemon: the client's bytes, and the ledger's row."""

import json

import pytest

from tests.e2e.client import ask
from tests.e2e.conftest import Rig, at, rigged
from tests.e2e.corpus import Case, cases, whole_events

SIZES = (1, 7, 4096)
CASES = cases()
ANSWERED = [case for case in CASES if case.status < 400 and not case.error_first and case.clean]
COMPLETE = [case for case in ANSWERED if case.facts["complete"] or case.facts["had_error"]]
SILENT = [case for case in ANSWERED if case not in COMPLETE]
BROKEN = [case for case in ANSWERED if case.sse and not case.encoded and not case.facts["had_error"] and case.body.count(b"{") > 3]
NAMED = {"ids": lambda case: case.name if isinstance(case, Case) else None}


def _runs(case: Case) -> list[str]:
    return [f"{case.name}/{run}" for run in (*SIZES, "cut")]


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """An upstream of its own for each case and size, so that no case's failures open a breaker for another."""
    runs = [run for case in CASES for run in _runs(case)]
    models = {run: {"upstream": run, "retry": {"attempts": 1}} for run in runs}
    with rigged(
        tmp_path_factory.mktemp("corpus"), lambda origin: {"upstreams": {run: at(origin) for run in runs}, "models": models}
    ) as found:
        yield found


async def _served(rig: Rig, case: Case, size: int):
    model = f"{case.name}/{size}"
    rig.origin.on(model, case.script(size))
    answer = await ask(rig.url, case.endpoint, case.request(model))
    (row,) = rig.daemon.settled(model)
    return answer, row


def _agrees(row: dict, case: Case) -> None:
    """The row holds the sidecar's facts, and says where each number came from."""
    if case.reported:
        assert row["tokens_source"] == "upstream"
        assert {key: row[key] for key in case.usage} == case.usage
    else:
        assert row["tokens_source"] in ("counted", "estimated")
        assert row["prompt_tokens"] > 0
        assert (row["completion_tokens"] > 0) == (any(case.facts["text_by_choice"].values()) or b"tool_calls" in case.body)
    assert row["finish_reason"] == case.facts["finish_reasons"].get("0")
    assert row["streamed"] == case.streamed
    assert row["endpoint"] == case.endpoint
    assert row["upstream_model"] == (case.facts["model"] or row["model"])
    assert (row["caller"], row["attempt"], row["bytes_out"] > 0) == ("tester", 1, True)
    assert row["bytes_in"] > 0
    assert 0 < row["ttft_ms"] <= row["latency_ms"]
    assert row["created_at"] < row["settled_at"]


def test_the_corpus_is_all_there():
    """The README counts 115 cases; those that are not served here are of other endpoints."""
    assert len(CASES) > 75
    assert len(BROKEN) > 40


@pytest.mark.parametrize("case", COMPLETE, **NAMED)
async def test_bytes_are_the_upstreams_and_the_row_is_the_sidecars(rig, case):
    """However the answer is split, the client reads exactly what the upstream sent, and the ledger what was in it."""
    for size in SIZES:
        answer, row = await _served(rig, case, size)
        assert (answer.status, answer.body, answer.whole) == (200, case.body, True)
        assert answer.headers["content-type"] == case.headers["content-type"]
        assert answer.headers.get("content-encoding") == case.headers.get("content-encoding")
        _agrees(row, case)
        assert row["status"] == 200
        assert row["state"] == ("failed" if case.facts["had_error"] else "done")
        assert (row["error"] is None) == (row["state"] == "done")
        assert row["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("case", SILENT, **NAMED)
async def test_an_answer_that_ends_too_early_does_not_look_whole(rig, case):
    """The upstream stopped politely in the middle: nothing it sent is lost, and the client is told that it is not all."""
    for size in SIZES:
        answer, row = await _served(rig, case, size)
        assert answer.body.startswith(case.body)
        _is_one_error_event(answer.body[len(case.body) :])
        assert not answer.whole
        _agrees(row, case)
        assert (row["state"], row["error"]) == ("failed", "upstream_incomplete")


@pytest.mark.parametrize("case", BROKEN, **NAMED)
async def test_a_broken_stream_is_whole_events_then_one_error_then_a_broken_transport(rig, case):
    """The half event is dropped, an error event follows, HTTP does not end properly, and nothing says DONE."""
    model = f"{case.name}/cut"
    at = case.broken_at()
    passed = whole_events(case.body[:at])
    assert passed
    assert b"\ndata: [DONE]" not in case.body[:at]
    for turn, size in enumerate(SIZES, 1):
        rig.origin.on(model, case.broken(at, size))
        answer = await ask(rig.url, case.endpoint, case.request(model))
        assert (answer.status, answer.body[: len(passed)]) == (200, passed)
        _is_one_error_event(answer.body[len(passed) :])
        assert not answer.whole
        assert b"\ndata: [DONE]" not in answer.body
        row = rig.daemon.settled(model, turn)[-1]
        assert (row["state"], row["error"], row["status"]) == ("failed", "upstream_cut", 200)
        assert row["prompt_tokens"] is not None
        assert row["tokens_source"] in ("upstream", "counted", "estimated")


@pytest.mark.parametrize("case", [case for case in CASES if not case.clean and case.sse], **NAMED)
async def test_a_recorded_cut_is_told_and_counted_from_what_passed(rig, case):
    passed = whole_events(case.body)
    for size in SIZES:
        answer, row = await _served(rig, case, size)
        assert answer.body.startswith(passed)
        _is_one_error_event(answer.body[len(passed) :])
        assert not answer.whole
        assert (row["state"], row["error"]) == ("failed", "upstream_cut")
        assert row["tokens_source"] in ("counted", "estimated")
        assert row["completion_tokens"] > 0


@pytest.mark.parametrize("case", [case for case in CASES if not case.clean and not case.sse], **NAMED)
async def test_a_unary_answer_that_came_in_part_never_looks_whole(rig, case):
    """Nothing had left yet when it broke, so the client gets a plain error and may try again."""
    answer, row = await _served(rig, case, 4096)
    assert (answer.status, answer.error()["code"]) == (502, "upstream_cut")
    assert (row["state"], row["error"]) == ("failed", "upstream_cut")


@pytest.mark.parametrize("case", [case for case in CASES if case.error_first], **NAMED)
async def test_a_200_that_is_only_an_error_is_an_error(rig, case):
    """With no other upstream to try, the client's SDK must see a failure, with the upstream's own words."""
    for size in SIZES:
        answer, row = await _served(rig, case, size)
        assert answer.status >= 400
        assert _words(case) in answer.error()["message"]
        assert (row["state"], row["error"] is not None) == ("failed", True)


@pytest.mark.parametrize("case", [case for case in CASES if case.status >= 400], **NAMED)
async def test_errors_are_openai_shaped_and_keep_the_upstreams_words(rig, case):
    for size in SIZES:
        answer, row = await _served(rig, case, size)
        error = answer.error()
        assert answer.headers["content-type"].partition(";")[0] == "application/json"
        assert answer.whole
        assert row["state"] == "failed"
        assert "upstream-secret" not in answer.body.decode() + str(answer.headers)
        if case.status in (401, 403):
            assert (answer.status, error["code"]) == (502, "upstream_auth")
            assert "sk-abc" not in answer.body.decode()
            assert "www-authenticate" not in answer.headers
        else:
            assert answer.status == row["status"] == case.status
            assert _words(case) in error["message"]
        extra = case.context["extra"].get("error", {})
        if case.status not in (401, 403) and isinstance(extra.get("code"), str):
            assert error["code"] == extra["code"]


def _is_one_error_event(tail: bytes) -> None:
    assert tail.startswith(b"data: {"), tail
    assert tail.endswith(b"\n\n"), tail
    error = json.loads(tail[6:])["error"]
    assert error["type"] == "upstream_error"
    assert error["message"]


def _words(case: Case) -> str:
    """A piece of the upstream's own message, where it had one."""
    text = case.body.decode()
    for key in ('"message":"', '"message": "', '"error":"', '"msg":"'):
        if key in text:
            return json.loads('"' + text.partition(key)[2].split('"')[0].rstrip("\\") + '"')
    return ""
