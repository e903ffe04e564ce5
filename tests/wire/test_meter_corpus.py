"""The meter against the wire corpus: bytes in, bytes out, and the ten facts, however the bytes are cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.corpus import CASES, Case, facts, load, run

STREAMS = [name for name in CASES if load(name).context["format"] != "json"]


def dropped(case: Case) -> bytes:
    """What a cut leaves of the body: whole events only."""
    ends = [case.body.rfind(b"\n\n") + 2] if case.sse else [case.body.rfind(b"\n") + 1]
    return case.body[: 0 if case.context["format"] == "json" else ends[0]]


def check(case: Case, pieces: list[bytes]) -> None:
    meter = case.meter()
    left, held = run(meter, pieces, clean=case.clean)
    assert facts(meter) == case.facts
    assert left + held == (case.body if case.clean else dropped(case))


def test_the_corpus_is_whole():
    """All 115 cases are here."""
    assert len(CASES) == 115


@pytest.mark.parametrize("name", CASES)
def test_a_whole_body_reads_as_its_sidecar_says(name):
    check(load(name), [load(name).body])


@pytest.mark.parametrize("name", CASES)
def test_a_body_byte_by_byte_reads_the_same(name):
    body = load(name).body
    check(load(name), [body[i : i + 1] for i in range(len(body))])


@pytest.mark.parametrize("name", STREAMS)
def test_a_body_event_by_event_reads_the_same(name):
    """As upstreams send it, and as the hot path takes it."""
    ends = re.split(rb"(?<=\n\n)" if load(name).sse else rb"(?<=\n)", load(name).body)
    check(load(name), ends)


@pytest.mark.parametrize("name", CASES)
def test_a_body_cut_at_any_offset_reads_the_same(name):
    case = load(name)
    for offset in range(len(case.body) + 1):
        check(case, [case.body[:offset], case.body[offset:]])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_body_in_random_pieces_reads_the_same(data):
    case = load(data.draw(st.sampled_from(CASES)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(case.body)), max_size=20)))
    check(case, [case.body[a:b] for a, b in zip([0, *cuts], [*cuts, len(case.body)], strict=True)])


def produced(name: str) -> str:
    case = load(name)
    meter = case.meter()
    run(meter, [case.body], clean=case.clean)
    return meter.produced()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("openai-chat-usage", "Lighthouses mark the edge of safe water."),
        ("openai-chat-refusal", "I'm sorry, I can't help with that."),
        ("openai-chat-tool-calls", 'get_tide{"port":"Brest"}get_wind{"port":"Brest", "unit":"kn"}'),
        ("deepseek-reasoner", "Let's see.Obsidian is glass."),
        ("vllm-chat-reasoning", "Two plus two... four.It is 4."),
        ("json-llamacpp-chat", "hmIron rusts"),
        ("json-openai-chat-n2-tools", 'tide{"h":3}noteraw textWait.'),
        ("json-anthropic", "xTin cans."),
        ("json-responses", "Clay dries. Then cracks."),
        ("responses-stream-function-call", 'get_tide{"port":"Brest"}'),
        ("anthropic-stream-thinking-tool", 'Need the tide.get_tide{"port": "Brest"}Checking.'),
        ("ollama-chat", "Brief one.Chalk erodes."),
        ("ollama-chat-tool", 'get_tide{"port":"Brest","h":3}'),
        ("audio-transcription-stream", "The tide turned."),
        ("tgi-generate-stream", "Kelp sways"),
    ],
)
def test_all_that_is_billed_is_produced(name, text):
    """Reasoning, refusals and tool calls too, each once."""
    assert produced(name) == text


@pytest.mark.parametrize("name", [name for name in CASES if "message" in load(name).context["extra"].get("error", {})])
def test_the_upstreams_own_error_is_told(name):
    case = load(name)
    meter = case.meter()
    for i in range(len(case.body)):
        meter.feed(case.body[i : i + 1])
    meter.end(case.clean)
    error = case.context["extra"]["error"]
    told = meter.last_error
    assert told is not None
    assert told.message == error["message"]
    assert told.code == ("" if error.get("code") is None else str(error["code"]))
    assert error.get("type") in (None, told.type)
