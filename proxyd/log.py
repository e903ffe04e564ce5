"""What proxyd tells its operator: one record, one line, no secrets. How lines get out is `line_writer`'s."""

from __future__ import annotations

import enum
import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxyd.line_writer import LineWriter
    from proxyd.model import Ending

MAX_LINE = 16384  # bytes; well under journald's LineMax (48 KiB, journald.conf(5)), where it would cut a line in two
MAX_TEXT = MAX_LINE // 16  # characters of a message that is cut: six bytes each when escaped
MAX_FIELD = 200  # characters of a string of the access line
MAX_FRAMES = 8  # of a traceback, the innermost
BURST, WINDOW = 10, 10.0  # records of one place in the code per seconds, from WARNING up
MAX_PLACES = 256  # in the code, remembered by the limit


class Style(enum.StrEnum):
    """How a line looks."""

    JSON = "json"
    JOURNAL = "journal"
    """JSON after journald's `<n>` priority (sd-daemon(3)), which journald takes off and files as PRIORITY."""
    TEXT = "text"


def style_for(environ: Mapping[str, str], fd: int) -> Style:
    """Text for a terminal, JOURNAL where `fd` is the journal's own stream, else JSON.

    `$JOURNAL_STREAM` is `device:inode` of the stream that systemd connected (systemd.exec(5)); it is inherited by
    children with another stderr too, so it counts only when `fd` is that stream.
    """
    try:
        about = os.fstat(fd)
    except OSError:
        return Style.JSON
    if environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}":
        return Style.JOURNAL
    return Style.TEXT if os.isatty(fd) else Style.JSON


@dataclass(frozen=True, slots=True)
class Log:
    """The log as configured: hand it on for the access line, and `close` it last."""

    writer: LineWriter
    style: Style
    handler: logging.Handler

    def access_line(self, facts: Ending) -> None:
        """One line an exchange. No prompt, no answer, no key; about 5 µs, and it never waits."""
        self.writer.put(access_text(facts) if self.style is Style.TEXT else access_json(facts, journal=self.style is Style.JOURNAL))

    def close(self, timeout: float = 1.0) -> None:
        """Stop logging; what waits is written within `timeout` seconds."""
        logging.getLogger().removeHandler(self.handler)
        logging.captureWarnings(capture=False)
        self.writer.close(timeout)


