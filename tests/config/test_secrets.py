"""References and the `.env` file."""

import contextlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxyd.config.secrets import Unresolved, read_env
from tests.config.samples import SECRET, secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${KEY}", SECRET),
        ("Bearer ${KEY}!", f"Bearer {SECRET}!"),
        ("${A}-${A}", "1-1"),
        ("${NOPE:-x}", "x"),
        ("${NOPE:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${A:-x}", "1"),
        ("${file:/k}", "from a file"),
        ("${credential:c}", "from systemd"),
        ("$${KEY}", "${KEY}"),
        ("$ {KEY} $KEY", "$ {KEY} $KEY"),
        ("${NESTED}", "${KEY}"),
    ],
)
def test_a_reference_is_replaced_once(text, expected):
    files = {"/k": "from a file\r\n", "/run/creds/c": "from systemd\n"}
    assert secrets(files, "/run/creds", A="1", EMPTY="", NESTED="${KEY}").expand(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${NOPE}", "the variable NOPE is not set; set it, or write it into the .env beside the file"),
        ("${EMPTY}", "the variable EMPTY is empty"),
        ("${KEYS}", "the variable KEYS is not set; did you mean 'KEY'?"),
        ("${KEY", "a ${ has no }; write $${ for the characters themselves"),
        ("${}", "no such reference; write ${VAR}, ${VAR:-default}, ${file:/path} or ${credential:NAME}"),
        ("${vault:x}", "no such reference; write ${VAR}, ${VAR:-default}, ${file:/path} or ${credential:NAME}"),
        ("${file:}", "${file:} names no file"),
        ("${file:/nope}", "/nope cannot be read: No such file or directory"),
        ("${file:/empty}", "/empty is empty"),
        ("${file:/large}", "/large is longer than 65536 characters"),
        ("${credential:../../etc/shadow}", "'../../etc/shadow' is not the name of a credential"),
        ("${credential:..}", "'..' is not the name of a credential"),
        ("${credential:x}", "the credential x is not there: $CREDENTIALS_DIRECTORY is not set (systemd's LoadCredential= sets it)"),
    ],
)
def test_a_reference_to_nothing_says_why(text, reason):
    with pytest.raises(Unresolved) as caught:
        secrets({"/empty": "\n", "/large": "x" * 65_537}, EMPTY="").expand(text)
    assert caught.value.reasons == [reason]


def test_all_references_of_a_text_are_told():
    with pytest.raises(Unresolved) as caught:
        secrets().expand("${ALPHA} ${BETA}")
    assert len(caught.value.reasons) == 2


@given(st.text())
def test_a_text_without_a_reference_stays_as_it_is(text):
    assume("${" not in text)
    assert secrets().expand(text) == text


@given(st.text("${}:-=KEYfile/ \n", max_size=40))
def test_any_text_expands_or_says_why(text):
    with contextlib.suppress(Unresolved):
        secrets().expand(text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A=1", "1"),
        ("export A=1", "1"),
        ("  A = 1  ", "1"),
        ("A=", ""),
        ("A=a b # c", "a b"),
        ("A=a#b", "a#b"),
        ("A='a # $b' # c", "a # $b"),
        ('A="a\\n\\"b\\\\" # c', 'a\n"b\\'),
        ("A=x=y", "x=y"),
        ("A=# nothing", ""),
    ],
)
def test_a_line_of_an_env_file_is_read(line, expected):
    assert read_env(f"# first\n\n{line}\n", ".env") == ({"A": expected}, [])


@pytest.mark.parametrize("line", ["what", "1A=2", "A B=c", "=x", "A='x", 'A="x', "A='x' y", "A-B=c"])
def test_a_line_that_is_none_is_told_with_its_number(line):
    variables, found = read_env(f"B=1\n{line}\n", ".env")
    assert variables == {"B": "1"}
    assert [str(mistake).split(": ")[0] for mistake in found] == [".env:2:1"]


@given(st.text())
def test_any_env_file_is_read(text):
    read_env(text, ".env")
