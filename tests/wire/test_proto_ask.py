"""JSON requests as protobuf."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.wire import proto, proto_ask
from tests.wire.pb_samples import REQUESTS, sample, status_of, without_nulls

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBER = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
URL = st.sampled_from(["https://e.org/a", "data:image/png;base64,AAEC", "data:image/jpeg;base64,/9g=", "data:image/png;base64,AAE", ""])


def maybe(**members):
    return st.fixed_dictionaries({}, optional={name: st.one_of(strategy, ANY) for name, strategy in members.items()})


PART = st.one_of(
    maybe(type=st.just("text"), text=TEXT, cache_control=ANY),
    maybe(type=st.just("image_url"), image_url=maybe(url=URL, detail=TEXT)),
    maybe(type=st.just("input_audio"), input_audio=maybe(data=st.sampled_from(["AAEC", "x"]), format=st.sampled_from(["wav", "mp3", ""]))),
    maybe(type=st.just("file"), file=maybe(file_id=TEXT, file_data=URL, filename=TEXT)),
    ANY,
)
CALL = maybe(
    id=TEXT,
    type=st.sampled_from(["function", "custom", "x"]),
    function=maybe(name=TEXT, arguments=TEXT),
    custom=maybe(name=TEXT, input=TEXT),
    extra=ANY,
)
MESSAGE = maybe(
    role=st.sampled_from(["user", "assistant", "system", "tool", "critic"]),
    content=st.one_of(TEXT, st.lists(PART, max_size=3)),
    tool_calls=st.lists(CALL, max_size=2),
    refusal=TEXT,
    reasoning_content=TEXT,
    reasoning=TEXT,
    name=TEXT,
)
REQUEST = maybe(
    model=TEXT,
    messages=st.lists(MESSAGE, max_size=3),
    stream=st.booleans(),
    temperature=st.floats(0, 2, width=32),
    top_p=NUMBER,
    n=st.integers(0, 2**33),
    seed=st.integers(-(2**64), 2**64),
    stop=st.one_of(TEXT, st.lists(TEXT, max_size=2)),
    logit_bias=st.dictionaries(st.from_regex(r"\A[0-9]{1,10}\Z"), st.floats(-100, 100), max_size=2),
    metadata=st.dictionaries(TEXT, TEXT, max_size=2),
    tools=st.lists(
        maybe(type=st.just("function"), function=maybe(name=TEXT, description=TEXT, parameters=ANY, strict=st.booleans())), max_size=2
    ),
    tool_choice=st.sampled_from(["auto", "none", {"type": "function", "function": {"name": "f"}}]),
    response_format=maybe(type=st.just("json_schema"), json_schema=maybe(name=TEXT, schema=ANY, strict=st.booleans())),
    stream_options=st.sampled_from([{"include_usage": True}, {"include_obfuscation": True}, {"x": 1}]),
    top_k=ANY,
)


@pytest.mark.parametrize("name", REQUESTS)
def test_each_sample_is_written_in_the_size_of_the_other_programs(name: str) -> None:
    data = proto_ask.chat_message(sample(f"requests/{name}.json")).SerializeToString(deterministic=True)
    assert len(data) == len(sample(f"requests/{name}.pb"))
    if name != "kitchen-sink":  # its extra members stand in another order there
        assert data == sample(f"requests/{name}.pb")


@given(REQUEST)
@settings(max_examples=200, deadline=None)
def test_nothing_that_a_request_says_is_lost(request_members: dict) -> None:
    twin = json.loads(proto.chat(proto_ask.chat_message(json.dumps(request_members).encode()).SerializeToString()).body)
    for name, value in request_members.items():
        if name in {"messages", "tools", "response_format", "stop", "stream_options"} or value is None:
            continue  # have their own tests: nulls inside, defaults written out
        assert twin.get(name, False) == value  # `stream: false` is what leaving it out means


@given(st.one_of(st.binary(max_size=200), ANY.map(lambda item: json.dumps(item).encode())))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_request_or_a_proxy_error(body: bytes) -> None:
    assert status_of(proto_ask.chat_message, body) in {200, 400}


def test_messages_that_do_not_fit_at_all_are_kept_as_they_are() -> None:
    body = {"messages": "not a list", "tools": {"a": 1}, "n": -1, "temperature": "hot"}
    assert json.loads(proto.chat(proto_ask.chat_message(json.dumps(body).encode()).SerializeToString()).body) == body


def test_the_kitchen_sink_keeps_every_member() -> None:
    twin = proto.chat(proto_ask.chat_message(sample("requests/kitchen-sink.json")).SerializeToString()).body
    assert without_nulls(json.loads(twin)) == without_nulls(json.loads(sample("requests/kitchen-sink.json")))


@pytest.mark.parametrize("body", [b'{"\x8f":1}', b'{"a":"\xff"}', b'{"messages":[{"\x8f":1}]}', b'{"messages":[{"x":"\xff"}]}'])
def test_what_is_not_utf_8_is_refused(body: bytes) -> None:
    assert status_of(proto_ask.chat_message, body) == 400
