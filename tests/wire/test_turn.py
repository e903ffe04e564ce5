"""What is put together of a stream is what a whole answer would have said, wherever the stream is cut into pieces."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.wire.turn import Transcript, answer_message
from tests.wire.pb_samples import STREAMS, sample, sse_data


def pieced(data: bytes, cuts: list[int]) -> dict:
    transcript = Transcript()
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    for begin, end in zip([0, *places], [*places, len(data)], strict=True):
        transcript.feed(data[begin:end])
    return json.loads(transcript.message() or b"null")


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 10**6), max_size=8))
def test_a_stream_becomes_its_message_however_it_is_cut(name, cuts):
    data = sample(f"streams/{name}.sse")
    events = [json.loads(event) for event in sse_data(data) if event != b"[DONE]"]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    found = pieced(data, cuts)
    assert (found["content"] or "") == "".join(delta.get("content") or "" for delta in deltas)
    arguments = "".join(call["function"].get("arguments", "") for delta in deltas for call in delta.get("tool_calls") or ())
    assert "".join(call["function"]["arguments"] for call in found.get("tool_calls", ())) == arguments


def test_a_whole_answer_gives_what_may_be_sent_back():
    message = {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "reasoning_content": "Hm."}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert json.loads(answer_message(json.dumps(document).encode())) == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    "document", [b"", b"[]", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":[{"message":{"role":"assistant"}}]}']
)
def test_what_says_nothing_is_not_stored(document):
    assert answer_message(document) is None
    transcript = Transcript()
    transcript.feed(b"data: " + document + b"\n\n")
    assert transcript.message() is None
