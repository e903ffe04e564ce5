"""Whole answers: JSON to protobuf and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.delivery import Delivery
from proxyd.wire.proto_reply import completion, completion_json, fill_usage, usage_json
from tests.wire.corpus import load
from tests.wire.pb_samples import STREAMS, sample, status_of, without_nulls

COMPACT, FULL = Delivery(), Delivery(full=True)
CHAT = ("azure-chat", "deepseek-leading-blank-lines", "llamacpp-chat", "ollama-compat-chat", "openai-chat", "openai-chat-n2-tools")


@pytest.mark.parametrize("name", STREAMS)
def test_each_sample_answer_is_the_other_programs_bytes(name: str) -> None:
    body = sample(f"streams/{name}.unary.json")
    assert completion(body, COMPACT) == sample(f"streams/{name}.unary.pb")
    assert completion(body, FULL, handle=b"12345678") == sample(f"streams/{name}.unary.full.pb")


@pytest.mark.parametrize("name", STREAMS)
def test_at_full_detail_each_answer_comes_back(name: str) -> None:
    body = sample(f"streams/{name}.unary.json")
    assert without_nulls(json.loads(completion_json(completion(body, FULL)))) == without_nulls(json.loads(body))


@pytest.mark.parametrize("name", CHAT)
def test_answers_of_other_upstreams_come_back_too(name: str) -> None:
    body = load(f"json-{name}").body
    assert without_nulls(json.loads(completion_json(completion(body, FULL)))) == without_nulls(json.loads(body))


def answer(message: dict, **more) -> bytes:
    return json.dumps(
        {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}], **more}
    ).encode()


def test_compact_keeps_what_is_part_of_the_answer_and_no_more() -> None:
    body = answer({"content": "a", "audio": {"id": "b"}, "reasoning_details": [1], "annotations": []}, provider="p", model="m")
    read = pb.ChatCompletion.FromString(completion(body, COMPACT))
    assert (read.id, read.model, read.extra_json, read.choices[0].extra_json) == ("", "", "", "")
    assert json.loads(read.choices[0].message.extra_json) == {"audio": {"id": "b"}}


def test_a_thought_signature_goes_with_its_call() -> None:
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
        "extra_content": {"google": {"thought_signature": "s"}},
    }
    read = pb.ChatCompletion.FromString(completion(answer({"content": None, "tool_calls": [call]}), COMPACT))
    assert json.loads(read.choices[0].message.tool_calls[0].extra_json) == {"extra_content": call["extra_content"]}


def test_reasoning_is_left_out_on_request() -> None:
    body = answer({"content": "a", "reasoning_content": "hm", "reasoning": "hm", "reasoning_details": [{"text": "hm"}]})
    assert b"hm" not in completion(body, Delivery(omit_reasoning=True))
    assert pb.ChatCompletion.FromString(completion(body, COMPACT)).choices[0].message.reasoning == "hm"


def test_an_unknown_finish_reason_keeps_its_word() -> None:
    body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "pause_turn"}]}).encode()
    read = pb.ChatCompletion.FromString(completion(body, COMPACT))
    assert (read.choices[0].finish_reason, read.choices[0].finish_reason_text) == (pb.FINISH_REASON_OTHER, "pause_turn")
    assert json.loads(completion_json(completion(body, COMPACT)))["choices"][0]["finish_reason"] == "pause_turn"


def test_token_ids_are_not_taken_for_text() -> None:
    with pytest.raises(ProxyError, match="no vocabulary"):
        completion_json(pb.ChatCompletion(choices=[pb.Choice(tokens=[97, 98, 99])]).SerializeToString())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"choices":1}',
        b'{"choices":[1]}',
        b'{"id":"x"}',
        b'{"choices":[{"message":"x"}]}',
        b"<html>",
        b'{"\x8f":1,"choices":[]}',
        b'{"choices":[{"x":"\xff"}]}',
        b"[" * 9999,
    ],
)
def test_what_is_no_completion_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(ProxyError) as failed:
        completion(body, COMPACT)
    assert failed.value.code == "upstream_bad_response"


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_any_bytes_are_an_answer_or_a_proxy_error(data: bytes) -> None:
    for act in (lambda: completion(data, FULL), lambda: completion_json(data)):
        status_of(act)


COUNT = st.integers(0, 2**33)
USAGE = st.fixed_dictionaries(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT},
    optional={
        "total_tokens": COUNT,
        "prompt_tokens_details": st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "x"]), COUNT) | st.none(),
        "completion_tokens_details": st.dictionaries(st.sampled_from(["reasoning_tokens", "y"]), COUNT),
        "cost": st.floats(0, 1),
    },
)


@given(USAGE)
def test_usage_at_full_detail_comes_back_but_for_a_total_that_was_not_there(report: dict) -> None:
    usage = pb.Usage()
    fill_usage(usage, report, full=True)
    if usage.ByteSize():  # all zero is no report
        assert (
            usage_json(usage) == {"total_tokens": report["prompt_tokens"] + report["completion_tokens"], **report}
            or "total_tokens" not in report
        )


def test_usage_counts_of_other_dialects_are_read() -> None:
    usage = pb.Usage()
    fill_usage(usage, {"prompt_tokens": 13.0, "completion_tokens": 2, "prompt_cache_hit_tokens": 5}, full=False)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.extra_json) == (13, 2, 5, "")


@pytest.mark.parametrize("member", [b'"created":1e999', b'"id":1e999'])
def test_what_describes_an_answer_and_cannot_be_read_is_kept_as_it_is(member: bytes) -> None:
    body = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}],' + member + b"}"
    found = pb.ChatCompletion.FromString(completion(body, FULL))
    assert found.choices[0].message.content == "hi"
    assert member.decode() in found.extra_json
