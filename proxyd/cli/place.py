"""Where the database of a configuration is. Not a command itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.cli import Failed, config_path, ops
from proxyd.config.load import look_into
from proxyd.store.file import StoreError, database_path

if TYPE_CHECKING:
    import argparse

    from proxyd.config.schema import Config


def database(args: argparse.Namespace) -> tuple[Config, Path]:
    """Read the configuration as one who only looks, and find its database. Raises Failed, ConfigError.

    Under systemd it is in a folder that only the daemon is told of ($STATE_DIRECTORY), so a running one is asked.
    """
    place = config_path(args, os.environ)
    config = look_into(place, os.environ)
    state = os.environ.get("STATE_DIRECTORY")
    try:
        path = database_path(config.storage.url, place.absolute().parent, state)
    except StoreError as error:
        raise Failed(str(error)) from error
    if path.exists() or state:
        return config, path
    try:
        told = ops.ask(config, "GET", "/state").get("database")
    except Failed:
        told = None
    if isinstance(told, str) and Path(told).name == path.name:
        return config, Path(told)
    raise Failed(
        f"no database at {path}, and no running daemon to ask: none has run with this configuration yet, "
        "or it keeps it elsewhere, as under systemd: STATE_DIRECTORY=/var/lib/proxyd proxyd …"
    )
