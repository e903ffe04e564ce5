"""Keys: which bytes are whose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import Key
from proxyd.model import Caller
from proxyd.rules.auth import Keys, generate_dev_key, generate_key, well_formed


def keys(**named: str) -> Keys:
    return Keys([Key(name=name, key=key) for name, key in named.items()])


def test_a_known_key_is_its_caller() -> None:
    known = Keys([Key(name="laptop", key="s3cret", models=("gpt-*",)), Key(name="phone", key="other")])
    assert known.find(b"s3cret") == Caller("laptop", ("gpt-*",))
    assert known.find(b"other") == Caller("phone")
    assert len(known) == 2


@pytest.mark.parametrize("presented", [None, b"", b"s3cre", b"s3cret ", b"S3CRET", b"\xff\xfe", b"\x00", b"a" * 100_000])
def test_anything_else_is_nobody(presented: bytes | None) -> None:
    assert keys(laptop="s3cret").find(presented) is None


def test_without_keys_nobody_is_known() -> None:
    assert keys().find(b"") is None
    assert keys().find(b"x") is None


def test_keys_of_any_script_and_of_bytes_from_the_environment_match_as_bytes() -> None:
    assert keys(a="schlüssel").find("schlüssel".encode()).name == "a"
    assert keys(a="schlüssel").find("schlüssel".encode("latin-1")) is None
    assert keys(a=b"k\xff".decode("utf-8", "surrogateescape")).find(b"k\xff").name == "a"


def test_an_empty_key_is_refused_as_it_would_let_everybody_in() -> None:
    with pytest.raises(ValueError, match="empty"):
        keys(a="")


def test_one_secret_cannot_be_two_callers() -> None:
    with pytest.raises(ValueError, match="same secret"):
        keys(a="x", b="x")


def test_a_caller_may_have_two_keys_while_one_replaces_the_other() -> None:
    known = Keys([Key(name="a", key="old"), Key(name="a", key="new")])
    assert known.find(b"old") == known.find(b"new") == Caller("a")


@given(st.binary(min_size=24, max_size=40))
def test_a_made_key_has_its_form_and_any_typo_shows(data: bytes) -> None:
    key = generate_dev_key(data)
    assert key.startswith("dev_")
    assert len(key) == 4 + 22 + 6
    assert key.isascii()
    assert key[4:].isalnum()
    assert well_formed(key, "dev_")
    assert not well_formed(key, "pxd_")
    wrong = key[:10] + ("a" if key[10] != "a" else "b") + key[11:]
    assert not well_formed(wrong, "dev_")
    assert not well_formed(key[:-1], "dev_")


def test_keys_differ_where_their_randomness_does() -> None:
    assert len({generate_key("pxd_", bytes([index]) * 32) for index in range(256)}) == 256


def test_too_little_randomness_is_refused() -> None:
    with pytest.raises(ValueError, match="24"):
        generate_dev_key(b"short")
