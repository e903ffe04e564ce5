"""`proxyd health`: whether the running daemon is alive, by its exit code."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from proxyd.cli import DONE, FAILED, Failed, config_path, ops
from proxyd.config.load import look_into

if TYPE_CHECKING:
    import argparse

HELP = """Ask the running daemon whether it is alive, or with --ready whether it takes traffic. Exit code 1 if not, or if none answers.

It is what HEALTHCHECK of a container runs. Asked is the operator's port, or the clients' where that is off."""
EXAMPLES = """proxyd health
proxyd health --ready && echo "takes traffic"
proxyd health --format json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to ask, and a format."""
    parser.add_argument("--ready", action="store_true", help="whether it takes traffic, too")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: the daemon's own words (default: text)")


def run(args: argparse.Namespace) -> int:
    """Ask, and say. Raises Failed where none answers."""
    config = look_into(config_path(args, os.environ), os.environ)
    if config.ops.listen is None and config.tls is not None:
        raise Failed("the clients' port speaks TLS, under a name that is not known here: give ops.listen a port to ask at")
    listen = config.ops.listen if config.ops.listen is not None else config.listen
    reply = ops.call(listen, "GET", "/ready" if args.ready else "/health")
    well = reply.status == 200
    if args.format == "json":
        print(json.dumps(reply.document))
    else:
        reasons = ", ".join(map(str, reply.document.get("reasons", [])))
        print(reply.document.get("status", f"status {reply.status}"), f"({reasons})" if reasons else "", sep=" " if reasons else "")
    return DONE if well else FAILED
