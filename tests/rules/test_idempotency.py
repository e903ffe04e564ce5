"""What a second request under the same key gets, and which keys there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import OnBroken
from proxyd.errors import ProxyError
from proxyd.rules.idempotency import ClaimState, Request, Standing, Verdict, fingerprint, judge, kept, key_of

CHAT = "/v1/chat/completions"
FIRST = Request(CHAT, streamed=True, fingerprint=b"1")
OTHERS = {
    "the path was /v1/chat/completions": Request("/v1/completions", streamed=True, fingerprint=b"1"),
    "`stream` was true": Request(CHAT, streamed=False, fingerprint=b"1"),
    "the body differs": Request(CHAT, streamed=True, fingerprint=b"2"),
}
PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


@pytest.mark.parametrize(
    ("state", "on_broken", "verdict"),
    [
        (None, OnBroken.RERUN, Verdict.RUN),
        (ClaimState.FAILED, OnBroken.RERUN, Verdict.RUN),
        (ClaimState.FAILED, OnBroken.CONFLICT, Verdict.RUN),
        (ClaimState.RUNNING, OnBroken.RERUN, Verdict.JOIN),
        (ClaimState.DONE, OnBroken.CONFLICT, Verdict.REPLAY),
        (ClaimState.BROKEN, OnBroken.RERUN, Verdict.RUN),
    ],
)
def test_the_same_request_again(state, on_broken, verdict):
    standing = None if state is None else Standing(FIRST, state, 1)
    assert judge(standing, FIRST, on_broken) is verdict


def test_a_broken_answer_is_a_conflict_where_the_file_says_so():
    with pytest.raises(ProxyError) as refused:
        judge(Standing(FIRST, ClaimState.BROKEN, 1), FIRST, OnBroken.CONFLICT)
    assert (refused.value.code, refused.value.status, refused.value.retry) == ("idempotency_broken", 409, False)


@pytest.mark.parametrize("state", ClaimState)
@pytest.mark.parametrize("difference", OTHERS)
def test_another_request_under_the_key_is_refused_and_told_what_differs(state, difference):
    with pytest.raises(ProxyError, match="another request") as refused:
        judge(Standing(FIRST, state, 1), OTHERS[difference], OnBroken.RERUN)
    assert (refused.value.code, refused.value.status, refused.value.retry) == ("idempotency_key_reused", 409, False)
    assert difference in refused.value.message


def test_only_final_outcomes_are_kept():
    assert [status for status in range(100, 600) if kept(status)] == [*range(200, 300), 400, 404, 413, 422]


@given(PRINTABLE)
def test_a_key_is_the_same_bare_and_quoted(key):
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert key_of([quoted.encode()]) == key
    if not (len(key) >= 2 and key[0] == key[-1] == '"'):
        assert key_of([key.encode()]) == key_of([b" \t" + key.encode() + b" "]) == key


@given(PRINTABLE, PRINTABLE)
def test_two_keys_are_never_taken_for_one(one, other):
    quoted = ['"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in (one, other)]
    assert (key_of([quoted[0].encode()]) == key_of([quoted[1].encode()])) is (one == other)


@pytest.mark.parametrize(
    "values",
    [[b""], [b"  "], [b'""'], [b"x" * 256], [b'"' + b"x" * 256 + b'"'], [b"a\x00b"], [b"a\tb"], [b"\x7f"], [b"caf\xe9"], [b"a", b"a"]],
    ids=["empty", "blank", "quoted nothing", "long", "long and quoted", "NUL", "tab", "DEL", "not ASCII", "twice"],
)
def test_a_bad_key_is_refused(values):
    with pytest.raises(ProxyError) as refused:
        key_of(values)
    assert (refused.value.code, refused.value.status, refused.value.param) == ("invalid_request", 400, "Idempotency-Key")


def test_the_longest_key_and_none():
    assert key_of([b"x" * 255]) == key_of([b'"' + b"x" * 255 + b'"']) == "x" * 255
    assert key_of([]) is None
    assert key_of([b"two words"]) == "two words"


def test_a_fingerprint_is_of_all_bytes():
    assert fingerprint(b"a") != fingerprint(b"b") != fingerprint(b"")
    assert len(fingerprint(b"x" * 1000)) == 32
