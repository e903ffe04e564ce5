"""`proxyd chat MODEL`: talk to a model through a running proxyd, over protobuf, and see what crossed the wire."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

from proxyd.cli import CONFIG_PLACES, Failed, WrongUsage

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from proxyd.client import Client
    from proxyd.client.turn import Answer

HELP = "Talk to a model through a running proxyd: a conversation that the server remembers, one sentence a turn, over protobuf."
EXAMPLES = """
proxyd chat llama3.2
proxyd chat llama3.2 "How long do I boil water at 3000 m?" --bytes
PROXYD_KEY=pxd_… proxyd chat fast --url https://llm.example.com --delay 500
"""
EVENT_BYTES = 339
"""What OpenAI's server-sent events take for a token: 70,807 bytes for an answer of 209 (protos/README.md)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's own options."""
    parser.add_argument("model", metavar="MODEL", help="a name of the route table: see `proxyd models`")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="ask this alone; without it, each line of standard input is a turn")
    parser.add_argument("--url", help="where proxyd is; else $PROXYD_URL, else the `listen` of the YAML, else http://127.0.0.1:8080")
    parser.add_argument("--key", help="an API key; better in $PROXYD_KEY, where no list of processes shows it")
    parser.add_argument("--system", metavar="TEXT", default="", help="what the model is told ahead of the conversation")
    parser.add_argument(
        "--delay", metavar="MS", type=milliseconds, help="how long text may be held back to share packets (default: the server's)"
    )
    parser.add_argument("--bytes", action="store_true", help="tell after each answer what crossed the wire")


def milliseconds(text: str) -> int:
    """Read a delay that a message can carry. Raises ValueError."""
    number = int(text)
    if not 0 <= number <= 10_000:
        raise ValueError(text)
    return number


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from proxyd.client import Client, Failure, Settings  # noqa: PLC0415 - `proxyd --help` loads no protobuf
    from proxyd.daemon.run import environment  # noqa: PLC0415

    environ = environment()
    url = _url(args, environ)
    waiting = _Waiting()
    try:
        settings = Settings(url, args.key or environ.get("PROXYD_KEY", ""), args.model, max_delay_ms=args.delay)
        with Client(settings, sleep=waiting) as client:
            _talk(client, args, waiting)
    except Failure as failure:
        raise Failed(f"{url}: {failure}") from None
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    return 0


class _Waiting:
    """Sleeps until the next attempt, and says why there is one."""

    answer: Answer[Iterator[str]] | None = None

    def __call__(self, seconds: float) -> None:
        trouble = self.answer.turn.trouble if self.answer is not None else None
        sys.stderr.write(f"[{trouble or 'Nothing comes.'} The next attempt is in {seconds:g} s; Ctrl-C gives up.]\n")
        sys.stderr.flush()
        time.sleep(seconds)


def _talk(client: Client, args: argparse.Namespace, waiting: _Waiting) -> None:
    chat = client.chat(_utf8(args.system))
    for question in [args.prompt] if args.prompt is not None else _lines():
        waiting.answer = answer = chat.send(_utf8(question))
        for text in answer:
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        if args.bytes:
            sys.stderr.write(_told(answer) + "\n")


def _lines() -> Iterator[str]:
    """The turns of a conversation: lines that are not blank."""
    prompted = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as arguments come, so that one rule holds for both
    while True:
        if prompted:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _utf8(text: str) -> str:
    """What was typed, read as UTF-8 whatever the locale is. Raises WrongUsage."""
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeError:
        raise WrongUsage("what is asked must be UTF-8 text") from None


def _told(answer: Answer[Iterator[str]]) -> str:
    """What crossed the wire, without HTTP's own heads, and what it would have been as events."""
    tokens = answer.usage.completion_tokens if answer.usage is not None else 0
    events = f"; {tokens} tokens as OpenAI's events: about {tokens * EVENT_BYTES:,} bytes" if tokens else ""
    return f"[{answer.sent:,} bytes up, {answer.came:,} down in {answer.frames} frames{events}]"


def _url(args: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Where proxyd is. Raises Failed, ConfigError for a YAML that was asked for and cannot be read."""
    if named := args.url or environ.get("PROXYD_URL"):
        return str(named)
    from pathlib import Path  # noqa: PLC0415

    from proxyd.cli import config_path  # noqa: PLC0415
    from proxyd.config.load import look_into  # noqa: PLC0415

    asked = args.config or environ.get("PROXYD_CONFIG") or any(Path(place).is_file() for place in CONFIG_PLACES)
    listen = look_into(config_path(args, environ), environ).listen if asked else "127.0.0.1:8080"
    if listen.startswith("unix:"):
        raise Failed(f"this proxyd listens on {listen}, which this client does not speak: name a front with --url")
    host, _, port = listen.rpartition(":")
    return f"http://{host if host not in {'', '0.0.0.0', '[::]'} else '127.0.0.1'}:{port}"
