"""The request's body: what is refused, what is read, and what the upstream gets."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.model import Endpoint
from proxyd.wire.body import MAX_MEMBERS, MAX_MODEL_NAME, Edits, parse_ask, route_asks_usage, upstream_body

CHAT = Endpoint.CHAT


def ask_of(body: bytes, endpoint: Endpoint = CHAT):
    return parse_ask(endpoint, body)


def refused(body: bytes, endpoint: Endpoint = CHAT) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        parse_ask(endpoint, body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"model": "x"',
        b'{"model": "x"} trailing',
        b'{"model": "x", "temperature": NaN}',
        b'{"model": "x", "temperature": Infinity}',
        b'{"model": "x", "n": 01}',
        b'{"model": "x",}',
        b"{'model': 'x'}",
        b'\xef\xbb\xbf{"model": "x"}',
        b'{"model": "x"}\x00',
        '{"model": "x"}'.encode("utf-16"),
        b'{"model\xff": "x"}',
        b'{"model": "x", "user": "\\ud800"}',
    ],
)
def test_what_is_not_json_is_refused_as_such(body: bytes) -> None:
    assert refused(body).code == "invalid_json"


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (rb"a\ud83d", rb"\ud83d"),
        (rb"\ud83d\ude00 \uD83D and more text", rb"\uD83D"),
        (rb"\ud83d\ude00\ude00 and more text", rb"\ude00"),
        (rb"\\\udc00 and more text", rb"\udc00"),
        (rb"\\ud83d\ude00 and more text", rb"\ude00"),
    ],
)
@pytest.mark.parametrize("form", [b'{"model":"x%b"}', b'{"model":"x","messages":[{"content":"%b"}]}', b'{"%b":1}'])
def test_half_of_a_surrogate_pair_is_called_that(form: bytes, text: bytes, half: bytes) -> None:
    error = refused(form % text)
    assert error.code == "invalid_json"
    assert f"{half.decode()} in a text is half of a surrogate pair" in error.message


@pytest.mark.parametrize("text", [rb"\ud83d\ude00", rb"\\ud83d", rb"\\\\ud83d"])
def test_a_whole_pair_and_what_only_looks_like_one_are_not_blamed(text: bytes) -> None:
    assert "surrogate" not in refused(b'{"model":"x","user":"%b"' % text).message


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1", b"true"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert refused(body).code == "invalid_request"


def test_a_body_nested_too_deeply_is_refused_and_not_a_crash() -> None:
    error = refused(b'{"model": "x", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    assert error.code == "invalid_json"
    assert "nested" in error.message


@pytest.mark.parametrize(
    ("member", "param"),
    [
        ("", "model"),
        ('"model": null', "model"),
        ('"model": ""', "model"),
        ('"model": 1', "model"),
        ('"model": ["x"]', "model"),
        ('"model": {"id": "x"}', "model"),
        ('"model": "x\\ny"', "model"),
        ('"model": "x\\u0000"', "model"),
        ('"model": "x\\u0085"', "model"),
        ('"model": "x\\u2028"', "model"),
        ('"model": "x\\u202e"', "model"),
        (f'"model": "{"m" * (MAX_MODEL_NAME + 1)}"', "model"),
        ('"model": "x", "stream": 1', "stream"),
        ('"model": "x", "stream": "true"', "stream"),
        ('"model": "x", "n": 0', "n"),
        ('"model": "x", "n": -1', "n"),
        ('"model": "x", "n": "2"', "n"),
        ('"model": "x", "n": 1.5', "n"),
        ('"model": "x", "n": true', "n"),
        ('"model": "x", "n": 99999999999999999999', "n"),
        ('"model": "x", "n": ' + "9" * 5000, "n"),
        ('"model": "x", "max_tokens": "10"', "max_tokens"),
        ('"model": "x", "max_tokens": 1e400', "max_tokens"),
        ('"model": "x", "max_completion_tokens": []', "max_completion_tokens"),
        ('"model": "x", "stream_options": true', "stream_options"),
        ('"model": "x", "stream_options": {"include_usage": 1}', "stream_options"),
    ],
)
def test_a_member_of_the_wrong_kind_is_refused_by_its_name(member: str, param: str) -> None:
    error = refused(("{" + member + "}").encode())
    assert (error.code, error.param) == ("invalid_request", param)


def test_a_model_name_that_is_not_utf8_is_refused() -> None:
    assert refused(b'{"model": "x\xff"}').param == "model"


def test_more_members_than_any_request_has_are_refused_before_they_are_all_read() -> None:
    at_most = b",".join(b'"m%d":1' % index for index in range(MAX_MEMBERS - 1))
    assert len(ask_of(b'{"model":"x",' + at_most + b"}").fields) == MAX_MEMBERS
    error = refused(b'{"model":"x","one":1,' + at_most + b"}")
    assert str(MAX_MEMBERS) in error.message


@pytest.mark.parametrize(
    "name", ["gpt-4o", "org/name:provider", "llama3.2:1b", "modèle", "模型", "a b", "m" * MAX_MODEL_NAME, "ft:gpt-4o:acme::abc"]
)
def test_model_names_with_slashes_colons_and_letters_of_any_script_are_ordinary(name: str) -> None:
    assert ask_of(json.dumps({"model": name}).encode()).model == name


def test_the_few_members_are_read_wherever_they_stand() -> None:
    body = b'{"messages": [{"role": "user", "content": "model"}], "n": 2, "stream": true, "max_tokens": 7, "model": "x"}'
    ask = ask_of(body)
    assert (ask.model, ask.stream, ask.choices, ask.max_tokens, ask.wants_usage) == ("x", True, 2, 7, False)
    assert list(ask.fields) == ["messages", "n", "stream", "max_tokens", "model"]


def test_nulls_are_as_if_absent() -> None:
    ask = ask_of(b'{"model":"x","stream":null,"n":null,"max_tokens":null,"max_completion_tokens":null,"stream_options":null}')
    assert (ask.stream, ask.choices, ask.max_tokens, ask.wants_usage) == (False, 1, None, False)


@pytest.mark.parametrize(
    ("member", "limit"),
    [
        ('"max_tokens": 5', 5),
        ('"max_completion_tokens": 6', 6),
        ('"max_tokens": 5, "max_completion_tokens": 6', 6),
        ('"max_tokens": 5, "max_completion_tokens": null', 5),
        ('"max_tokens": -1', None),
        ('"max_tokens": 0', 0),
    ],
)
def test_the_output_limit_goes_by_either_name_and_below_zero_is_none(member: str, limit: int | None) -> None:
    assert ask_of(('{"model": "x", ' + member + "}").encode()).max_tokens == limit


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ('{"include_usage": true}', True),
        ('{"include_usage": false}', False),
        ('{"include_usage": null}', False),
        ("{}", False),
        ("null", False),
        ('{"include_obfuscation": false, "include_usage": true, "new": [1]}', True),
    ],
)
def test_a_client_wants_usage_only_when_it_says_true(options: str, *, wants: bool) -> None:
    assert ask_of(('{"model": "x", "stream": true, "stream_options": ' + options + "}").encode()).wants_usage is wants


def test_embeddings_are_never_streamed_and_their_other_members_are_the_upstreams_to_judge() -> None:
    ask = ask_of(b'{"model": "x", "input": "a", "stream": true, "n": "odd"}', Endpoint.EMBEDDINGS)
    assert (ask.stream, ask.choices) == (False, 1)
    assert b'"n":"odd"' in upstream_body(ask, Edits(ask_usage=True))
    assert b"stream_options" not in upstream_body(ask, Edits(ask_usage=True))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "cheap", "model": "dear"}',
        b'{"model": "cheap", "m\\u006fdel": "dear"}',
        b'{"\\u006dodel": "cheap", "model": "dear"}',
    ],
)
def test_a_model_named_twice_is_routed_and_asked_for_by_the_same_one(body: bytes) -> None:
    ask = ask_of(body)
    assert ask.model == "dear"
    assert upstream_body(ask, Edits()) == b'{"model":"dear"}'


def test_members_survive_byte_for_byte_in_their_order() -> None:
    body = b'{"z": 1.10, "model": "x", "big": 12345678901234567890123, "t": "\\u00e9\\/", "a": {"k" : [ 1 ,2] , "k": 1E5}}'
    expected = b'{"z":1.10,"model":"x","big":12345678901234567890123,"t":"\\u00e9\\/","a":{"k" : [ 1 ,2] , "k": 1E5}}'
    assert upstream_body(ask_of(body), Edits()) == expected


def test_the_model_is_renamed_in_its_place() -> None:
    assert upstream_body(ask_of(b'{"a":1,"model":"x","b":2}'), Edits(model='o/"y"')) == b'{"a":1,"model":"o/\\"y\\"","b":2}'


def test_defaults_are_added_only_where_absent_and_forced_ones_replace() -> None:
    ask = ask_of(b'{"model":"x","temperature":null,"top_p":1,"seed":3}')
    edits = Edits(set={"temperature": 0.2, "user": "u"}, force={"top_p": 0.5, "stop": ["a"]}, drop=("seed", "unknown"))
    assert upstream_body(ask, edits) == b'{"model":"x","temperature":null,"top_p":0.5,"user":"u","stop":["a"]}'


def test_what_is_dropped_can_be_set_anew() -> None:
    assert upstream_body(ask_of(b'{"model":"x","seed":3}'), Edits(set={"seed": 4}, drop=("seed",))) == b'{"model":"x","seed":4}'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", b'"stream_options":{"include_usage":true}'),
        (b',"stream_options":null', b'"stream_options":{"include_usage":true}'),
        (b',"stream_options":{}', b'"stream_options":{"include_usage":true}'),
        (b',"stream_options":{"include_usage":false}', b'"stream_options":{"include_usage":true}'),
        (
            b',"stream_options":{"include_obfuscation":false,"include_usage":null}',
            b'"stream_options":{"include_obfuscation":false,"include_usage":true}',
        ),
    ],
)
def test_a_stream_is_asked_for_usage_and_its_other_options_stay(options: bytes, expected: bytes) -> None:
    ask = ask_of(b'{"model":"x","stream":true' + options + b"}")
    assert upstream_body(ask, Edits(ask_usage=True)) == b'{"model":"x","stream":true,' + expected + b"}"


@pytest.mark.parametrize("stream", [b"", b',"stream":false', b',"stream":null'])
def test_what_is_not_streamed_is_never_asked_for_stream_options(stream: bytes) -> None:
    ask = ask_of(b'{"model":"x"' + stream + b"}")
    assert upstream_body(ask, Edits(ask_usage=True)) == b'{"model":"x"' + stream + b"}"


def test_null_stream_options_are_left_alone_where_usage_is_not_asked_for() -> None:
    ask = ask_of(b'{"model":"x","stream":true,"stream_options":null}')
    assert upstream_body(ask, Edits()) == b'{"model":"x","stream":true,"stream_options":null}'


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (b'"max_completion_tokens":9', b'"max_completion_tokens":9,"max_tokens":9'),
        (b'"max_completion_tokens":9,"max_tokens":null', b'"max_completion_tokens":9,"max_tokens":9'),
        (b'"max_completion_tokens":9,"max_tokens":4', b'"max_completion_tokens":9,"max_tokens":4'),
        (b'"max_tokens":4', b'"max_tokens":4'),
    ],
)
def test_the_modern_output_limit_is_said_in_the_old_way_too_for_ollama(members: bytes, expected: bytes) -> None:
    ask = ask_of(b'{"model":"x",' + members + b"}")
    assert upstream_body(ask, Edits(rename_max_tokens=True)) == b'{"model":"x",' + expected + b"}"


@pytest.mark.parametrize(
    ("members", "edits", "expected"),
    [
        # forced: the client's own is gone, whichever name it has
        (b',"max_completion_tokens":900', {"force": {"max_tokens": 70}}, b',"max_tokens":70'),
        (b',"max_tokens":900', {"force": {"max_completion_tokens": 70}}, b',"max_completion_tokens":70'),
        (b',"max_tokens":900,"seed":1', {"force": {"max_tokens": 70}}, b',"max_tokens":70,"seed":1'),
        (
            b',"max_tokens":900',
            {"force": {"max_completion_tokens": 70}, "rename_max_tokens": True},
            b',"max_completion_tokens":70,"max_tokens":70',
        ),
        # a default: not beside the client's own, which OpenAI refuses
        (b',"max_completion_tokens":9', {"set": {"max_tokens": 70}}, b',"max_completion_tokens":9'),
        (
            b',"max_completion_tokens":9',
            {"set": {"max_tokens": 70}, "rename_max_tokens": True},
            b',"max_completion_tokens":9,"max_tokens":9',
        ),
        (b',"max_tokens":9', {"set": {"max_completion_tokens": 70}}, b',"max_tokens":9'),
        (b"", {"set": {"max_tokens": 70}}, b',"max_tokens":70'),
        (b"", {"set": {"max_tokens": 70, "max_completion_tokens": 80}}, b',"max_tokens":70,"max_completion_tokens":80'),
    ],
)
def test_a_limit_of_the_answer_is_the_routes_or_the_clients_by_whichever_name(members: bytes, edits: dict, expected: bytes) -> None:
    assert upstream_body(ask_of(b'{"model":"x"' + members + b"}"), Edits(**edits)) == b'{"model":"x"' + expected + b"}"


@pytest.mark.parametrize(
    ("force", "drop", "expected"),
    [
        ({}, (), None),
        ({"stream_options": {"include_obfuscation": False}}, (), None),
        ({"stream_options": None}, (), None),
        ({"stream_options": {"include_usage": True}}, (), True),
        ({"stream_options": {"include_usage": False}}, (), False),
        ({}, ("stream_options",), False),
    ],
)
def test_a_route_may_say_itself_whether_streams_are_asked_for_usage(force: dict, drop: tuple, *, expected: bool | None) -> None:
    assert route_asks_usage(force, drop) is expected


@pytest.mark.parametrize("edits", [{"set": {"model": "y"}}, {"force": {"stream": True}}, {"drop": ("model",)}])
def test_a_route_cannot_change_what_steers_the_exchange(edits: dict) -> None:
    with pytest.raises(ValueError, match="steers"):
        Edits(**edits)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_ask_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(ProxyError):
        assert parse_ask(CHAT, data).model


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KNOWN = {"model", "stream", "n", "max_tokens", "max_completion_tokens", "stream_options"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(members=st.dictionaries(TEXT.filter(lambda name: name not in KNOWN), JSON_VALUES, max_size=6), ascii_only=st.booleans())
def test_an_unedited_body_means_to_the_upstream_what_it_meant_to_the_client(members: dict, *, ascii_only: bool) -> None:
    members = {**members, "model": "x"}
    body = json.dumps(members, ensure_ascii=ascii_only).encode()
    assert json.loads(upstream_body(ask_of(body), Edits())) == members
