"""`proxyd.v1.Error` in its three places."""

from __future__ import annotations

import json

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto_error import error_body, error_json, error_message
from tests.wire.pb_samples import messages, sample

RATE = {
    "message": "Rate limit reached for gpt-5-mini. Please try again in 125ms.",
    "type": "tokens",
    "param": None,
    "code": "rate_limit_exceeded",
}


def rate_error() -> ProxyError:
    return ProxyError("upstream_overloaded", RATE["message"], status=429, retry_after=0.125, body=json.dumps({"error": RATE}).encode())


def test_an_errors_body_is_the_other_programs_bytes() -> None:
    assert error_body(rate_error()) == sample("other/error-429.pb")


def test_an_error_inside_a_stream_says_its_status() -> None:
    assert error_message(rate_error(), with_status=True).status == 429
    assert error_message(rate_error()).status == 0
    _, last = messages(sample("other/stream-error.pbd"))
    assert pb.ChatCompletionChunk.FromString(last).error.status == 502


def test_our_own_errors_have_their_code_type_and_param() -> None:
    message = error_message(ProxyError("invalid_request", "No.", param="n"))
    assert (message.message, message.code, message.type, message.param, message.retry_after_ms) == (
        "No.",
        "invalid_request",
        "invalid_request_error",
        "n",
        0,
    )


def test_an_errors_json_is_openais() -> None:
    assert json.loads(error_json(error_body(rate_error()))) == {"error": RATE}


def test_a_body_that_is_not_json_leaves_our_own_words() -> None:
    assert error_message(ProxyError("upstream_error", "Broken.", body=b"<html>")).message == "Broken."
    assert error_message(ProxyError("upstream_error", "Broken.", body=b'{"error":"text"}')).code == "upstream_error"
