"""`proxyd db`: the care of the database, while the daemon runs or not."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.cli import DONE, FAILED, Failed, WrongUsage, give_examples, place
from proxyd.cli.output import GREEN, RED, add_format, paint, plain
from proxyd.clock import Clock
from proxyd.config.units import since
from proxyd.store import upkeep
from proxyd.store.conversations import Conversations
from proxyd.store.file import StoreError
from proxyd.store.idempotency import Claims
from proxyd.store.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxyd.config.schema import Config
    from proxyd.store.db import Database

HELP = """The database: copy it, check it, delete what is old, give free room back. All of it while the daemon runs.

backup and check only read. prune and vacuum write: a running daemon is asked to do it, over its operator's port."""
EXAMPLES = """proxyd db backup /backups/             # a new file there, named by the moment
proxyd db backup /backups/proxyd.db    # this very file, if it is not there yet
proxyd db check --format json
proxyd db prune --older-than 400d
proxyd db vacuum
STATE_DIRECTORY=/var/lib/proxyd proxyd db check    # where systemd keeps it, while the daemon is stopped"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to do, and with what."""
    does = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    backup = does.add_parser("backup", help="copy it, of one moment, and check the copy")
    backup.add_argument("file", metavar="FILE", type=Path, help="what to write: a file that is not there, or a folder")
    check = does.add_parser("check", help="read every page; exit code 1 if it is damaged")
    prune = does.add_parser("prune", help="delete old usage rows and conversations, and kept answers whose time is up")
    prune.add_argument("--older-than", metavar="AGE", help="usage rows: 400d, 52w, or a day (UTC); default: storage.retain.usage")
    vacuum = does.add_parser("vacuum", help="give the room of deleted rows back to the disk; writes wait meanwhile, 1 s for 100 MB")
    for each in (backup, check, prune, vacuum):
        each.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="the YAML")
        give_examples(each, EXAMPLES)
        add_format(each, ("text", "json"))


def run(args: argparse.Namespace) -> int:
    """Do it. Raises Failed, ConfigError."""
    config, path = place.database(args)
    act: dict[str, Callable[[argparse.Namespace, Config, Path], int]] = {
        "backup": _backup,
        "check": _check,
        "prune": _prune,
        "vacuum": _vacuum,
    }
    try:
        return act[args.action](args, config, path)
    except StoreError as error:
        raise Failed(str(error)) from error


def _backup(args: argparse.Namespace, _config: Config, path: Path) -> int:
    target: Path = args.file
    if target.is_dir():
        moment = dt.datetime.fromtimestamp(Clock().now_us() / 1e6, dt.UTC)
        target /= f"{path.stem}-{moment:%Y%m%dT%H%M%SZ}.db"
    found = upkeep.backup(path, target)
    _tell(args, {"file": str(target), **_document(found)}, f"{target}: {_size(found.size)}, {_rows(found)}, checked")
    return DONE


def _check(args: argparse.Namespace, _config: Config, path: Path) -> int:
    problems = upkeep.check(path)
    found = None if problems else upkeep.facts(path)
    if args.format == "json":
        document = {"file": str(path), "ok": not problems, "problems": problems, **(_document(found) if found else {})}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif found is not None:
        print(f"{paint('ok', GREEN, sys.stdout)}  {path}")
        print(f"    {_size(found.size)}, of which {_size(found.free)} free; {_size(found.wal)} in the -wal file; schema {found.schema}")
        print(f"    {_rows(found)}")
    else:
        print(f"{paint('damaged', RED, sys.stdout)}  {path}")
        print("\n".join(f"    {plain(problem)}" for problem in problems))
        print("Stop proxyd, keep a copy of the file, and restore a backup (systemd/README.md); nothing was changed.")
    return FAILED if problems else DONE


def _prune(args: argparse.Namespace, config: Config, path: Path) -> int:
    now = Clock().now_us()
    before = upkeep.horizon(config.storage.retain, now)
    if args.older_than is not None:
        before = replace(before, usage=_older_than(args.older_than, now))
    if before.usage is not None and before.usage > now:
        raise WrongUsage(f"--older-than {plain(args.older_than)} is still to come: that would delete every row")
    asked: dict[str, object] = {} if before.usage is None else {"before_us": before.usage}

    async def alone(database: Database) -> dict[str, int]:
        return asdict(await upkeep.prune(Ledger(database), Claims(database), Conversations(database), before, now))

    done = place.write(config, path, ("/db/prune", asked), alone)
    kept = "all usage rows are kept (storage.retain.usage)" if before.usage is None else f"{done['usage']} usage rows deleted"
    forgotten = f"; {done['conversations']} conversations deleted" if done["conversations"] else ""
    _tell(args, done, f"{kept}{forgotten}; {_size(done['kept'])} of answers are kept for their Idempotency-Keys")
    return DONE


def _older_than(text: str, now: int) -> int:
    """Read before when rows are deleted. `all` is no such moment: it would mean none to one reader, and every row to another."""
    try:
        moment = since(text, now)
    except ValueError:
        moment = None
    if moment is None:
        raise WrongUsage(f"--older-than {plain(text)}: write 400d, 52w, or a day as 2026-11-01")
    return moment


def _vacuum(args: argparse.Namespace, config: Config, path: Path) -> int:
    async def alone(database: Database) -> dict[str, int]:
        before, after = await upkeep.vacuum(database)
        return {"before": before, "after": after}

    done = place.write(config, path, ("/db/vacuum", {}), alone)
    before, after = done["before"], done["after"]
    _tell(args, done, f"{_size(before)} before, {_size(after)} after")
    return DONE


def _tell(args: argparse.Namespace, document: Mapping[str, object], line: str) -> None:
    print(json.dumps(document, indent=2) if args.format == "json" else line)


def _document(found: upkeep.Facts) -> dict[str, object]:
    return {"size": found.size, "wal": found.wal, "free": found.free, "schema": found.schema, "rows": found.rows}


def _rows(found: upkeep.Facts) -> str:
    since = "" if found.oldest is None else f" since {dt.datetime.fromtimestamp(found.oldest / 1e6, dt.UTC):%Y-%m-%d}"
    others = ", ".join(f"{count:,} {name}" for name, count in found.rows.items() if name != "usage_events" and count)
    return f"{found.rows.get('usage_events', 0):,} usage rows{since}" + (f", {others}" if others else "")


def _size(size: int) -> str:
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 1000:,.0f} kB" if size < 10_000_000 else f"{size / 1e6:,.1f} MB"
