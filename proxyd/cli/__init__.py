"""The commands: one table, one file a command, imported when it is used.

A command's file has HELP (what it does), EXAMPLES (lines to copy), `arguments(parser)` and `run(args) -> int`. It raises
Failed, ConfigError or OSError for what went wrong; the frame says it on one line of standard error and exits 1, or 2 for WrongUsage.

Beside them:

ops               how commands talk to the running daemon
unit              what systemd's unit says of both
place             where the database is, and who writes it
output            tables, JSON, CSV, colours
streams           standard input, output and error, as the process was given them
finding           what the doctor finds
doctor_machine    where it looks: the machine,
doctor_service    proxyd itself,
doctor_access     how clients get in: certificate, issuers,
doctor_upstreams  the upstreams
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import proxyd
from proxyd.cli import streams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

COMMANDS: dict[str, str] = {
    "serve": "run the daemon",
    "demo": "run it at once: no file, no key, no network",
    "top": "a live view: running streams, tokens a second, upstreams",
    "doctor": "check, then the world: upstreams, database, ports, clock, unit",
    "check": "validate the YAML: every mistake at once",
    "keys": "API keys: make, list, rotate, revoke",
    "health": "whether the running daemon is alive, for containers and scripts",
    "reload": "apply the edited YAML to the running daemon",
    "usage": "what was used, by model, caller, upstream or day",
    "chat": "talk to a model, over protobuf; shows what crossed the wire",
    "models": "the route table as resolved",
    "db": "the database: back it up, check it, prune it, vacuum it",
    "schema": "print the JSON Schema of the YAML, for editors",
    "openapi": "print the OpenAPI document of the endpoints",
}
"""What `proxyd --help` lists. The command `x` is the module `proxyd.cli.x`."""

CONFIG_PLACES = ("config.yaml", "/etc/proxyd/config.yaml")
"""Where the YAML is looked for without `-c` and $PROXYD_CONFIG, in order."""

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class Failed(Exception):  # noqa: N818 - it is the outcome of a command
    """A command could not do its work; the message is one line for a person, without a final stop."""


class WrongUsage(Failed):
    """What was asked for cannot be meant: a value that an option does not take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed (said on stderr), 2 wrong usage. Never a traceback.

    `argv` is without the program's name; None takes it from the process. PROXYD_DEBUG=1 lets an unexpected exception
    through, for whoever hunts a bug.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    streams.ready()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except SystemExit as done:  # argparse: 0 after --help and --version, 2 after wrong usage
        code = done.code if isinstance(done.code, int) else WRONG_USAGE
    except BrokenPipeError:  # `proxyd usage | head`: the reader had enough
        code = FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if os.environ.get("PROXYD_DEBUG"):
            raise
        _say(_one_line(error))
        code = WRONG_USAGE if isinstance(error, WrongUsage) else FAILED
    unsaid = streams.flush()
    if unsaid is not None and code == DONE:
        _say(f"standard output: {unsaid}")
        code = FAILED
    return code


