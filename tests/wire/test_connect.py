"""Connect and gRPC-Web envelopes, ends, errors and time limits."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import TABLE, ProxyError
from proxyd.wire import connect
from proxyd.wire._pb import chat_pb2 as pb
from tests.wire.pb_samples import sample, status_of
from tests.wire.test_proto_error import rate_error


def test_an_envelope_is_flags_length_and_message() -> None:
    assert connect.envelope(b"abc", 1) == b"\x01\x00\x00\x00\x03abc"


@given(st.lists(st.tuples(st.sampled_from([0, 2, 128]), st.binary(max_size=50)), max_size=5), st.integers(1, 20))
def test_envelopes_come_out_whole_however_the_stream_is_cut(sent: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(connect.envelope(message, flags) for flags, message in sent)
    reader = connect.EnvelopeReader()
    assert [one for start in range(0, len(stream), size) for one in reader.feed(stream[start : start + size])] == sent
    assert not reader.broken


def test_a_compressed_request_is_read() -> None:
    body = connect.envelope(gzip.compress(b"hello"), connect.COMPRESSED)
    assert connect.request_message(body, 100) == b"hello"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_request"),
        (b"\0\0\0\0", "invalid_request"),
        (connect.envelope(b"a") * 2, "invalid_request"),
        (connect.envelope(b"a") + b"\0", "invalid_request"),
        (b"\0\xff\xff\xff\xff", "body_too_large"),
        (connect.envelope(b"x" * 101), "body_too_large"),
        (connect.envelope(b"not gzip", 1), "invalid_request"),
        (connect.envelope(gzip.compress(b"x" * 10_000_000), 1), "body_too_large"),
        (connect.envelope(gzip.compress(b"abc")[:-4], 1), "invalid_request"),
        (connect.envelope(b"{}", connect.END), "invalid_request"),
    ],
)
def test_a_body_that_is_not_one_message_is_refused(body: bytes, code: str) -> None:
    limit = 100 if b"\x1f\x8b" not in body or len(body) < 200 else 20_000
    with pytest.raises(ProxyError) as refused:
        connect.request_message(body, limit)
    assert refused.value.code == code


BOMB = connect.envelope(gzip.compress(bytes(4 << 20)), connect.COMPRESSED)


@pytest.mark.parametrize("body", [bytes(8 << 20), BOMB * 100], ids=["empty messages", "bombs"])
def test_a_body_of_many_messages_costs_nothing(body: bytes) -> None:
    tracemalloc.start()
    try:
        assert status_of(connect.request_message, body, 32 << 20) == 400
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


EMPTY = b'{"messages": [' + b"{}," * 30_000 + b"{}]}"


@pytest.mark.parametrize(
    "body",
    [EMPTY, EMPTY.replace(b"{}", b"[]"), b'{"stop": [' + b'"",' * 50_000 + b'""]}', b'{"a": ["' + b'\\",' * 9 + b'",' + EMPTY + b"]}"],
)
def test_json_of_more_values_than_can_be_read_at_once_is_refused(body: bytes) -> None:
    with pytest.raises(ProxyError, match="more than 20000 values"):
        connect.from_json(pb.ChatCompletionRequest, body)


def test_json_is_bounded_where_protobuf_is_not() -> None:
    body = json.dumps({"messages": [{"content": "a" * connect.MAX_JSON}]}).encode()
    with pytest.raises(ProxyError, match="send it as application/proto") as refused:
        connect.from_json(pb.ChatCompletionRequest, body)
    assert refused.value.status == 413


def test_a_long_text_in_json_is_one_value() -> None:
    text = 'a, "b", {c}, [\\] ' * 20_000
    body = json.dumps({"messages": [{"content": text}]}).encode()
    assert connect.from_json(pb.ChatCompletionRequest, body).messages[0].content == text


@given(st.lists(st.binary(max_size=7), max_size=6))
def test_base64_is_read_wherever_it_was_flushed(pieces: list[bytes]) -> None:
    assert connect.from_text(b"".join(map(base64.b64encode, pieces))) == b"".join(pieces)


@given(st.binary(max_size=30) | st.text("A=", max_size=12).map(str.encode))
def test_any_text_is_base64_or_a_proxy_error(body: bytes) -> None:
    if status_of(connect.from_text, body) == 200:
        assert len(connect.from_text(body)) <= len(body)
    assert status_of(connect.from_text, b"AA==" * 5000) == 400


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_proxy_error(body: bytes) -> None:
    assert status_of(lambda: connect.request_message(body, 40)) in {200, 400, 413}


def test_a_unary_error_is_the_other_programs_bytes() -> None:
    assert connect.error_body(rate_error()) == (429, sample("other/error-429.connect.json"))


def test_a_stream_ends_with_nothing_or_with_its_error() -> None:
    assert connect.end_of_stream() == b"\x02\x00\x00\x00\x02{}"
    ((flags, end),) = connect.EnvelopeReader().feed(connect.end_of_stream(rate_error()))
    assert (flags, json.loads(end)["error"]) == (2, json.loads(sample("other/error-429.connect.json")))


def test_a_grpc_web_error_carries_its_detail() -> None:
    error = ProxyError("upstream_cut", "50% gone – sorry")
    ((flags, lines),) = connect.EnvelopeReader().feed(connect.web_trailers(error))
    assert flags == 0x80
    trailers = dict(line.split(":", 1) for line in lines.decode().split("\r\n") if line)
    assert (trailers["grpc-status"], trailers["grpc-message"]) == ("14", "50%25 gone %E2%80%93 sorry")
    status = base64.b64decode(trailers["grpc-status-details-bin"] + "==")
    assert status.startswith(b"\x08\x0e\x12")
    assert b"type.googleapis.com/proxyd.v1.Error" in status
    assert b"upstream_cut" in status


@pytest.mark.parametrize("code", TABLE)
def test_every_error_has_an_rpc_code(code: str) -> None:
    status, body = connect.error_body(ProxyError(code, "x"))
    assert 400 <= status < 600
    assert json.loads(body)["code"] == connect.code_of(ProxyError(code, "x")).name


def test_a_get_is_read_from_its_query() -> None:
    data = pb.ResumeChatCompletionRequest(handle=b"12345678", received=3).SerializeToString()
    text = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert connect.get_message({"connect": "v1", "encoding": "proto", "base64": "1", "message": text}, 100) == ("proto", data)
    assert connect.get_message({"encoding": "json", "message": "{}"}, 100) == ("json", b"{}")
    packed = base64.urlsafe_b64encode(gzip.compress(data)).decode()
    assert connect.get_message({"encoding": "proto", "base64": "1", "compression": "gzip", "message": packed}, 100) == ("proto", data)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"encoding": "proto"},
        {"encoding": "xml", "message": ""},
        {"connect": "v2", "encoding": "proto", "message": ""},
        {"encoding": "json", "message": "x" * 101},
        {"encoding": "proto", "base64": "1", "message": "!!"},
        {"encoding": "json", "message": "", "compression": "br"},
        {"encoding": "json", "message": "abc", "compression": "gzip"},
    ],
)
def test_a_get_that_makes_no_sense_is_refused(query: dict) -> None:
    with pytest.raises(ProxyError):
        connect.get_message(query, 100)


def test_time_limits_are_seconds() -> None:
    assert connect.timeout(None, None) is None
    assert connect.timeout("1500", None) == pytest.approx(1.5)
    assert connect.timeout("0", None) == 0
    assert [connect.timeout(None, text) for text in ("2H", "2M", "2S")] == [7200, 120, 2]
    assert connect.timeout(None, "2m") == pytest.approx(0.002)
    for bad in ("", "x", "-1", "1.5", "12345678901", "１"):
        with pytest.raises(ProxyError):
            connect.timeout(bad, None)
    for bad in ("", "S", "1", "123456789S", "1s", "-1S"):
        with pytest.raises(ProxyError):
            connect.timeout(None, bad)


def test_protobufs_json_form_goes_both_ways() -> None:
    message = pb.ChatCompletionRequest(model="m", messages=[pb.Message(content="ä")], handle=b"12345678")
    assert connect.from_json(pb.ChatCompletionRequest, connect.to_json(message)) == message
    assert connect.from_json(pb.ChatCompletionRequest, b'{"model":"m","fromTheFuture":1}').model == "m"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model":1}', b"\xff", b'{"messages":' * 2000, b"[" * 100_000, b'{"model":"\\ud800"}']
)
def test_json_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProxyError) as refused:
        connect.from_json(pb.ChatCompletionRequest, body)
    assert refused.value.status == 400


@given(st.binary(max_size=60))
def test_any_json_is_a_message_or_a_proxy_error(body: bytes) -> None:
    assert status_of(lambda: connect.from_json(pb.ChatCompletionRequest, body)) in {200, 400}
