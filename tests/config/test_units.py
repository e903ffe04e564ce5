"""Durations, sizes, and the words that YAML readers disagree on."""

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("5m", 300.0), ("2h", 7200.0), ("1d", 86400.0), ("7", 7.0), ("1.5", 1.5), ("0", 0.0)],
)
def test_a_duration_is_read_in_seconds(text, seconds):
    assert units.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1S", "1w", "1e3", ".5s", "1.s", "inf", "3651d", "9" * 30, "1s\n", "٣s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"^is "):
        units.duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("32MiB", 2**25), ("4MB", 4_000_000), ("100KiB", 102_400), ("5", 5), ("1.5KiB", 1536), ("1GiB", 2**30), ("2kB", 2000), ("0", 0)],
)
def test_a_size_is_read_in_bytes(text, count):
    assert units.size(text) == count


@pytest.mark.parametrize(("text", "amount"), [("0.075", 0.075), ("15", 15.0), ("0", 0.0), ("0.000000150", 1.5e-07)])
def test_an_amount_is_read_in_plain_decimal_and_written_so(text, amount):
    assert units.money(text) == amount
    assert units.money(units.write_money(amount)) == amount


@pytest.mark.parametrize("text", ["", "$1", "1 USD", "-1", "1e-3", ".5", "1.", "1,5", "0.1234567890123456", "nan", "٣"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match=r"^is "):
        units.money(text)


@pytest.mark.parametrize(("text", "number"), [("1M", 10**6), ("200k", 200_000), ("7", 7), ("0", 0), ("1500", 1500)])
def test_a_number_of_things_is_read_and_written(text, number):
    assert units.count(text) == number
    assert units.count(units.write_count(number)) == number


@pytest.mark.parametrize("text", ["", "M", "1.5M", "1m", "-1", "1 k", "9" * 13, "٣"])
def test_what_is_no_number_of_things_is_refused(text):
    with pytest.raises(ValueError, match=r"^is "):
        units.count(text)


@pytest.mark.parametrize("text", ["", "MiB", "1M", "1mb", "-1", "1.0001KiB", "1 MB", "9999999GiB", "9" * 30, "٣MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"^is "):
        units.size(text)


@given(st.integers(0, 31_536_000_000).map(lambda ms: ms / 1000))
def test_a_duration_that_is_written_reads_the_same(seconds):
    assert math.isclose(units.duration(units.write_duration(seconds)), seconds, abs_tol=1e-6)


@given(st.integers(0, 2**40))
def test_a_size_that_is_written_reads_the_same(count):
    assert units.size(units.write_size(count)) == count


def test_values_are_written_as_people_do():
    assert [units.write_duration(each) for each in (5.0, 300.0, 600.0, 7200.0, 86400.0, 0.5, 90.0, None)] == [
        "5s",
        "300s",
        "10m",
        "2h",
        "1d",
        "500ms",
        "90s",
        "none",
    ]
    assert [units.write_size(each) for each in (32 * 2**20, 4_000_000, 1000, 7)] == ["32MiB", "4MB", "1KB", "7"]


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "No",
        "ON",
        "off",
        "true",
        "False",
        "",
        "~",
        "null",
        "1",
        "1.5",
        "-3",
        "+1",
        "1e3",
        "010",
        "0x1F",
        "0b1",
        "0o17",
        "12:30",
        "1:2:3",
        "1_000",
        ".5",
        ".0_",
        "1_0.5e+3",
        "5.",
        ".inf",
        "-.Inf",
        ".nan",
    ],
)
def test_a_word_that_some_reader_takes_for_something_else_is_a_trap(text):
    assert units.trap(text)


@pytest.mark.parametrize(
    "text", ["llama3.2", "gpt-4o", "2024-10-21", "y", "none", "a:b", "1.2.3", "7b", "127.0.0.1:80", "-", "e3", "deepseek-r1:8b"]
)
def test_what_is_text_to_all_is_no_trap(text):
    assert units.trap(text) is None


@given(st.text("0123456789.eE+-_:xob~nulytrfasoINF", max_size=8))
def test_plain_text_that_is_no_trap_is_text_to_pyyaml_too(text):
    """PyYAML speaks 1.1: whatever it takes for something else than text (but for dates) must be a trap."""
    try:
        read = yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, ValueError):
        return
    if isinstance(read, list) and len(read) == 1 and isinstance(read[0], bool | int | float | None):
        assert units.trap(text) is not None


@given(st.text("0123456789.eE+-_:xob~nulytrfas", max_size=10))
def test_a_plain_value_is_what_json_and_yaml_say_or_refused(text):
    """What is taken for something else than text means the same in JSON; nothing else may come out."""
    try:
        value = units.plain(text)
    except ValueError:
        return
    if isinstance(value, str):
        assert value == text
        assert units.trap(text) is None
    elif text == "~":
        assert value is None
    else:
        assert json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("null", None), ("1", 1), ("-2", -2), ("0.5", 0.5), ("1e3", 1000.0), ("text", "text"), ("2024-10-21", "2024-10-21")],
)
def test_a_plain_value_has_its_type(text, value):
    read = units.plain(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    ["yes", "010", "1_000", "12:30", "0x1F", ".inf", "1e999", "-1e999", "9" * 5000, "+1", ".5", "5.", "1.e3", "0.E0", "True", "NULL", ""],
)
def test_an_ambiguous_plain_value_is_refused(text):
    with pytest.raises(ValueError, match=r"^is "):
        units.plain(text)


def test_a_share_is_written_in_percent():
    assert [units.share(text) for text in ("80%", "0%", "100%", "12.5%")] == [0.8, 0.0, 1.0, 0.125]
    assert units.write_share(0.8) == "80%"
    for text in ("80", "0.8", "101%", "-1%", "%"):
        with pytest.raises(ValueError, match="percent"):
            units.share(text)


def test_a_moment_is_a_day_or_a_time_with_its_zone():
    day = 1_801_353_600_000_000
    assert units.moment("2027-01-31") == day
    assert units.moment("2027-01-31T01:00:00+01:00") == day
    assert units.moment("2027-01-31T00:00:00Z") == day
    with pytest.raises(ValueError, match="time zone"):
        units.moment("2027-01-31T00:00:00")
    with pytest.raises(ValueError, match="not a moment"):
        units.moment("soon")
