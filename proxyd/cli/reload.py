"""`proxyd reload`: the running daemon takes the edited file."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from proxyd.cli import DONE, FAILED, Failed, config_path, counted
from proxyd.cli.output import GREEN, RED, YELLOW, add_format, paint, plain

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

HELP = """Apply the edited YAML to the running daemon: no connection is dropped, running streams finish as they began.

Prints what changed live, and what waits for a restart. A file with a mistake changes nothing: every mistake is printed, and the
exit code is 1. (The daemon also looks by itself for a changed file, unless `watch: false`.)"""
EXAMPLES = """proxyd reload
proxyd reload -c /etc/proxyd/config.yaml
proxyd reload --ops 127.0.0.1:9464      # where the daemon listens, if ops.listen itself was edited
proxyd reload --format json | jq '.waiting'"""

_NOT_FOUND = "not reloaded: the file cannot be read, so its daemon was not found (name it: --ops); the running configuration stays"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take an address and a format."""
    parser.add_argument("--ops", metavar="ADDRESS", type=address, help="the daemon's ops port; default: ops.listen of the file")
    add_format(parser, ("text", "json"))


def address(text: str) -> str:
    """Read where a daemon may listen. Raises ValueError."""
    from proxyd.config.address import parse_address  # noqa: PLC0415 - `proxyd --help` reads no YAML

    parse_address(text)
    return text


def run(args: argparse.Namespace) -> int:
    """Ask the daemon, and print what it says. Returns 1 if nothing was changed for a mistake."""
    from proxyd.cli import ops  # noqa: PLC0415 - `proxyd --help` reads no YAML

    path = config_path(args, os.environ)
    try:
        reply = ops.call(args.ops or ops.address(path, os.environ), "POST", "/reload", key=os.environ.get("PROXYD_ADMIN_KEY"))
    except Failed:
        told = _mistakes(path)
        if not told:
            raise
        _bad({"ok": False, "mistakes": told}, args.format)
        sys.stderr.write(f"proxyd: {_NOT_FOUND}\n")
        return FAILED
    document = reply.document
    if "ok" not in document:
        raise Failed(reply.error)
    if not document["ok"]:
        _bad(document, args.format)
        count = len(document["mistakes"])
        sys.stderr.write(f"proxyd: not reloaded ({counted(count, 'mistake')}); the running configuration stays\n")
        return FAILED
    if args.format == "json":
        print(json.dumps(document, indent=2))
    else:
        _good(document)
    return DONE


def _mistakes(path: Path) -> list[str]:
    """What is wrong with a file for which no daemon was found: it names the port to ask at, so that its mistakes go first."""
    from proxyd.config.load import load_file  # noqa: PLC0415 - only for the bad day
    from proxyd.config.mistakes import ConfigError  # noqa: PLC0415

    try:
        load_file(path, os.environ)
    except ConfigError as error:
        return [str(mistake) for mistake in error.mistakes if "is not set" not in mistake.message]  # secrets are the daemon's
    return []


def _bad(document: dict[str, Any], form: str) -> None:
    if form == "json":
        print(json.dumps(document, indent=2))
        return
    for mistake in document["mistakes"]:
        print(paint(plain(mistake), RED, sys.stdout))


def _good(document: dict[str, Any]) -> None:
    out = sys.stdout
    for warning in document["warnings"]:
        print(f"{paint('warning', YELLOW, out)}: {plain(warning)}")
    for change in document["live"]:
        print(f"{paint('live', GREEN, out)}: {plain(change['path'])} {change['what']}")
    for change in document["waiting"]:
        print(f"{paint('waits for a restart', YELLOW, out)}: {plain(change['path'])} {change['what']}")
    if not document["live"] and not document["waiting"]:
        print("nothing changed")
