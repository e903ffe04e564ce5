"""`proxyd serve`: the daemon."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from proxyd.cli import Failed, config_path

if TYPE_CHECKING:
    import argparse

    from proxyd.daemon.run import Daemon

HELP = "Run the daemon until SIGTERM; running streams then finish, up to `streams.drain`."
EXAMPLES = """
proxyd serve
proxyd serve -c /etc/proxyd/config.yaml
proxyd serve --log-level debug
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's own options."""
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="what is worth a line (info)")
    parser.add_argument("--log-format", choices=["json", "journal", "text"], help="how a line looks; default: as fits standard error")


def run(args: argparse.Namespace) -> int:
    """Serve."""
    from proxyd.clock import Clock  # noqa: PLC0415 - `proxyd --help` imports no server
    from proxyd.config.load import examine_file  # noqa: PLC0415
    from proxyd.daemon import boot  # noqa: PLC0415
    from proxyd.daemon import run as process  # noqa: PLC0415
    from proxyd.line_writer import LineWriter  # noqa: PLC0415
    from proxyd.log import Style, configure, style_for  # noqa: PLC0415
    from proxyd.store.db import StoreError  # noqa: PLC0415

    environ = process.environment()
    path = config_path(args, environ).absolute()
    loaded = examine_file(path, environ)
    style = Style(args.log_format) if args.log_format else style_for(environ, sys.stderr.fileno())
    log = configure(style, args.log_level, LineWriter(sys.stderr.fileno()))

    async def main() -> None:
        daemon = process.Daemon(loaded.config, path.parent, environ, Clock(), loaded.files)
        await daemon.start(log)
        daemon.handle_signals()
        daemon.settle_memory()
        announce(daemon)
        await daemon.serve()

    try:
        process.run(main, environ)
    except boot.RefusedError as error:
        for reason in error.reasons[:-1]:
            sys.stderr.write(f"proxyd: refusing to start: {reason}\n")
        raise Failed(f"refusing to start: {error.reasons[-1]}") from error
    except StoreError as error:
        raise Failed(str(error)) from error
    finally:
        log.close()
    return 0


def announce(daemon: Daemon) -> None:
    """Say where it listens, on standard output, for people and for programs that wait for it."""
    lines = [f"listening on {daemon.url}"]
    if daemon.ops_url:
        lines.append(f"ops on {daemon.ops_url}")
    if daemon.key is not None:
        environment = daemon.config.environment.value
        lines.append(f"key for this run: {daemon.key}   (environment: {environment}; name keys under auth.keys)")
    sys.stdout.write("\n".join([*lines, ""]))  # in one write: the log may go to the same place, and would come between
    sys.stdout.flush()