def configure(style: Style, level: str, writer: LineWriter) -> Log:
    """Send all that is logged to `writer`, replacing what an earlier call set up; `level` is a name of `logging`.

    Raises ValueError for a level that does not exist. Warnings of Python go to the logger `py.warnings`.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())  # before anything is changed: it raises
    for old in [handler for handler in root.handlers if isinstance(handler, _LineHandler)]:
        root.removeHandler(old)
    handler = _LineHandler(writer, style)
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    for talkative in ("aiohttp.access", "asyncio", "aiosqlite"):  # at DEBUG they tell every query and every slow callback
        logging.getLogger(talkative).setLevel(logging.WARNING)
    return Log(writer, style, handler)


# --- the access line


def access_json(facts: Ending, *, journal: bool = False) -> bytes:
    """Write the access line as JSON. Every member is always there; null is unknown, never 0.

    `cost` is for eyes, in whole units of the currency; the ledger has it exactly.
    """
    usage, warn = facts.usage, facts.status >= 500
    document = {
        "ts": datetime.fromtimestamp(facts.at_us / 1e6, UTC),
        "level": "warning" if warn else "info",
        "logger": "proxyd.access",
        "request_id": facts.request_id,
        "caller": _short(facts.caller),
        "endpoint": facts.endpoint,
        "model": redact(_short(facts.model) or "") or None,  # the one free text of a client; somebody will paste a key there
        "upstream": facts.upstream,
        "status": facts.status,
        "state": facts.state,
        "error": facts.error,
        "streamed": facts.streamed,
        "attempts": facts.attempts,
        "tokens": usage.total_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "tokens_source": facts.tokens_source,
        "cost": None if facts.cost_nano is None else facts.cost_nano / 1e9,
        "currency": facts.currency,
        "ttft_ms": _tenths(facts.ttft_ms),
        "duration_ms": _tenths(facts.duration_ms),
    }
    line = _one_line(_dump(document))
    return (b"<4>" if warn else b"<6>") + line if journal else line


def access_text(facts: Ending) -> bytes:
    """Write the access line for a person at a terminal."""
    usage = facts.usage
    parts = [
        str(facts.status),
        facts.state.value,
        _short(facts.caller) or "-",
        f"{redact(_short(facts.model) or '-')} -> {facts.upstream or '-'}",
        f"{_or_dash(usage.prompt_tokens)}+{_or_dash(usage.completion_tokens)} tokens ({facts.tokens_source.value})",
        f"{facts.duration_ms:.0f} ms" + ("" if facts.ttft_ms is None else f", first byte {facts.ttft_ms:.0f} ms"),
    ]
    if facts.cost_nano is not None:
        parts.append(f"{facts.cost_nano / 1e9:.6f} {facts.currency or ''}".rstrip())
    if facts.attempts > 1:
        parts.append(f"{facts.attempts} attempts")
    if facts.error:
        parts.append(facts.error)
    stamp = f"{datetime.fromtimestamp(facts.at_us / 1e6):%H:%M:%S}"  # noqa: DTZ006 - people read their own time
    return _one_line(_utf8(f"{stamp} {facts.endpoint} " + "  ".join([*parts, facts.request_id])))


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_FIELD else text[:MAX_FIELD] + "…"


def _tenths(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 1)


def _or_dash(count: int | None) -> str:
    return "-" if count is None else str(count)


# --- records of logging

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_PRIORITY = {logging.DEBUG: b"<7>", logging.INFO: b"<6>", logging.WARNING: b"<4>", logging.ERROR: b"<3>", logging.CRITICAL: b"<2>"}


class _LineHandler(logging.Handler):
    """Records of logging, as lines: redacted, escaped, bounded, and limited per place in the code."""

    def __init__(self, writer: LineWriter, style: Style) -> None:
        super().__init__()
        self._writer = writer
        self._style = style
        self._places: dict[tuple[str, int, object], _Place] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises, and never writes to stderr by itself, as logging's own `handleError` would."""
        try:
            held = self._held(record)
            if held is not None:
                self._writer.put(_line(record, self._style, held))
        except Exception as error:  # noqa: BLE001 - a bad log call must not break what it tells of
            where = f"{record.pathname}:{record.lineno}"
            self._writer.put(
                _one_line(_dump({"level": "error", "logger": __name__, "msg": f"a record could not be logged: {error!r}", "at": where}))
            )

    def flush(self) -> None:
        """Write what waits; logging calls this at exit."""
        self._writer.flush(1.0)

    def _held(self, record: logging.LogRecord) -> int | None:
        """How many records of the same place were held back before this one; None to hold back this one too.

        An accept loop out of descriptors logs 12 MB a second (cpython#151615); the same line told ten times in ten
        seconds tells as much.
        """
        if record.levelno < logging.WARNING:
            return 0
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        about = getattr(record, "upstream", None)  # that one is in trouble must not hide the next one
        place = self._places.setdefault((record.pathname, record.lineno, about), _Place(record.created))
        return place.take(record.created)


@dataclass(slots=True)
class _Place:
    """A place in the code that logs: what it said in the present window."""

    since: float
    said: int = 0
    held: int = 0

    def take(self, now: float) -> int | None:
        if not 0 <= now - self.since < WINDOW:  # wall time: it may go back
            self.since, self.said = now, 0
        if self.said >= BURST:
            self.held += 1
            return None
        self.said += 1
        held, self.held = self.held, 0
        return held


