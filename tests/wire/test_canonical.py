"""The one form of a request, JSON or protobuf, however it is spelled."""

from __future__ import annotations

import json
import time
from unittest import mock

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.wire import canonical, proto, proto_ask
from tests.wire.pb_samples import REQUESTS, sample, status_of
from tests.wire.test_proto_ask import ANY, REQUEST


@pytest.mark.parametrize("name", REQUESTS)
def test_a_json_request_and_its_protobuf_twin_have_one_canonical_form(name: str) -> None:
    assert canonical.chat(sample(f"requests/{name}.json")) == canonical.chat(proto.chat(sample(f"requests/{name}.pb")).body)


@given(REQUEST)
@settings(max_examples=200, deadline=None)
def test_any_request_and_its_twin_have_one_canonical_form(request_members: dict) -> None:
    body = json.dumps(request_members).encode()
    twin = proto.chat(proto_ask.chat_message(body).SerializeToString()).body
    assert canonical.chat(twin) == canonical.chat(body)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"model": "m", "user": None}, {"model": "m"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"model": "m", "delivery": {"max_delay_ms": 5}, "handle": "AAAAAAAAAAA"}, {"model": "m"}),
        ({"messages": [{"content": "x"}]}, {"messages": [{"role": "user", "content": "x"}]}),
        (
            {"messages": [{"role": "assistant", "reasoning": "x"}]},
            {"messages": [{"role": "assistant", "reasoning_content": "x", "content": None}]},
        ),
    ],
)
def test_what_means_the_same_has_one_form(one: dict, other: dict) -> None:
    assert canonical.chat(json.dumps(one).encode()) == canonical.chat(json.dumps(other).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 0.7}, {"temperature": 0.70001}),
        ({"seed": 9007199254740993}, {"seed": 9007199254740992}),
        ({"x": 18446744073709551617}, {"x": 18446744073709551618}),
        ({"x": 0.1234567890123456}, {"x": 0.1234567890123457}),
        ({"stream": True}, {"stream": False}),
        ({"messages": [{"content": "a"}]}, {"messages": [{"content": "b"}]}),
        ({"messages": [{"content": ""}]}, {"messages": [{}]}),
        ({"metadata": {"a": "1"}}, {"metadata": {"a": 1}}),
        ({"tools": []}, {"tools": [{"type": "x"}]}),
    ],
)
def test_what_means_another_thing_has_another_form(one: dict, other: dict) -> None:
    assert canonical.chat(json.dumps(one).encode()) != canonical.chat(json.dumps(other).encode())


@given(ANY)
@settings(deadline=None)
def test_other_requests_differ_exactly_where_their_values_do(value: object) -> None:
    body = {"input": value, "model": "m"}
    spelled = json.dumps(dict(reversed(body.items())), indent=2, ensure_ascii=False).encode("utf-8", "replace")
    assert canonical.plain(json.dumps(body).encode()) == canonical.plain(spelled)
    assert canonical.plain(json.dumps({**body, "input": [value]}).encode()) != canonical.plain(spelled)


@given(st.one_of(st.binary(max_size=200), ANY.map(lambda item: json.dumps(item).encode())))
@settings(max_examples=200, deadline=None)
def test_any_bytes_have_a_form_or_are_a_proxy_error(body: bytes) -> None:
    for act in (canonical.chat, canonical.plain):
        assert status_of(act, body) in {200, 400}


@pytest.mark.parametrize("body", [b'{"\x8f":1}', b'{"a":"\xff"}', b'{"messages":[{"\x8f":1}]}', b"[" * 100_000, b"[]", b"null"])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    assert status_of(canonical.chat, body) == 400
    if b":[{" not in body and b'"a"' not in body:  # that a large body is UTF-8 is checked where it is read
        assert status_of(canonical.chat, body + b" " * canonical.EXACT) == 400


@pytest.mark.parametrize(
    "request_members",
    [
        {"messages": [{"role": "user", "content": "x"}] * 5000},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 600},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": "y" * 1_000_100}}}]},
    ],
    ids=["messages", "tools", "parameters"],
)
def test_the_bounds_of_protobuf_are_none_for_json(request_members: dict) -> None:
    """A key must not make a request fail that is served without one."""
    assert status_of(canonical.chat, json.dumps(request_members).encode()) == 200


def test_a_large_body_has_a_form_that_takes_no_reading() -> None:
    long = {"model": "m", "messages": [{"role": "user", "content": "x" * (2 << 20)}], "handle": "AAAAAAAAAAA"}
    one = json.dumps(long, separators=(",", ":")).encode()
    other = json.dumps(dict(reversed([item for item in long.items() if item[0] != "handle"])), indent=1).encode()
    assert canonical.chat(one) == canonical.chat(other)
    assert canonical.chat(one) != canonical.chat(one.replace(b"xx", b"xy", 1))
    numbers = b'{"input":[' + b",".join([b"12"] * 1_000_000) + b"]}"
    begun = time.process_time()
    canonical.plain(numbers)
    assert time.process_time() - begun < 1  # generous: a reading takes seconds


TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\ \n'))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON), st.sampled_from([None, 0, 1, "\t"]), st.booleans(), st.sampled_from([2, 3, 5, 64]))
def test_the_form_of_a_large_body_is_its_members_sorted_and_without_space_whatever_the_step(document, indent, ascii_only, step):
    body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    members = sorted(document.items())
    expected = b"\n".join(
        orjson.dumps(name) + json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only).encode() for name, value in members
    )
    with mock.patch.object(canonical, "STEP", step):
        assert canonical._large(body, frozenset()) == expected
