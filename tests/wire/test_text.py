"""What every JSON body must be, in pieces as whole: UTF-8, and of a bounded depth."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire.text import MAX_DEPTH, Checker, Nesting, check


def passes(data: bytes, size: int | None = None) -> bool:
    """Whether a body passes, in one go or in pieces of `size`."""
    try:
        if size is None:
            check(data)
            return True
        checker = Checker()
        for start in range(0, len(data), size):
            checker.feed(data[start : start + size])
        checker.finish()
    except ProxyError as error:
        return (error.status, error.code) != (400, "invalid_json")
    return True


@given(st.binary(max_size=60), st.integers(min_value=1, max_value=7))
def test_utf8_in_pieces_is_judged_as_the_whole(data: bytes, size: int) -> None:
    try:
        data.decode("utf-8")
        valid = True
    except UnicodeDecodeError:
        valid = False
    assert passes(data) is passes(data, size) is valid


def test_a_body_that_ends_inside_a_character_is_refused_at_its_end() -> None:
    checker = Checker()
    checker.feed("é".encode()[:1])
    with pytest.raises(ProxyError):
        checker.finish()


@pytest.mark.parametrize(("depth", "fine"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (100_000, False)])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
@pytest.mark.parametrize("size", [None, 1, 7, 65536])
def test_the_bound_of_depth_is_a_number(depth: int, fine: object, pair: str, size: int | None) -> None:
    opening, closing = pair[:-1], pair[-1]
    assert passes((opening * depth + "1" + closing * depth).encode(), size) is fine


@pytest.mark.parametrize("size", [None, 1, 2, 3, 64])
def test_brackets_in_strings_and_brackets_side_by_side_are_no_depth(size: int | None) -> None:
    text = '\\"[[[{{{' * 100 + "\\" * 7
    body = json.dumps({"a": [[text]] * 300, text: "]]]]" * 500, "b": [{"c": []}] * 400}).encode()
    assert passes(body, size)


VALUES = st.recursive(
    st.text(alphabet='a"\\[]{}', max_size=6) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[{', max_size=3), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    """How deep a document is, by walking it."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.integers(min_value=1, max_value=5))
def test_depth_is_followed_exactly_however_the_body_is_cut(value: object, size: int) -> None:
    body = json.dumps(value).encode()
    levels = MAX_DEPTH - depth_of(value)
    for more, fine in ((levels, True), (levels + 1, depth_of(value) == 0)):
        padded = b"[" * more + body + b"]" * more
        follower = Nesting()
        try:
            for start in range(0, len(padded), size):
                follower.feed(padded[start : start + size])
            followed = True
        except ProxyError:
            followed = False
        assert followed is (fine and more <= MAX_DEPTH)
