"""`proxyd check`: tell whether the file is good."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from proxyd.cli import DONE, FAILED, config_path, counted, unit
from proxyd.cli.output import GREEN, RED, YELLOW, add_format, paint, plain
from proxyd.clock import Clock
from proxyd.config.load import Loaded, examine_file
from proxyd.config.mistakes import ConfigError, Mistake
from proxyd.config.safety import Made, refusals
from proxyd.rules.pricelist import PriceList, unpriced
from proxyd.store.file import StoreError, database_path
from proxyd.store.keys import stored

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from proxyd.config.schema import Config

HELP = """Validate the YAML whole: every mistake at once, as file:line:column: message.

Nothing is started and nothing is asked over the network. Exit code 1 if `proxyd serve` would not take the file."""
EXAMPLES = """proxyd check
proxyd check -c /etc/proxyd/config.yaml
proxyd check --format github     # annotations on a pull request
proxyd check --format json | jq '.mistakes[].message'"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take a format."""
    add_format(parser, ("text", "json", "github"))


def run(args: argparse.Namespace) -> int:
    """Check the file and say so. Returns 1 if it must not be served; raises Failed where there is none."""
    path = config_path(args, os.environ)
    loaded: Loaded | None = None
    mistakes: tuple[Mistake, ...] = ()
    try:
        loaded = examine_file(path, os.environ)
    except ConfigError as error:
        mistakes = error.mistakes
    warnings = sorted([*loaded.warnings, *_unpriced(loaded)]) if loaded is not None else ()
    refused = [Mistake(str(path), 1, 1, f"serve refuses to start: {reason}") for reason in (reasons(path, loaded.config) if loaded else ())]
    mistakes = (*mistakes, *refused)
    if args.format == "json":
        _json(str(path), loaded, mistakes, warnings)
    elif args.format == "github":
        _github(mistakes, warnings)
    else:
        _text(str(path), loaded, mistakes, warnings)
    if mistakes:
        sys.stderr.write(f"proxyd: {plain(path)} has {counted(len(mistakes), 'mistake')}\n")
    return FAILED if mistakes else DONE


def reasons(path: Path, config: Config) -> list[str]:
    """Why `proxyd serve` would refuse a good file, as far as can be known without starting; nothing if it would not."""
    from proxyd.daemon.boot import missing_extras  # noqa: PLC0415 - `proxyd check --help` imports no server

    return [*refusals(config, made=_made(path, config)), *missing_extras(config)]


def _unpriced(loaded: Loaded) -> Iterator[Mistake]:
    """Warn of routes whose costs will stay unknown."""
    prices = PriceList()
    more = ", or install the list: pip install 'proxyd[prices]'" if prices.missing else ""
    found: dict[str, list[str]] = {}
    for label, upstream in unpriced(loaded.config, prices, Clock().now_us()):
        found.setdefault(label, []).append(upstream)
    for label, upstreams in found.items():
        where = " and ".join(dict.fromkeys(upstreams))
        yield replace(loaded.routes[label], message=f"no price is known for {label!r} at {where}: give it a 'price'{more}")


def _text(name: str, loaded: Loaded | None, mistakes: Sequence[Mistake], warnings: Sequence[Mistake]) -> None:
    out = sys.stdout
    for mistake in mistakes:
        print(f"{_place(mistake)}: {paint(plain(mistake.message), RED, out)}")
    for warning in warnings:
        print(f"{_place(warning)}: {paint('warning', YELLOW, out)}: {plain(warning.message)}")
    if loaded is not None and not mistakes:
        upstreams, models = len(loaded.config.upstreams), len(loaded.config.models)
        print(f"{plain(name)}: {paint('ok', GREEN, out)} ({counted(upstreams, 'upstream')}, {counted(models, 'model')})")


def _json(name: str, loaded: Loaded | None, mistakes: Sequence[Mistake], warnings: Sequence[Mistake]) -> None:
    document = {
        "file": name,
        "ok": not mistakes,
        "upstreams": len(loaded.config.upstreams) if loaded else None,
        "models": len(loaded.config.models) if loaded else None,
        "mistakes": [_fields(mistake) for mistake in mistakes],
        "warnings": [_fields(warning) for warning in warnings],
    }
    print(json.dumps(document, indent=2))


def _github(mistakes: Sequence[Mistake], warnings: Sequence[Mistake]) -> None:
    """Print workflow commands; their escapes are those of actions/toolkit packages/core/src/command.ts."""
    for kind, found in (("error", mistakes), ("warning", warnings)):
        for each in found:
            message = each.message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
            file = each.file.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
            print(f"::{kind} file={file},line={each.line},col={each.column}::{message}")


def _fields(mistake: Mistake) -> dict[str, str | int]:
    return {"file": mistake.file, "line": mistake.line, "column": mistake.column, "message": mistake.message}


def _place(mistake: Mistake) -> str:
    return f"{plain(mistake.file)}:{mistake.line}:{mistake.column}"


def _made(path: Path, config: Config) -> Made:
    """Count the keys of the database, if there is one."""
    now_us = Clock().now_us()
    try:
        place = database_path(config.storage.url, path.absolute().parent, unit.state_directory(path))
        live = [key for key in stored(place) if key.live(now_us)]
    except StoreError:
        return Made()
    return Made(len(live), sum(key.caller.admin for key in live))
