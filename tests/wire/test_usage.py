"""Counts and errors out of single JSON values, where the corpus has no case of the shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.model import Usage
from proxyd.wire.usage import MAX_COUNT, MAX_WORDS, Fault, count_of, fault_of, ollama_usage, timings_usage, usage_of


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (13, 13),
        (13.0, 13),
        (0, 0),
        (MAX_COUNT, MAX_COUNT),
        (MAX_COUNT + 1, None),
        (-1, None),
        (1e300, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("13", None),
        (None, None),
        ([13], None),
    ],
)
def test_only_what_can_be_a_count_is_one(value, count):
    assert count_of(value) == count


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"type": "duration", "seconds": 3}, None),
        ({"prompt_tokens": 5}, Usage(prompt_tokens=5)),
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(5, 2, 7)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 9}, Usage(5, 2, 9)),
        ({"prompt_tokens": None, "input_tokens": 4, "output_tokens": 1}, Usage(4, 1, 5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}, "prompt_cache_hit_tokens": 3}, Usage(5, cached_tokens=3)),
        ({"prompt_tokens": 5, "prompt_tokens_details": "many"}, Usage(5)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": {"audio_tokens": 3, "cache_write_tokens": 2},
                "completion_tokens_details": {"audio_tokens": 1},
            },
            Usage(9, 4, 13, cache_write_tokens=2, audio_input_tokens=3, audio_output_tokens=1),
        ),
        # LiteLLM passes Anthropic's members on beside OpenAI's, whose prompt_tokens hold them already.
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "cache_read_input_tokens": 6, "cache_creation_input_tokens": 0},
            Usage(9, 1, 10, 6, None, 0),
        ),
        (
            {"input_tokens": 1, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 100, "output_tokens": 5},
            Usage(111, 5, 116, 100, None, 10),
        ),
    ],
)
def test_a_report_is_read_by_whichever_names(report, usage):
    assert usage_of(report) == usage


def test_native_counts_that_are_absent_are_unknown():
    assert ollama_usage({"eval_count": 4}) == Usage(completion_tokens=4)
    assert ollama_usage({"prompt_eval_count": 0, "eval_count": 0}) is None
    assert timings_usage({"prompt_n": 3, "predicted_n": 2}) == Usage(3, 2, 5)
    assert timings_usage({"predicted_n": 2}) == Usage(completion_tokens=2)


@pytest.mark.parametrize(
    ("doc", "name", "fault"),
    [
        ({"error": None}, b"", None),
        ({"error": ""}, b"", None),
        ({"error": {}}, b"", None),
        ({"error": "text", "error_type": "generation"}, b"", Fault("text", type="generation")),
        ({"error": True, "message": "no"}, b"", Fault("no")),
        ({"error": {"message": "m", "code": 400, "type": "t"}}, b"", Fault("m", "400", "t")),
        ({"object": "error", "message": "m", "code": 1}, b"", Fault("m", "1")),
        ({"type": "error", "message": "m"}, b"", Fault("m", type="error")),
        ({"message": "m"}, b"error", Fault("m")),
        (None, b"error", Fault()),
        ([], b"", None),
        ([{"error": {"message": "m"}}], b"", Fault("m")),
        ([{"generated_text": "x"}], b"", None),
        ({"type": "response.failed", "response": {"error": {"code": "c"}}}, b"", Fault(code="c")),
        ({"type": "response.failed"}, b"", Fault()),
        ({"type": "response.completed", "response": {"error": None}}, b"", None),
        ({"moderation": {"input": {"type": "error"}}}, b"", None),
        ({"error": {"message": "x" * 5000, "code": 10**5000}}, b"", Fault("x" * MAX_WORDS)),
        ({"error": {"message": "\ud800"}}, b"", Fault("?")),
    ],
)
def test_errors_are_known_in_every_dialect(doc, name, fault):
    assert fault_of(doc, name) == fault


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(["error", "type", "usage"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    json_values, st.dictionaries(st.sampled_from(["prompt_tokens", "input_tokens", "prompt_tokens_details", "cached_tokens"]), json_values)
)
def test_no_value_is_too_strange(value, report):
    """Nothing raises, and counts are counts."""
    fault_of(value)
    usage = usage_of(report)
    assert usage is None or all(count is None or 0 <= count <= 3 * MAX_COUNT for count in (usage.prompt_tokens, usage.total_tokens))
