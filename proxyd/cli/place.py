"""Where the database of a configuration is, and who writes it. Not a command itself."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.cli import Failed, config_path, ops
from proxyd.cli.unit import state_directory
from proxyd.config.load import look_into
from proxyd.store.db import Database
from proxyd.store.file import InUseError, StoreError, database_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from proxyd.config.schema import Config


PATIENCE = 3600.0
"""Seconds that the daemon may take to do what was asked."""


def database(args: argparse.Namespace) -> tuple[Config, Path]:
    """Read the configuration as one who only looks, and find its database. Raises Failed, ConfigError.

    Where it is not beside the file, nor where systemd's unit has it, a running daemon is asked.
    """
    place = config_path(args, os.environ)
    config = look_into(place, os.environ)
    state = state_directory(place)
    try:
        path = database_path(config.storage.url, place.absolute().parent, state)
    except StoreError as error:
        raise Failed(str(error)) from error
    if _there(path) or os.environ.get("STATE_DIRECTORY"):
        return config, path
    try:
        told = ops.ask(config, "GET", "/state").get("database")
    except Failed:
        told = None
    if isinstance(told, str) and Path(told).name == path.name:
        return config, Path(told)
    raise Failed(
        f"no database at {path}, and no running daemon to ask: none has run with this configuration yet, "
        "or it keeps it elsewhere: STATE_DIRECTORY=/var/lib/proxyd proxyd …"
    )


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # in a folder that is its service's alone: reading it says who may
        return True


def write(
    config: Config, path: Path, order: tuple[str, dict[str, object]], alone: Callable[[Database], Awaitable[dict[str, int]]]
) -> dict[str, int]:
    """Do `alone` as the database's one writer, or let the daemon that is it follow the order. Raises Failed, StoreError."""
    if not path.is_file():
        raise StoreError(f"{path} is not there")

    async def work() -> dict[str, int]:
        database = Database(path)
        await database.open()
        try:
            return await alone(database)
        finally:
            await database.close()

    try:
        return asyncio.run(work())
    except InUseError:
        where, asked = order
        return ops.ask(config, "POST", where, {**asked, "database": str(path.resolve())}, PATIENCE)
