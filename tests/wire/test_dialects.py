"""Shapes that the corpus has no case of, and that the quick and the thorough reading of a chunk agree."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.model import Usage
from proxyd.wire.answer import MAX_CHOICES, Answer
from proxyd.wire.dialects import Mark, decode, read_body, read_document, read_event


def answer_of(*docs: object) -> Answer:
    answer = Answer()
    for doc in docs:
        read_event(answer, json.dumps(doc).encode())
    return answer


def body_of(doc: object) -> Answer:
    answer = Answer()
    assert read_body(answer, json.dumps(doc).encode())
    return answer


def test_content_in_parts_is_text_and_its_thinking_is_billed():
    """Mistral's reasoning models write so."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}]}
    answer = answer_of({"choices": [{"index": 0, "delta": {"content": [thinking, {"type": "text", "text": "Yes."}]}}]})
    assert answer.texts() == {0: "Yes."}
    assert answer.produced() == "Hm. Yes."


def test_the_old_function_call_is_billed():
    call = {"name": "tide", "arguments": "{}"}
    assert answer_of({"choices": [{"index": 0, "delta": {"function_call": call}}]}).produced() == "tide{}"
    assert body_of({"choices": [{"index": 0, "message": {"content": None, "function_call": call}}]}).produced() == "tide{}"


def test_a_terminal_response_gives_the_text_that_no_delta_gave():
    output = [{"type": "message", "content": [{"type": "output_text", "text": "All at once."}]}]
    answer = answer_of({"type": "response.completed", "response": {"status": "completed", "output": output}})
    assert answer.texts() == {0: "All at once."}
    assert answer.terminal


def test_choices_without_an_index_are_numbered_by_their_place():
    answer = body_of({"choices": [{"text": "a", "finish_reason": "stop"}, {"text": "b", "finish_reason": ""}]})
    assert answer.texts() == {0: "a", 1: "b"}
    assert answer.reading().finish_reasons == {0: "stop", 1: None}


def test_choices_past_all_sense_fall_on_the_first():
    answer = answer_of(*({"choices": [{"index": i * 7919, "delta": {"content": "x"}}]} for i in range(2000)))
    assert len(answer.choices) <= MAX_CHOICES


def test_anthropics_usage_is_amended_member_by_member():
    answer = answer_of(
        {"type": "message_start", "message": {"usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 4, "input_tokens": None}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 12, "output_tokens": 9}},
    )
    assert answer.reading().usage == Usage(17, 9, 26, 5)


def test_tgis_whole_body_is_text_finish_and_usage():
    details = {"finish_reason": "length", "generated_tokens": 3, "input_length": 4}
    for doc in ({"generated_text": "Kelp", "details": details}, [{"generated_text": "Kelp", "details": details}]):
        answer = body_of(doc)
        reading = answer.reading()
        assert (answer.texts(), reading.finish_reasons, reading.usage) == ({0: "Kelp"}, {0: "length"}, Usage(4, 3, 7))


def test_a_byte_order_mark_before_a_document_is_passed_over_as_clients_do():
    """It was paid for: Python's and JavaScript's clients both read it."""
    answer = Answer()
    document = {
        "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    assert read_body(answer, b"\xef\xbb\xbf" + json.dumps(document).encode())
    assert answer.reading().usage == Usage(3, 1, 4)


def test_streamed_images_and_speech_report_usage():
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    for kind, mark in (("image_generation.completed", Mark.ORDINARY), ("speech.audio.done", Mark.TERMINAL)):
        answer = Answer()
        assert read_document(answer, {"type": kind, "usage": usage}) is mark
        assert answer.terminal
        assert answer.reading().usage == Usage(3, 4, 7)


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b'{"a":NaN}', float),
        (b'{"a":"\\ud83d"}', str),
        (b'{"a":"\xff"}', str),
        (b'"\\ud83d"', None),
        (b"nonsense", None),
        (b"[" * 5000, None),
        (b"", None),
    ],
)
def test_json_is_taken_as_leniently_as_clients_take_it(payload, value):
    got = decode(payload)
    assert (type(got["a"]) if isinstance(got, dict) else got) in (value, "\ud83d")


def facts(answer: Answer) -> tuple:
    return dataclasses.astuple(answer.reading()), answer.texts(), answer.produced(), answer.fault, answer.chat


texts = st.none() | st.text(max_size=5)
chunks = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(-1, 3)},
                optional={
                    "delta": st.none()
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "content": texts,
                            "reasoning": texts,
                            "reasoning_content": texts,
                            "refusal": texts,
                            "tool_calls": st.none() | st.just([{"function": {"name": "f", "arguments": "{}"}}]),
                        },
                    ),
                    "finish_reason": texts,
                    "text": texts,
                },
            ),
            min_size=1,
            max_size=3,
        )
    },
    optional={
        "model": texts,
        "usage": st.none() | st.just({"prompt_tokens": 3, "completion_tokens": 4.0}) | st.just({"prompt_tokens": 0}),
        "error": st.none() | st.just({"message": "no"}),
        "object": st.sampled_from(["chat.completion.chunk", "text_completion", "error", ""]),
        "type": st.none() | st.just("error"),
        "timings": st.none() | st.just({"prompt_n": 1, "predicted_n": 2}),
    },
)


@given(st.lists(chunks, max_size=4))
@settings(max_examples=300, deadline=None)
def test_the_quick_and_the_thorough_reading_agree(docs):
    """A member that makes a chunk unordinary sends it the thorough way: here every chunk is sent both ways."""
    quick, thorough = Answer(), Answer()
    for doc in docs:
        read_event(quick, json.dumps(doc).encode())
        read_event(thorough, json.dumps({**doc, "x_groq": {"id": "1"}}).encode())
    assert facts(quick) == facts(thorough)