def config_path(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Find the YAML: `-c`, else $PROXYD_CONFIG, else the first of CONFIG_PLACES that is there.

    Raises Failed, naming every place that was looked at. A path that was asked for by name is never replaced by another.
    """
    named: str | None = getattr(args, "config", None)
    if named == "":  # -c "$CONF" of a variable that is not set
        raise WrongUsage("-c names no file: what stands behind it is empty")
    if named is not None:
        source, path = "-c", Path(named)
    elif environ.get("PROXYD_CONFIG"):
        source, path = "$PROXYD_CONFIG", Path(environ["PROXYD_CONFIG"])
    else:
        for place in CONFIG_PLACES:
            if Path(place).is_file():
                return Path(place)
        places = ", ".join(["-c", "$PROXYD_CONFIG", *(place if place.startswith("/") else f"./{place}" for place in CONFIG_PLACES)])
        raise Failed(f"no configuration found; looked at {places}")
    if not path.exists():
        raise Failed(f"no such file: {path} (from {source})")
    if path.is_dir():
        raise Failed(f"{path} is a directory, not a file (from {source})")
    return path


def command_of(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """The module of one of COMMANDS, and the parser of its arguments."""
    command = importlib.import_module(f"{__name__}.{name}")
    parser = _Parser(prog=f"proxyd {name}", description=command.HELP, epilog=_examples(command.EXAMPLES), formatter_class=_Formatter)
    parser.add_argument("-c", "--config", metavar="FILE", help="the YAML; else $PROXYD_CONFIG, ./config.yaml, /etc/proxyd/config.yaml")
    command.arguments(parser)
    return command, parser


def counted(number: int, noun: str) -> str:
    """Write a number of things, as in `1 model`, `2 models`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def give_examples(action: argparse.ArgumentParser, examples: str) -> None:
    """Show at an action of a command those of the command's examples that are its own."""
    action.epilog = _examples("\n".join(line for line in examples.splitlines() if f"{action.prog} " in f"{line} "))
    action.formatter_class = _Formatter


class _Parser(argparse.ArgumentParser):
    """argparse, saying what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        wrong = message.removeprefix("unrecognized arguments: ")
        if wrong != message and wrong.endswith((".yaml", ".yml")) and " " not in wrong:
            message += f"; write -c {wrong}"
        self.exit(WRONG_USAGE, f"proxyd: {message} (see {self.prog} --help)\n")


def _run(argv: Sequence[str]) -> int:
    from proxyd.config.mistakes import ConfigError, meant  # noqa: PLC0415 - nothing to import for those who only import `Failed`

    parser = _Parser(
        prog="proxyd",
        usage="proxyd COMMAND [options]",
        description="The LLM gateway you run like nginx.",
        epilog=_epilog(),
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"proxyd {proxyd.__version__}")
    if not argv:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    if argv[0] in {"help", "version"}:  # what other programs have as commands
        argv = [*argv[1:2], "--help"] if argv[0] == "help" else ["--version"]
    name = argv[0]
    if name.startswith(("-c", "--config")):
        parser.error("-c stands behind a command, as in proxyd check -c FILE")
    if name.startswith("-"):
        parser.parse_args(argv)
        parser.error("a command comes first")
    if name not in COMMANDS:
        parser.error(f"no such command: {name!r}{meant(name, COMMANDS)}")
    command, arguments = command_of(name)
    args = arguments.parse_args(argv[1:])
    try:
        code: int = command.run(args)
    except ConfigError as error:
        failed = Failed(f"{error.mistakes[0].file} has {counted(len(error.mistakes), 'mistake')}")
        _for_programs(args, failed, mistakes=[str(mistake) for mistake in error.mistakes])
        sys.stderr.write(f"{error}\n")
        raise failed from error
    except Exception as error:
        _for_programs(args, error)
        raise
    return code


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nowhere to say it; the exit code does
        sys.stderr.write(f"proxyd: {text}\n")


def _for_programs(args: argparse.Namespace, error: Exception, **more: object) -> None:
    """Tell a failure on standard output too where a program reads JSON there, who would otherwise find nothing to parse."""
    if getattr(args, "format", None) == "json" and not isinstance(error, BrokenPipeError):
        with contextlib.suppress(OSError):
            print(json.dumps({"ok": False, "error": {"message": _one_line(error)}, **more}, indent=2))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as it was written."""


def _epilog() -> str:
    lines = [f"  {name:8}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["commands:", *lines, "", _examples("proxyd demo\nproxyd check -c config.yaml\nproxyd serve -c config.yaml")])


def _examples(text: str) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in text.strip().splitlines())])


def _one_line(error: BaseException) -> str:
    """Tell an error on one line: ours by its message, the system's by what and where, a bug by its type too."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, Failed):
        return text
    return f"unexpected {type(error).__name__}: {text} (PROXYD_DEBUG=1 shows where)"
