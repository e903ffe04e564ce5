"""Protobuf chat requests, read as the JSON that they stand for."""

from __future__ import annotations

import base64
import json

import pytest

from proxyd.errors import ProxyError
from proxyd.wire import proto
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto_text import MAX_JSON
from tests.wire.pb_samples import REQUESTS, sample, without_nulls


def body(**fields) -> dict:
    return json.loads(proto.chat(pb.ChatCompletionRequest(**fields).SerializeToString()).body)


@pytest.mark.parametrize("name", REQUESTS)
def test_each_sample_request_is_the_json_beside_it(name: str) -> None:
    read = proto.chat(sample(f"requests/{name}.pb"))
    assert without_nulls(json.loads(read.body)) == without_nulls(json.loads(sample(f"requests/{name}.json")))


def test_what_is_for_proxyd_alone_is_not_in_the_body() -> None:
    read = proto.chat(sample("requests/first-turn.pb"))
    assert json.loads(read.body).keys() == {"model", "messages", "stream"}
    assert (read.handle, read.history, read.conversation) == (bytes(range(8)), 1, None)
    assert (read.delivery.max_delay_ms, read.delivery.resumable) == (500, True)


def test_a_stateful_turn_is_at_most_120_bytes_and_names_its_conversation() -> None:
    data = sample("requests/conv-20.stateful.pb")
    read = proto.chat(data)
    assert len(data) <= 120
    assert read.conversation == b"12345678"
    assert "model" not in json.loads(read.body)


def test_a_float_is_the_shortest_decimal_that_gives_it() -> None:
    assert proto.chat(pb.ChatCompletionRequest(temperature=0.7, top_p=0.95, presence_penalty=-2).SerializeToString()).body == (
        b'{"temperature":0.7,"top_p":0.95,"presence_penalty":-2}'
    )


def test_json_text_is_spliced_not_re_encoded() -> None:
    schema = '{ "maximum": 18446744073709551617, "b": 1.0, "a": 1e2 }'
    read = proto.chat(
        pb.ChatCompletionRequest(tools=[pb.Tool(function=pb.FunctionTool(name="f", parameters_json=schema))]).SerializeToString()
    )
    assert schema.encode() in read.body


def test_an_assistant_without_content_has_a_null_one() -> None:
    assert body(messages=[pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}")])]) == {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                "content": None,
            }
        ]
    }


def test_binary_parts_become_data_urls() -> None:
    parts = [
        pb.ContentPart(image=pb.Image(data=b"\xff\xd8")),
        pb.ContentPart(audio=pb.Audio(data=b"RIFF")),
        pb.ContentPart(file=pb.File(data=b"%PDF", filename="a.pdf")),
    ]
    image, audio, file = body(messages=[pb.Message(parts=parts)])["messages"][0]["content"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8").decode()}}
    assert audio == {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    assert file["file"] == {"file_data": "data:application/pdf;base64," + base64.b64encode(b"%PDF").decode(), "filename": "a.pdf"}


def test_extra_members_of_every_level_are_merged() -> None:
    message = pb.Message(content="x", extra_json='{"role":"critic"}')
    assert body(messages=[message], extra_json='{"top_k":40,"temperature":0.12345678901}') == {
        "messages": [{"role": "critic", "content": "x"}],
        "top_k": 40,
        "temperature": 0.12345678901,
    }


BAD = {
    "a member twice": pb.ChatCompletionRequest(model="m", extra_json='{"model":"n"}'),
    "a member twice in a message": pb.ChatCompletionRequest(messages=[pb.Message(content="a", extra_json='{"content":"b"}')]),
    "extra that is no object": pb.ChatCompletionRequest(extra_json="[1]"),
    "extra that is not JSON": pb.ChatCompletionRequest(extra_json='{"a":'),
    "extra that closes its place": pb.ChatCompletionRequest(extra_json='{"a":1},"stream":true'),
    "JSON that is two values": pb.ChatCompletionRequest(tools=[pb.Tool(other_json='{"type":"x"},{"type":"y"}')]),
    "JSON nested without end": pb.ChatCompletionRequest(tools=[pb.Tool(other_json="[" * 50_000)]),
    "JSON over the limit": pb.ChatCompletionRequest(extra_json=json.dumps({"a": "x" * MAX_JSON})),
    "content and parts": pb.ChatCompletionRequest(messages=[pb.Message(content="a", parts=[pb.ContentPart(text="b")])]),
    "an empty part": pb.ChatCompletionRequest(messages=[pb.Message(parts=[pb.ContentPart()])]),
    "an image from nowhere": pb.ChatCompletionRequest(messages=[pb.Message(parts=[pb.ContentPart(image=pb.Image())])]),
    "a file from nowhere": pb.ChatCompletionRequest(messages=[pb.Message(parts=[pb.ContentPart(file=pb.File())])]),
    "an unknown role": pb.ChatCompletionRequest(messages=[pb.Message(role=99)]),
    "an empty tool": pb.ChatCompletionRequest(tools=[pb.Tool()]),
    "an empty choice": pb.ChatCompletionRequest(tool_choice=pb.ToolChoice()),
    "an unknown choice": pb.ChatCompletionRequest(tool_choice=pb.ToolChoice(mode=9)),
    "an empty format": pb.ChatCompletionRequest(response_format=pb.ResponseFormat()),
    "not a number": pb.ChatCompletionRequest(temperature=float("nan")),
    "an infinite bias": pb.ChatCompletionRequest(logit_bias={1: float("inf")}),
    "a short handle": pb.ChatCompletionRequest(handle=b"1234567"),
    "a long conversation": pb.ChatCompletionRequest(conversation=b"x" * 17),
    "too many messages": pb.ChatCompletionRequest(messages=[pb.Message()] * 4097),
    "too many tools": pb.ChatCompletionRequest(tools=[pb.Tool(other_json="{}")] * 513),
    "a delay without end": pb.ChatCompletionRequest(delivery=pb.Delivery(max_delay_ms=10_001)),
    "an unknown detail": pb.ChatCompletionRequest(delivery=pb.Delivery(detail=7)),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_request_that_means_nothing_is_refused(fault: str) -> None:
    with pytest.raises(ProxyError) as refused:
        proto.chat(BAD[fault].SerializeToString())
    assert (refused.value.code, refused.value.status) == ("invalid_request", 400)


def test_a_name_survives_being_text() -> None:
    for size in range(8, 17):
        name = bytes(range(240, 240 + size)) if size <= 16 else b""
        assert proto.name_bytes(proto.name_text(name)) == name
    for text in ("", "short", "!" * 12, "a" * 40):
        with pytest.raises(ProxyError):
            proto.name_bytes(text)
