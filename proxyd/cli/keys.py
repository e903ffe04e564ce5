"""`proxyd keys`: who may call. The running daemon does the work, so that it is in effect at once; without one, this does."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from proxyd.cli import DONE, Failed, WrongUsage, config_path, give_examples, ops, output, unit
from proxyd.clock import Clock
from proxyd.config import units
from proxyd.config.load import load_file, look_into
from proxyd.config.mistakes import ConfigError
from proxyd.flow.keyring import Keyring, document, told, written
from proxyd.rules import auth, new_key
from proxyd.store.db import Database, StoreError, database_path
from proxyd.store.keys import ApiKeys, KeyRefusedError, stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxyd.config.schema import Config

HELP = """Make, list, rotate and revoke API keys: in effect at once, without a reload.

A key is printed once, on standard output; the database holds only its hash. Where other machines reach the operator's
port it asks for an admin key, which is taken from $PROXYD_ADMIN_KEY."""
EXAMPLES = """proxyd keys create laptop
proxyd keys create phone --models 'gpt-4o-mini' 'llama*' --rpm 60 --tpm 100k --concurrency 4 --budget 20/month --expires 90d
proxyd keys create ci --default-model fast
proxyd keys create buoy --max-delay-ms 1000 --compress    # behind a thin link
proxyd keys list
proxyd keys show laptop
proxyd keys rotate laptop --grace 7d     # the old key works for another week
proxyd keys revoke laptop"""
_COLUMNS = (
    *(output.Column(key, key.upper()) for key in ("name", "prefix", "state", "models")),
    *(output.Column(key, key.upper(), right=True) for key in ("rpm", "tpm", "concurrency")),
    *(output.Column(key, key.upper()) for key in ("budget", "delivery", "admin", "expires", "last_used", "source")),
)
_YEAR = 366 * 86_400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to do, and with whose key."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and print it")
    create.add_argument("name", help="the caller's name in the ledger")
    create.add_argument(
        "--models", nargs="+", action="extend", metavar="MODEL", help="names or patterns that it may use: a 'b*', or a,b (default: all)"
    )
    create.add_argument("--rpm", metavar="N", help="requests a minute")
    create.add_argument("--tpm", metavar="N", help="tokens a minute, as in 100k")
    create.add_argument("--concurrency", metavar="N", help="exchanges at once")
    create.add_argument("--budget", metavar="SUM", help="20/month (USD), 5EUR/day, '1M tokens/month'")
    create.add_argument("--expires", metavar="WHEN", help="30d from now, or a day as 2027-01-31")
    create.add_argument("--admin", action="store_true", help="it may use the operator's port from other machines")
    create.add_argument("--default-model", metavar="MODEL", help="what a request without a model means")
    create.add_argument("--max-delay-ms", metavar="N", type=int, help="hold text so long, where requests do not say, for thin links")
    create.add_argument("--max-bytes", metavar="SIZE", help="held text leaves early once it is so much, as in 4KiB")
    create.add_argument("--compress", action=argparse.BooleanOptionalAction, help="answers, whenever the client takes it; or never")
    listing = actions.add_parser("list", help="all keys, those of the configuration too")
    show = actions.add_parser("show", help="one caller's keys")
    show.add_argument("name")
    rotate = actions.add_parser("rotate", help="make a key that replaces another, which lives on for a while")
    rotate.add_argument("name")
    rotate.add_argument("--grace", metavar="TIME", default="1d", help="how long the old one lives on (default: 1d; 0 ends it now)")
    revoke = actions.add_parser("revoke", help="end a caller's keys, now")
    revoke.add_argument("name")
    revoke.add_argument("--key", metavar="PREFIX", help="only the one that is shown so: pxd_AbCd")
    for each in (create, listing, show, rotate, revoke):
        each.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="the YAML")
        give_examples(each, EXAMPLES)
    for each in (listing, show):
        output.add_format(each)


def run(args: argparse.Namespace) -> int:
    """Do it. Raises Failed, ConfigError."""
    place = config_path(args, os.environ)
    lacking: ConfigError | None = None
    try:
        config = load_file(place, os.environ)
    except ConfigError as error:
        config, lacking = look_into(place, os.environ), error
    desk = _Desk(config, place.absolute(), lacking)
    actions: dict[str, Callable[[_Desk, argparse.Namespace], int]] = {
        "create": _create,
        "list": _list,
        "show": _list,
        "rotate": _rotate,
        "revoke": _revoke,
    }
    return actions[args.action](desk, args)


def _create(desk: _Desk, args: argparse.Namespace) -> int:
    wish = {key: getattr(args, key) for key in ("name", "models", "rpm", "tpm", "concurrency", "budget", "expires", "default_model")}
    if args.models is not None:
        wish["models"] = [name for said in args.models for name in said.split(",")]
    wish["delivery"] = _delivery(args)
    wish = {key: value for key, value in wish.items() if value is not None} | ({"admin": True} if args.admin else {})
    now_us = Clock().now_us()
    try:
        caller = new_key.caller(wish, now_us)
    except new_key.WishError as error:
        raise WrongUsage(str(error)) from error
    taken = new_key.taken(caller.name, desk.auth)
    if taken is not None:
        raise Failed(taken)

    async def here(keyring: Keyring) -> Any:
        secret, key = await keyring.create(caller)
        return {**document(key, now_us), "key": secret}

    _hand_over(desk.do("POST", "/keys", wish, here, makes=True))
    return DONE


def _delivery(args: argparse.Namespace) -> dict[str, object] | None:
    try:
        most = None if args.max_bytes is None else units.size(args.max_bytes)
    except ValueError as error:
        raise WrongUsage(f"--max-bytes: {args.max_bytes!r} {error}") from None
    said = {"max_delay_ms": args.max_delay_ms, "max_bytes": most, "compress": args.compress}
    return {name: value for name, value in said.items() if value is not None} or None


def _rotate(desk: _Desk, args: argparse.Namespace) -> int:
    try:
        grace = units.duration(args.grace)
    except ValueError as error:
        raise WrongUsage(f"--grace: {args.grace!r} {error}") from None
    if grace > _YEAR:
        raise WrongUsage("--grace: at most a year")

    async def here(keyring: Keyring) -> Any:
        secret, key = await keyring.rotate(_known(args.name), grace)
        return {**document(key, Clock().now_us()), "key": secret}

    _hand_over(desk.do("POST", f"/keys/{quote(args.name, safe='')}/rotate", {"grace": grace}, here))
    _say(f"the old key lives for another {args.grace}" if grace else "the old key is ended")
    return DONE


def _revoke(desk: _Desk, args: argparse.Namespace) -> int:
    async def here(keyring: Keyring) -> Any:
        now_us = Clock().now_us()
        return {"data": [document(key, now_us) for key in await keyring.revoke(_known(args.name), args.key)]}

    query = "?" + urlencode({"prefix": args.key}) if args.key else ""
    for key in desk.do("DELETE", f"/keys/{quote(args.name, safe='')}{query}", None, here)["data"]:
        _say(f"{key['prefix']}… of {key['name']} is ended; what it has running goes on")
    return DONE


def _list(desk: _Desk, args: argparse.Namespace) -> int:
    wanted: str | None = getattr(args, "name", None)
    if desk.lacking is not None:
        _say("keys of the file whose secrets this shell has not are left out")
    rows = [{**key, "source": "database"} for key in desk.made()]
    rows += [
        {
            "name": key.name,
            "prefix": None,
            "state": "live",
            "models": list(key.models),
            "admin": key.admin,
            "source": "file",
            "rpm": key.limits.rpm,
            "tpm": key.limits.tpm,
            "concurrency": key.limits.concurrency,
            "budget": None if key.budget is None else written(auth.budget_of(key.budget)),
            "default_model": key.default_model,
            "delivery": told(auth.delivery_of(key.delivery)),
            "created_at": None,
            "revoked_at": None,
            "last_used_at": None,
            "expires_at": None if key.expires is None else units.moment(key.expires),
        }
        for key in desk.file_keys
    ]
    rows = [row for row in rows if wanted is None or row["name"] == wanted]
    if wanted is not None and not rows:
        raise Failed(f"there is no key of the name {wanted!r}")
    if args.format == "json":
        output.show([output.Column(key, key) for key in rows[0]] if rows else [], rows, "json")
        return DONE
    for row in rows:
        row |= {"models": " ".join(row["models"]), "admin": "yes" if row["admin"] else None}
        row["delivery"] = " ".join(f"{name}={str(said).lower()}" for name, said in (row["delivery"] or {}).items()) or None
        row |= {"expires": _day(row["expires_at"]), "last_used": _day(row["last_used_at"])}
    output.show(_COLUMNS, rows, args.format)
    return DONE


class _Desk:
    """Where keys are worked on: the daemon's operator port, or the database itself when no daemon holds it."""

    def __init__(self, config: Config, file: Path, lacking: ConfigError | None) -> None:
        """`lacking`: this shell has not all of the daemon's secrets, so that keys of the file may be missing from `config`."""
        self._config = config
        self._file = file
        self.lacking = lacking
        self.auth = config.auth
        self.file_keys = config.auth.keys if config.auth is not None else ()

    def made(self) -> list[dict[str, Any]]:
        """The keys of the database; where no daemon answers, it is only read. Raises Failed, ConfigError."""
        found = self._asked("GET", "/keys", None)
        if found is not None:
            return list(found["data"])
        now_us = Clock().now_us()
        try:
            place = database_path(self._config.storage.url, self._file.parent, unit.state_directory(self._file))
            return [document(key, now_us) for key in stored(place)] if place.exists() else []
        except StoreError as error:
            raise Failed(f"{self._unasked()}, and {error}") from error

    def do(self, method: str, path: str, body: object, here: Callable[[Keyring], Awaitable[Any]], *, makes: bool = False) -> Any:
        """Ask the daemon; where none answers, do it here, if all of the file can be read. Raises Failed, ConfigError.

        `makes`: the database too, if there is none.
        """
        found = self._asked(method, path, body)
        if found is not None:
            return found
        try:
            state = unit.state_directory(self._file)
            place = database_path(self._config.storage.url, self._file.parent, state)
            if not makes and not place.exists():
                raise Failed(f"{self._unasked()}, and there is no database at {place} yet")
            if state is not None and not Path(state).exists():  # the first key comes before the first start; systemd takes the folder over
                Path(state).mkdir(mode=0o700)
            return asyncio.run(_directly(Database(place), here))
        except KeyRefusedError as error:
            raise Failed(str(error).rstrip(".")) from error
        except StoreError as error:
            raise Failed(f"{self._unasked()}, and {error}") from error

    def _asked(self, method: str, path: str, body: object) -> Any:
        """What the daemon says; None where none answers, and this shell knows enough to go on. Raises Failed, ConfigError."""
        listen = self._config.ops.listen
        if listen is not None:
            try:
                reply = ops.call(listen, method, path, body, os.environ.get("PROXYD_ADMIN_KEY"))
            except ops.Unreachable:
                pass
            else:
                if reply.status >= 400:
                    raise Failed(reply.error.rstrip("."))
                return reply.document
        if self.lacking is not None:
            raise self.lacking
        return None

    def _unasked(self) -> str:
        listen = self._config.ops.listen
        return f"no daemon answers on {listen} (ops.listen)" if listen else "ops.listen is off, so no daemon can be asked"


async def _directly(database: Database, here: Callable[[Keyring], Awaitable[Any]]) -> Any:
    """Be the one writer for a moment: the lock is the daemon's own."""
    await database.open()
    try:
        keyring = Keyring(ApiKeys(database), Clock(), random.SystemRandom())
        await keyring.load()
        return await here(keyring)
    finally:
        await database.close()


def _hand_over(made: dict[str, Any]) -> None:
    """The key alone on standard output, everything else beside it."""
    try:
        sys.stdout.write(made["key"] + "\n")
        sys.stdout.flush()
    except OSError as error:
        why = error.strerror or error
        raise Failed(f"a key of {made['name']} was made, but could not be printed ({why}): rotate it, or revoke it") from error
    _say(f"key of {made['name']}; it is shown this once, and works now")


def _known(name: str) -> str:
    try:
        return new_key.name(name)
    except new_key.WishError as error:
        raise WrongUsage(str(error)) from error


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _day(moment: int | None) -> str | None:
    return None if moment is None else dt.datetime.fromtimestamp(moment / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M")