def _line(record: logging.LogRecord, style: Style, held: int) -> bytes:
    extra = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
    if record.exc_info and record.exc_info[1] is not None:
        extra["exc"] = exception_text(record.exc_info[1])
    if held:
        extra["held_back"] = held
    message = record.getMessage()
    if style is Style.TEXT:
        words = [message, *(f"{key}={value}" for key, value in extra.items())]
        stamp = f"{datetime.fromtimestamp(record.created):%H:%M:%S}"  # noqa: DTZ006 - people read their own time
        line = _utf8(f"{stamp} {record.levelname.lower()} {record.name}: {'  '.join(words)}")
        return _cut(_one_line(redact_bytes(line)))
    document = {"ts": datetime.fromtimestamp(record.created, UTC), "level": record.levelname.lower(), "logger": record.name}
    line = _dump({**extra, **document, "msg": message})
    if len(line) > MAX_LINE:  # cut inside, so that it stays JSON
        line = _dump({**document, "msg": message[:MAX_TEXT] + "…", "exc": str(extra.get("exc", ""))[:MAX_TEXT], "cut": len(line)})
    line = _one_line(redact_bytes(line))
    return _PRIORITY.get(record.levelno // 10 * 10, b"<6>") + line if style is Style.JOURNAL else line


def exception_text(error: BaseException) -> str:
    """Tell an exception on one line: what it says, its innermost frames, at most two causes; no source lines, no values."""
    return " <- ".join(_told(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(3):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _told(error: BaseException) -> str:
    try:
        text = str(error)[:MAX_TEXT]
    except Exception:  # noqa: BLE001 - a broken __str__ of somebody else's
        text = "?"
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{'/'.join(code.co_filename.rsplit('/', 2)[-2:])}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    at = f" [{' > '.join(frames[-MAX_FRAMES:])}]" if frames else ""
    return f"{type(error).__name__}: {text}{at}"


# --- what may stand in a line

_SECRETS = re.compile(
    rb"(?<![A-Za-z0-9])(?:"
    rb"(?P<key>sk-|pxd_)[A-Za-z0-9][A-Za-z0-9_-]{3,}"
    rb"|(?P<other>dev_|hf_|gsk_|xai-|AIza)[A-Za-z0-9_-]{16,}"
    rb"|(?P<scheme>(?i:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"
    rb"|(?P<jwt>eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9._-]+"
    rb"|(?P<name>(?i:x-api-key|api[-_]?key|access_token|client_secret|password)\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"'\\,;&]{4,}"
    rb"|(?P<param>(?<=[?&])(?:key|token|sig)=)[^\s\"'\\&]+"
    rb"|(?P<user>(?<=://)[^\s/:@\"]*:)[^\s/@\"]+(?=@)"
    rb")"
)


def redact(text: str) -> str:
    """`text` without what looks like a credential: the second net, under the rule that no secret is logged at all."""
    raw = _utf8(text)
    clean = redact_bytes(raw)
    return text if clean is raw else clean.decode()


def redact_bytes(line: bytes) -> bytes:
    """As `redact`, for UTF-8 text or JSON; JSON stays JSON."""
    return _SECRETS.sub(_masked, line) if _SECRETS.search(line) else line


def _masked(found: re.Match[bytes]) -> bytes:
    return (found[found.lastgroup] if found.lastgroup else b"") + b"***"


# Beyond JSON's own escapes: DEL and C1 controls (a terminal obeys them), NEL, LS and PS (some readers break lines there),
# and the marks that reorder text, so that a line reads as it was written (CVE-2021-42574).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def _one_line(line: bytes) -> bytes:
    """`line` with everything escaped that could end or falsify it; the escapes are valid inside JSON strings."""
    text = line.decode()
    if text.isprintable():
        return line
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _dump(document: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(document, default=str, option=orjson.OPT_UTC_Z)
    except TypeError:  # lone surrogates (aiohttp's headers have them), integers beyond 64 bits, keys that are no strings
        return orjson.dumps({_sound(key): _sound(value) for key, value in document.items()}, default=str, option=orjson.OPT_UTC_Z)


def _sound(value: object) -> object:
    return value if value is None or isinstance(value, bool | float | datetime) else _utf8(str(value)).decode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _cut(line: bytes) -> bytes:
    return line if len(line) <= MAX_LINE else line[:MAX_LINE].decode(errors="ignore").encode() + "…".encode()
