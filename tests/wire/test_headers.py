"""Headers: what passes to the upstream, what comes back, and what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire.headers import (
    MAX_RETRY_AFTER,
    MAX_STAINLESS,
    MAX_VALUE,
    credential,
    parse_retry_after,
    to_client,
    to_upstream,
    upstream_request_id,
)

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOW = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT


def sent(*headers: tuple[bytes, bytes], stream: bool = False) -> dict[bytes, bytes]:
    listed = to_upstream(headers, stream=stream)
    named = {name.lower(): value for name, value in listed}
    assert len(named) == len(listed)
    return named


def told(*headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in to_client(headers)}


@pytest.mark.parametrize(
    "name",
    [
        b"Authorization",
        b"X-Api-Key",
        b"api-key",
        b"x-goog-api-key",
        b"Cookie",
        b"Host",
        b"Content-Length",
        b"Content-Encoding",
        b"Transfer-Encoding",
        b"TE",
        b"Trailer",
        b"Upgrade",
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Connection",
        b"Proxy-Authorization",
        b"Expect",
        b"Forwarded",
        b"X-Forwarded-For",
        b"X-Real-IP",
        b"Origin",
        b"Referer",
        b"Sec-Fetch-Mode",
        b"Idempotency-Key",
        b"OpenAI-Organization",
        b"OpenAI-Project",
        b"Accept-Language",
        b"X-Request-Id",
        b"X-Whatever",
        b"user_agent",
        b"openai_beta",
        b"x_stainless_lang",
        b"x-stainless-a b",
        b"x-stainless-",
    ],
)
def test_what_is_not_listed_never_reaches_an_upstream(name: bytes) -> None:
    assert sent((name, b"secret")) == sent()


def test_what_is_listed_reaches_it() -> None:
    given_headers = [
        (b"user-agent", b"OpenAI/Python 3.52.0"),
        (b"X-Stainless-Lang", b"python"),
        (b"OpenAI-Beta", b"assistants=v2"),
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-beta", b"a"),
        (b"traceparent", PARENT),
        (b"tracestate", b"a=1"),
    ]
    assert {name.lower(): value for name, value in given_headers}.items() <= sent(*given_headers).items()


@pytest.mark.parametrize(("stream", "accept"), [(True, b"text/event-stream, application/json"), (False, b"application/json")])
def test_type_accept_and_encoding_are_ours_whatever_the_client_said(*, stream: bool, accept: bytes) -> None:
    headers = sent(
        (b"Content-Type", b"application/protobuf"), (b"Accept", b"application/protobuf"), (b"Accept-Encoding", b"gzip"), stream=stream
    )
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"accept"] == accept
    assert headers[b"accept-encoding"] == b"identity"


def test_a_client_without_a_name_is_sent_under_ours() -> None:
    assert sent()[b"user-agent"].startswith(b"proxyd/")
    assert sent((b"User-Agent", b"curl/8"))[b"user-agent"] == b"curl/8"


def test_what_connection_names_stays_on_this_hop() -> None:
    assert b"openai-beta" not in sent((b"OpenAI-Beta", b"x"), (b"Connection", b"close, OpenAI-Beta"))
    assert b"openai-version" not in told((b"openai-version", b"x"), (b"connection", b"Openai-Version"))


@pytest.mark.parametrize("value", [b"", b" ", b"a\r\nX-Evil: 1", b"a\nb", b"a\x00b", b"\x7f", "é".encode(), b"a" * (MAX_VALUE + 1)])
def test_a_value_that_is_unfit_does_not_pass_either_way(value: bytes) -> None:
    assert b"openai-beta" not in sent((b"OpenAI-Beta", value))
    assert b"x-stainless-lang" not in sent((b"X-Stainless-Lang", value))
    assert b"openai-version" not in told((b"openai-version", value))
    assert b"upstream-request-id" not in told((b"x-request-id", value))
    assert upstream_request_id([(b"x-request-id", value)]) is None


def test_lists_are_joined_and_of_anything_else_the_first_counts() -> None:
    headers = sent((b"OpenAI-Beta", b"a"), (b"openai-beta", b"b"), (b"User-Agent", b"one"), (b"User-Agent", b"two"))
    assert headers[b"openai-beta"] == b"a, b"
    assert headers[b"user-agent"] == b"one"


def test_an_sdk_cannot_send_fields_without_end() -> None:
    many = [(b"x-stainless-%d" % index, b"1") for index in range(MAX_STAINLESS + 10)]
    assert sum(name.startswith(b"x-stainless-") for name in sent(*many)) == MAX_STAINLESS


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"x",
        b"ff" + PARENT[2:],
        PARENT.upper(),
        b"00-" + b"0" * 32 + PARENT[35:],
        PARENT[:36] + b"0" * 16 + b"-01",
        PARENT + b"x",
    ],
)
def test_a_trace_without_a_valid_parent_is_not_passed_on(parent: bytes) -> None:
    headers = sent((b"traceparent", parent), (b"tracestate", b"a=1"))
    assert not {b"traceparent", b"tracestate"} & headers.keys()


def test_two_trace_parents_are_none() -> None:
    assert b"traceparent" not in sent((b"traceparent", PARENT), (b"traceparent", PARENT))


@pytest.mark.parametrize(
    "name",
    [
        b"Set-Cookie",
        b"Server",
        b"Date",
        b"Alt-Svc",
        b"Strict-Transport-Security",
        b"CF-Ray",
        b"Access-Control-Allow-Origin",
        b"WWW-Authenticate",
        b"Content-Length",
        b"Content-Encoding",
        b"Transfer-Encoding",
        b"Connection",
        b"x-ratelimit-remaining-tokens",
        b"anthropic-ratelimit-requests-limit",
        b"openai-organization",
        b"Retry-After",
        b"content_type",
    ],
)
def test_what_is_not_listed_never_reaches_the_client(name: bytes) -> None:
    assert told((name, b"1")) == {}


def test_the_client_learns_type_timing_version_and_the_upstreams_own_id() -> None:
    assert told(
        (b"Content-Type", b"text/event-stream; charset=utf-8"),
        (b"OpenAI-Processing-MS", b"12"),
        (b"openai-version", b"2020-10-01"),
        (b"openai-model", b"gpt-4o"),
        (b"X-Request-ID", b"req_1"),
    ) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"openai-processing-ms": b"12",
        b"openai-version": b"2020-10-01",
        b"openai-model": b"gpt-4o",
        b"upstream-request-id": b"req_1",
    }


@pytest.mark.parametrize("name", [b"x-request-id", b"Request-Id", b"apim-request-id"])
def test_each_provider_has_its_name_for_the_id(name: bytes) -> None:
    assert told((name, b"Root=1-abc")) == {b"upstream-request-id": b"Root=1-abc"}
    assert upstream_request_id([(name, b"Root=1-abc")]) == "Root=1-abc"


@pytest.mark.parametrize(
    "value", [b"html", b"text/html<script>", b"text/", b"text/plain; a", b"text/plain, text/html", b"a/b" + b";  " * 300 + b"<"]
)
def test_a_content_type_that_is_none_is_left_out(value: bytes) -> None:
    assert told((b"Content-Type", value)) == {}


@pytest.mark.parametrize("value", [b"application/json", b"text/plain;charset=utf-8", b'multipart/x; boundary="a b"', b"text/html;"])
def test_a_content_type_passes_as_it_is(value: bytes) -> None:
    assert told((b"Content-Type", value)) == {b"content-type": value}


@pytest.mark.parametrize(
    ("after", "milliseconds", "wait"),
    [
        (None, None, None),
        (b"5", None, 5.0),
        (b" 5 ", None, 5.0),
        (b"0", None, 0.0),
        (b"1.5", None, 1.5),
        (b"20", b"250", 0.25),
        (b"20", b"junk", 20.0),
        (None, b"1500.5", 1.5005),
        (b"99999999", None, MAX_RETRY_AFTER),
        (b"-5", None, None),
        (b"nan", None, None),
        (b"inf", None, None),
        (b"1e3", None, None),
        (b"soon", None, None),
        (b"", b"", None),
        ("٣".encode(), None, None),
        (b"Mon, 21 Sep 2026 14:13:30 GMT", None, 10.0),
        (b"Monday, 21-Sep-26 14:13:30 GMT", None, 10.0),
        (b"Mon Sep 21 14:13:30 2026", None, 10.0),
        (b"Mon, 21 Sep 2026 14:13:10 GMT", None, 0.0),
        (b"Mon, 21 Sep 2036 14:13:30 GMT", None, MAX_RETRY_AFTER),
        (b"Mon, 99 Sep 2026 14:13:30 GMT", None, None),
    ],
)
def test_retry_after_in_all_its_forms(after: bytes | None, milliseconds: bytes | None, wait: float | None) -> None:
    assert parse_retry_after(after, milliseconds, NOW) == wait


@given(st.one_of(st.none(), st.binary(max_size=80), st.text(max_size=40).map(str.encode)))
def test_any_retry_after_is_a_bounded_wait_or_none(value: bytes | None) -> None:
    for wait in (parse_retry_after(value, None, NOW), parse_retry_after(None, value, NOW)):
        assert wait is None or 0.0 <= wait <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], None),
        ([(b"Authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bearer  k ")], b"k"),
        ([(b"AUTHORIZATION", b"BEARER k")], b"k"),
        ([(b"X-Api-Key", b"k")], b"k"),
        ([(b"api-key", b" k ")], b"k"),
        ([(b"Authorization", b"Bearer k"), (b"x-api-key", b"k")], b"k"),
        ([(b"Authorization", b"Bearer "), (b"x-api-key", b"k")], b"k"),
        ([(b"Authorization", b"Basic a2s6"), (b"x-api-key", b"k")], b"k"),
        ([(b"Authorization", b"Basic a2s6")], None),
        ([(b"Authorization", b"Bearer")], None),
        ([(b"Authorization", b"k")], None),
        ([(b"Authorization", b"")], None),
        ([(b"X-Api-Key", b"")], None),
        ([(b"x_api_key", b"k")], None),
        ([(b"Authorization", b"Bearer \xff\xfe")], b"\xff\xfe"),
    ],
)
def test_the_credential_is_taken_from_wherever_it_is(headers: list, key: bytes | None) -> None:
    assert credential(headers) == key


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Authorization", b"Bearer a"), (b"X-Api-Key", b"b")],
        [(b"Authorization", b"Bearer a"), (b"Authorization", b"Bearer b")],
        [(b"api-key", b"a"), (b"X-Api-Key", b"A")],
    ],
)
def test_two_different_credentials_are_refused(headers: list) -> None:
    with pytest.raises(ProxyError) as caught:
        credential(headers)
    assert caught.value.status == 401


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"User-Agent", b"x-stainless-os", b"tracestate", b"traceparent", b"OpenAI-Beta"]) | st.binary(), st.binary()
        )
    )
)
def test_nothing_that_passes_can_break_a_line(headers: list) -> None:
    for name, value in [*to_upstream(headers, stream=True), *to_client(headers)]:
        assert not set(name + value) & {0, 10, 13}
        assert name
        assert value
