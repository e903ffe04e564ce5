"""`proxyd doctor`: check, then the world."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.cli import DONE, FAILED, config_path, counted, doctor_access, doctor_machine, doctor_service, doctor_upstreams, unit
from proxyd.cli.check import reasons
from proxyd.cli.finding import Finding, Level, fail, ok, warn
from proxyd.cli.output import BOLD, DIM, GREEN, RED, YELLOW, add_format, paint, plain
from proxyd.clock import Clock
from proxyd.config.load import examine_file, look_into
from proxyd.config.mistakes import ConfigError
from proxyd.store.file import StoreError, database_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from proxyd.config.schema import Config

HELP = """Look at everything that proxyd stands on, and say of each what is well, what will not always be, and what is broken.

The file as `proxyd check` reads it, the machine, the database, the ports and their certificate, the daemon if one runs, the keys that
issuers of tokens publish, and each upstream: its name, its port, its certificate, the credential, and the models that routes ask of
it. Upstreams are asked for their list of models, which costs nothing. Exit code 1 if anything fails. Secrets come from this shell's
environment and the `.env` beside the file."""
EXAMPLES = """proxyd doctor
proxyd doctor -c /etc/proxyd/config.yaml
proxyd doctor --no-network           # ask nobody elsewhere
proxyd doctor --format json | jq '.findings[] | select(.level != "ok")'"""
_COLOURS = {Level.OK: GREEN, Level.WARN: YELLOW, Level.FAIL: RED}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take a unit, whether to ask upstreams, and a format."""
    parser.add_argument(
        "--unit", metavar="FILE", type=Path, help=f"systemd's unit, if one is there (default: {' or '.join(map(str, unit.PLACES))})"
    )
    parser.add_argument("--no-network", action="store_true", help="ask no upstream and no issuer")
    add_format(parser, ("text", "json"))


def run(args: argparse.Namespace) -> int:
    """Look, and tell. Returns 1 if anything fails."""
    findings = list(_look(args))
    worst = [sum(finding.level is level for finding in findings) for level in (Level.FAIL, Level.WARN)]
    if args.format == "json":
        listed = [{"level": one.level.value, "about": one.about, "says": one.says, "advice": one.advice or None} for one in findings]
        print(json.dumps({"ok": not worst[0], "findings": listed}, indent=2, ensure_ascii=False))
    else:
        width = max(len(finding.about) for finding in findings)
        for finding in findings:
            _print(finding, width)
        print(f"\n{worst[0]} broken, {worst[1]} to look at, {len(findings) - sum(worst)} well")
    return FAILED if worst[0] else DONE


def _look(args: argparse.Namespace) -> Iterable[Finding]:
    place = config_path(args, os.environ)
    config, findings = _configuration(place)
    yield from findings
    yield from doctor_machine.installed()
    if config is None:
        return
    daemon = doctor_service.running(config)
    yield doctor_machine.descriptors(config, daemon.pid)
    service = args.unit or unit.installed()
    yield from doctor_machine.unit(service, config, place)
    yield from daemon.findings
    yield from doctor_service.ports(config, daemon)
    yield from doctor_access.certificate(config, place.absolute().parent, unit.settings_of(service))
    yield from _database(config, place, unit.state_directory(place, service), daemon)
    yield from () if args.no_network else doctor_access.issuers(config)
    visits = [] if args.no_network else doctor_upstreams.visit(config)
    yield doctor_machine.clock(Clock().now_us() / 1e6, [visit.date for visit in visits if visit.date is not None])
    for visit in visits:
        yield from visit.findings


def _configuration(place: Path) -> tuple[Config | None, list[Finding]]:
    """Read the file as `check` does; with mistakes in it, what can be known all the same, or None."""
    about = "config"
    try:
        loaded = examine_file(place, os.environ)
    except ConfigError as error:
        found = [fail(about, str(mistake), _mend(mistake.message)) for mistake in error.mistakes]
        try:
            return look_into(place, os.environ), found
        except ConfigError:
            return None, found
    found = [warn(about, str(mistake), "it works; change it if it is not meant so") for mistake in loaded.warnings]
    found += [fail(about, refusal, "proxyd does not start like this") for refusal in reasons(place, loaded.config)]
    if not any(finding.level is Level.FAIL for finding in found):
        models, upstreams = counted(len(loaded.config.models), "model"), counted(len(loaded.config.upstreams), "upstream")
        found.insert(0, ok(about, f"{place}: {models}, {upstreams}, environment {loaded.config.environment}"))
    return loaded.config, found


def _mend(message: str) -> str:
    if "is not set" in message or "credential" in message:
        return "set it in this shell or in the .env beside the file; under systemd only the service may have it, and then this is no fault"
    return "mend the file; `proxyd check` tells the same"


def _database(config: Config, place: Path, state: str | None, daemon: doctor_service.Running) -> Iterable[Finding]:
    try:
        path = database_path(config.storage.url, place.absolute().parent, state)
    except StoreError as error:
        yield fail("database", str(error), "change storage.url")
        return
    try:
        if state and not os.environ.get("STATE_DIRECTORY") and not Path(state).exists() and daemon.database is None:
            yield ok("database", f"{path}: systemd makes its folder at the first start")
            return
        if not path.exists() and daemon.database is not None and daemon.database.name == path.name:
            path = daemon.database  # it was told another folder than this shell
        yield from doctor_service.database(path, daemon)
    except PermissionError:
        yield fail("database", f"{path} is not for this user to look at", "run doctor as root")


def _print(finding: Finding, width: int) -> None:
    level = paint(f"{finding.level.value:4}", _COLOURS[finding.level], sys.stdout)
    print(f"{level}  {paint(f'{finding.about:{width}}', BOLD, sys.stdout)}  {plain(finding.says)}")
    if finding.advice:
        print(f"{'':4}  {'':{width}}  {paint('→ ' + plain(finding.advice), DIM, sys.stdout)}")
