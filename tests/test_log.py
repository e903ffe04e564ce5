"""The log keeps its lines whole, its secrets in, and its loop free."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd import log
from proxyd.line_writer import LineWriter
from proxyd.log import Log, Style, access_json, access_text, configure, exception_text, redact, redact_bytes, style_for
from proxyd.model import Ending, Source, State, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

ENDING = Ending(
    at_us=1_790_000_000_123_456,
    request_id="req_0123456789abcdef",
    endpoint="/v1/chat/completions",
    status=200,
    state=State.DONE,
    duration_ms=1234.56,
    caller="laptop",
    model="gpt-4o-mini",
    route="fast",
    upstream="openai",
    streamed=True,
    attempts=2,
    usage=Usage(prompt_tokens=12, completion_tokens=34, total_tokens=46),
    tokens_source=Source.UPSTREAM,
    cost_nano=123_456,
    currency="USD",
    ttft_ms=210.14,
)

PXD = "pxd_" + "0aZ9" * 7


class Tap:
    """The reading end of a pipe that a Log writes into."""

    def __init__(self, style: Style, level: str = "info") -> None:
        self.read_end, self.write_end = os.pipe()
        self.log: Log = configure(style, level, LineWriter(self.write_end))

    def lines(self) -> list[bytes]:
        """All that was logged; ends the log."""
        self.log.close(5)
        os.close(self.write_end)
        with os.fdopen(self.read_end, "rb") as reader:
            text = reader.read()
        assert not text or text.endswith(b"\n")
        return text.split(b"\n")[:-1]


@pytest.fixture
def tap() -> Iterator[Callable[..., Tap]]:
    level = logging.getLogger().level
    yield Tap
    logging.getLogger().setLevel(level)


class TestStyle:
    def test_a_terminal_gets_text(self) -> None:
        master, slave = pty.openpty()
        try:
            assert style_for({}, slave) is Style.TEXT
        finally:
            os.close(master)
            os.close(slave)

    def test_the_journal_is_known_by_device_and_inode_of_the_stream_itself(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            about = os.fstat(ours.fileno())
            environ = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
            assert style_for(environ, ours.fileno()) is Style.JOURNAL
            assert style_for(environ, theirs.fileno()) is Style.JSON, "inherited variable, another stream"

    def test_anything_else_gets_json_even_a_closed_descriptor(self) -> None:
        read_end, write_end = os.pipe()
        assert style_for({}, write_end) is Style.JSON
        os.close(read_end)
        os.close(write_end)
        assert style_for({}, write_end) is Style.JSON


class TestAccessLine:
    def test_it_has_every_fact_of_the_contract(self) -> None:
        facts = json.loads(access_json(ENDING))
        assert facts == {
            "ts": "2026-09-21T14:13:20.123456Z",
            "level": "info",
            "logger": "proxyd.access",
            "request_id": "req_0123456789abcdef",
            "caller": "laptop",
            "endpoint": "/v1/chat/completions",
            "model": "gpt-4o-mini",
            "upstream": "openai",
            "status": 200,
            "state": "done",
            "error": None,
            "streamed": True,
            "attempts": 2,
            "tokens": 46,
            "prompt_tokens": 12,
            "completion_tokens": 34,
            "tokens_source": "upstream",
            "cost": 0.000123456,
            "currency": "USD",
            "ttft_ms": 210.1,
            "duration_ms": 1234.6,
        }

    def test_unknown_is_null_and_never_0(self) -> None:
        facts = json.loads(access_json(Ending(at_us=0, request_id="r", endpoint="/", status=401, state=State.FAILED, duration_ms=1.0)))
        assert [facts[key] for key in ("caller", "model", "upstream", "tokens", "prompt_tokens", "cost", "ttft_ms")] == [None] * 7
        assert facts["tokens_source"] == "none"

    def test_the_journal_sees_a_failing_server_as_a_warning(self) -> None:
        assert access_json(ENDING, journal=True).startswith(b"<6>{")
        assert access_json(replace(ENDING, status=502), journal=True).startswith(b"<4>{")

    def test_text_is_for_people(self) -> None:
        line = access_text(replace(ENDING, error="upstream_cut")).decode()
        for part in ("200", "laptop", "gpt-4o-mini -> openai", "12+34 tokens (upstream)", "0.000123 USD", "2 attempts", "upstream_cut"):
            assert part in line

    def test_a_key_in_the_place_of_the_model_is_masked(self) -> None:
        for line in (access_json(replace(ENDING, model=PXD)), access_text(replace(ENDING, model=PXD))):
            assert PXD.encode() not in line
            assert b"pxd_***" in line

    @given(st.text(st.characters()), st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
    def test_whatever_a_client_calls_its_model_the_line_stays_one_line_of_valid_json(self, model: str, caller: str) -> None:
        facts = replace(ENDING, model=model, caller=caller)
        line = access_json(facts)
        json.loads(line)
        for text in (line.decode(), access_text(facts).decode()):
            assert len(text.splitlines()) == 1
            assert not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029\u202e\u2066" for char in text)

    def test_a_long_model_name_is_cut(self) -> None:
        assert len(access_json(replace(ENDING, model="m" * 100_000, caller="c" * 100_000))) < 1200


class TestRedaction:
    @pytest.mark.parametrize(
        "secret",
        [
            "sk-abcd1234",
            "sk-proj-AbC_dEf-123456789",
            "sk-ant-api03-xyz_12345",
            PXD,
            "dev_0123456789abcdefXYZ",
            "hf_abcdefghijklmnopqrst",
            "gsk_abcdefghijklmnopqrst",
            "AIzaSyA1234567890abcdefgh",
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        ],
    )
    def test_keys_are_masked_wherever_they_stand(self, secret: str) -> None:
        for text in (secret, f"key={secret}", f'{{"a": "{secret}"}}', f"https://x/?key={secret}&b=1", f"({secret})"):
            assert secret not in redact(text)
            assert "***" in redact(text)

    @pytest.mark.parametrize(
        ("text", "masked"),
        [
            ("Authorization: Bearer abc.DEF-123/+=", "Authorization: Bearer ***"),
            ("authorization: basic dXNlcjpwYXNz", "authorization: basic ***"),
            ("api-key: 0123456789abcdef0123456789abcdef", "api-key: ***"),
            ('{"x-api-key": "0123456789abcdef"}', '{"x-api-key": "***"}'),
            ("postgresql://proxyd:hunter2@db/proxyd", "postgresql://proxyd:***@db/proxyd"),
            ("GET /v1?key=abc&x=1", "GET /v1?key=***&x=1"),
        ],
    )
    def test_only_the_secret_goes(self, text: str, masked: str) -> None:
        assert redact(text) == masked

    @pytest.mark.parametrize("text", ["task-list on disk-cache", "dev_mode is on", "the bearer of news", "http://[::1]:8080/a@b"])
    def test_plain_words_stay(self, text: str) -> None:
        assert redact(text) == text

    @given(st.dictionaries(st.text(max_size=8), st.text() | st.just("Bearer abcdefgh") | st.just(f'say "{PXD}"'), max_size=4))
    def test_json_stays_json(self, document: dict[str, str]) -> None:
        clean = redact_bytes(json.dumps(document).encode())
        assert json.loads(clean).keys() == document.keys()
        assert PXD.encode() not in clean


class TestRecords:
    def test_a_record_is_one_line_of_json_with_its_extras(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.JSON)
        logging.getLogger("proxyd.test").info("two\nlines of %s", "text\u2028", extra={"upstream": "ollama"})
        (line,) = seen.lines()
        facts = json.loads(line)
        assert facts.pop("ts").endswith("Z")
        assert facts == {"level": "info", "logger": "proxyd.test", "msg": "two\nlines of text\u2028", "upstream": "ollama"}
        assert len(line.decode().splitlines()) == 1

    def test_an_extra_cannot_pose_as_the_record(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.JSON)
        logging.getLogger("proxyd.test").info("true", extra={"level": "critical", "logger": "x", "ts": 0})
        facts = json.loads(seen.lines()[0])
        assert (facts["level"], facts["logger"], facts["msg"]) == ("info", "proxyd.test", "true")

    def test_priorities_are_the_journals(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.JOURNAL, "debug")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(logging.getLogger("proxyd.test"), level)("x")
        assert [line[:3] for line in seen.lines()] == [b"<7>", b"<6>", b"<4>", b"<3>", b"<2>"]

    def test_secrets_in_messages_arguments_extras_and_exceptions_are_masked(self, tap: Callable[..., Tap]) -> None:
        for style in Style:
            seen = tap(style)
            try:
                raise ValueError(f"cannot use {PXD}")
            except ValueError:
                logging.getLogger("proxyd.test").exception("%s", PXD, extra={"url": f"https://x/?key={PXD}"})
            (line,) = seen.lines()
            assert PXD.encode() not in line
            assert line.count(b"***") == 3

    def test_control_characters_are_escaped_in_text_too(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.TEXT)
        logging.getLogger("proxyd.test").info("a\x1b[31mb\r\nc\x85d\u202ee\udcff")
        (line,) = seen.lines()
        assert line.endswith(b"a\\u001b[31mb\\u000d\\u000ac\\u0085d\\u202ee\\udcff")

    def test_a_huge_message_is_cut_and_stays_json(self, tap: Callable[..., Tap]) -> None:
        for char in ("x", "\x01", "\U0001f600", "\u2028"):
            seen = tap(Style.JSON)
            logging.getLogger("proxyd.test").info(char * 1_000_000, extra={"more": char * 1_000_000})
            (line,) = seen.lines()
            assert len(line) <= log.MAX_LINE
            assert json.loads(line)["cut"] > 1_000_000

    def test_a_huge_message_is_cut_in_text_too(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.TEXT)
        logging.getLogger("proxyd.test").info("\u20ac" * 1_000_000)
        (line,) = seen.lines()
        assert line.decode().endswith("\u20ac…")
        assert len(line) <= log.MAX_LINE + 3

    def test_a_traceback_is_one_short_line_with_its_cause(self) -> None:
        def deep(n: int) -> None:
            if n:
                deep(n - 1)
            raise KeyError("k")

        try:
            try:
                deep(50)
            except KeyError as inner:
                raise RuntimeError("outer") from inner
        except RuntimeError as error:
            text = exception_text(error)
        assert text.startswith("RuntimeError: outer [tests/test_log.py:")
        assert " <- KeyError: 'k' [" in text
        assert text.count(" deep") == log.MAX_FRAMES

    def test_a_line_told_again_and_again_is_held_back_and_counted(self, tap: Callable[..., Tap], monkeypatch: pytest.MonkeyPatch) -> None:
        seen = tap(Style.JSON)
        logger = logging.getLogger("proxyd.test")

        def tell(at: float) -> None:
            record = logger.makeRecord(logger.name, logging.ERROR, "accept.py", 7, "no descriptors", (), None)
            record.created = at
            logger.handle(record)

        for _ in range(1000):
            tell(1000.0)
        logger.error("elsewhere")
        for _ in range(log.BURST + 1):
            tell(1000.0 + log.WINDOW)
        tell(5.0)  # the wall clock went back
        lines = [json.loads(line) for line in seen.lines()]
        held = [line.get("held_back") for line in lines]
        assert held == [None] * log.BURST + [None, 1000 - log.BURST] + [None] * (log.BURST - 1) + [1]

    def test_a_bad_log_call_is_told_and_breaks_nothing(self, tap: Callable[..., Tap], capfd: pytest.CaptureFixture[str]) -> None:
        seen = tap(Style.JSON)
        record = logging.makeLogRecord({"msg": "%d", "args": ("no number",), "pathname": __file__, "levelno": logging.INFO})
        seen.log.handler.handle(record)  # not by a logger: pytest's own handler raises
        facts = json.loads(seen.lines()[0])
        assert "could not be logged" in facts["msg"]
        assert "test_log.py" in facts["at"]
        assert capfd.readouterr().err == ""

    def test_numbers_beyond_64_bits_and_strange_values_are_told(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.JSON)
        logging.getLogger("proxyd.test").info("x", extra={"big": 1 << 70, "odd": {1}, "bad": "\udc80"})
        facts = json.loads(seen.lines()[0])
        assert (facts["big"], facts["odd"], facts["bad"]) == (str(1 << 70), "{1}", "\\udc80")

    def test_below_the_level_nothing_is_logged_and_an_unknown_level_is_refused(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.JSON, "warning")
        logging.getLogger("proxyd.test").info("x")
        assert seen.lines() == []
        with pytest.raises(ValueError, match="LOUD"):
            configure(Style.JSON, "loud", seen.log.writer)

    def test_configured_again_a_record_is_still_told_once(self, tap: Callable[..., Tap]) -> None:
        seen = tap(Style.JSON)
        configure(Style.TEXT, "info", seen.log.writer)
        again = configure(Style.JSON, "info", seen.log.writer)
        logging.getLogger("proxyd.test").info("once")
        again.close(5)
        assert len(seen.lines()) == 1


class TestWriter:
    def test_a_blocked_reader_costs_lines_not_time_and_the_loss_is_told(self) -> None:
        read_end, write_end = os.pipe()
        writer = LineWriter(write_end, most=100)
        configured = configure(Style.JSON, "info", writer)
        for _ in range(20_000):  # nobody reads: the pipe holds 64 KiB; were `put` to wait, this would never end
            configured.access_line(ENDING)
        assert writer.dropped >= 20_000 - 100 - 2 * 65536 // len(access_json(ENDING)) - 100
        facts: list[dict[str, Any]] = []
        told = 0
        with os.fdopen(read_end, "rb") as reader:
            while told < writer.dropped or len(facts) + writer.dropped < 20_000:  # ends only if every lost line is told
                facts.append(json.loads(reader.readline()))
                if found := re.match(r"(\d+) log lines were dropped", facts[-1].get("msg", "")):
                    facts.pop()
                    told += int(found[1])
            configured.close(5)
            os.close(write_end)
            assert reader.read() == b""
        assert len(facts) + told == 20_000

    def test_what_was_logged_last_is_written_before_the_process_ends(self) -> None:
        program = (
            "import logging; from proxyd.line_writer import *; from proxyd.log import *\n"
            "configure(Style.JSON, 'info', LineWriter(2)); logging.getLogger('x').info('goodbye')"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
        assert json.loads(done.stderr)["msg"] == "goodbye"
