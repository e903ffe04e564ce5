"""The composition root: the one place where the rooms are introduced to each other."""

from __future__ import annotations

import contextlib
import os
import random
from importlib import util
from typing import TYPE_CHECKING

from aiohttp import http_parser

from proxyd.config.safety import Made, refusals
from proxyd.config.schema import TEST_KEY, Environment, Key, Kind
from proxyd.config.zones import zone
from proxyd.flow.claims import Running
from proxyd.flow.health import Health
from proxyd.flow.keyring import Keyring
from proxyd.flow.memory import Memory
from proxyd.flow.once import Once
from proxyd.flow.runtime import Runtime, Snapshot
from proxyd.rules import bearer, new_key
from proxyd.rules.auth import ANONYMOUS, Keys, generate_dev_key
from proxyd.rules.price import price_of, quoted
from proxyd.rules.routes import RouteTable
from proxyd.store.conversations import Conversations
from proxyd.store.db import Database, database_path
from proxyd.store.idempotency import Claims
from proxyd.store.keys import ApiKeys
from proxyd.store.ledger import Ledger
from proxyd.upstream.echo import EchoUpstream
from proxyd.upstream.http import HttpUpstream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from proxyd.clock import Clock
    from proxyd.config.schema import Config, Upstream
    from proxyd.flow.runtime import Door, Tracer
    from proxyd.rules.price import Quote


class RefusedError(Exception):
    """proxyd will not start like this; `reasons` says everything that is wrong at once."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def check(config: Config, listen: Sequence[str] | None, keyring: Keyring) -> None:
    """Refuse to serve where that would be unsafe; `listen` as `safety.refusals` takes it. Raises RefusedError."""
    live = keyring.live()
    made = Made(len(live), sum(key.caller.admin for key in live))
    reasons = [*refusals(config, listen, made), *missing_extras(config)]
    if not http_parser.HttpRequestParser.__module__.endswith("_http_parser"):
        reasons.append(
            "aiohttp runs without its C parser (AIOHTTP_NO_EXTENSIONS, or no wheel for this platform): its Python parser is too lenient"
        )
    if reasons:
        raise RefusedError(reasons)


def shared_names(config: Config, keyring: Keyring) -> list[str]:
    """Callers who have a key in the database and are named in the file, too: a file that is edited later may bring them together."""
    names = sorted({key.caller.name for key in keyring.live()})
    return [
        f"{name!r} has a live key in the database, too, with limits of its own, and what either asks for is one caller's: "
        f"`proxyd keys revoke {name}`, or change the name in the file"
        for name in names
        if new_key.taken(name, config.auth) is not None
    ]


def quotes(config: Config) -> dict[str, Quote]:
    """The prices that the file itself has, by label of the route."""
    return {label: quoted(price_of(route.price), "config") for label, route in config.models.items() if route.price is not None}


def missing_extras(config: Config) -> list[str]:
    """What the configuration asks for, and is not installed."""
    missing = []
    if config.auth is not None and config.auth.jwt and not bearer.installed():
        missing.append("auth.jwt needs the extra `jwt`: pip install 'proxyd[jwt]'")
    if config.otel is not None and not otel_installed():
        missing.append("otel needs the extra `otel`: pip install 'proxyd[otel]'")
    return missing


def otel_installed() -> bool:
    """Whether the extra `otel` is there. Cheap: only empty packages are imported."""
    with contextlib.suppress(ModuleNotFoundError):  # of a parent
        return all(util.find_spec(f"opentelemetry.{name}") is not None for name in ("sdk.trace", "exporter.otlp.proto.http"))
    return False


def tracer(config: Config) -> Tracer | None:
    """Begin to trace, where the configuration says so. `check` comes first."""
    if config.otel is None:
        return None
    from proxyd.daemon.tracing import Tracing  # noqa: PLC0415 - an extra: 200 ms and 13 MB

    return Tracing(config.otel)


def snapshot(config: Config, made_key: str | None, clock: Clock, old: Snapshot | None) -> Snapshot:
    """Turn a configuration into what exchanges use. `made_key` is the key of a development or test environment.

    Upstreams that are as in `old` keep their connections, and what is known of them.
    """
    keys = config.auth.keys if config.auth is not None else ()
    if made_key is not None:
        keys = (Key(name=config.environment.value, key=made_key),)
    same = {name for name, spec in config.upstreams.items() if old is not None and old.config.upstreams.get(name) == spec}
    return Snapshot(
        config,
        RouteTable(config),
        Keys(keys),
        ANONYMOUS if config.auth is None else None,
        doors={name: old.doors[name] if old and name in same else door(spec, clock) for name, spec in config.upstreams.items()},
        health={name: old.health[name] if old and name in same else Health() for name in config.upstreams},
        issuers=config.auth.jwt if config.auth is not None else (),
        prices=quotes(config),
        zone=zone(config.timezone),
    )


def make_key(config: Config, keyring: Keyring) -> str | None:
    """The key that proxyd brings itself, where there is none in file and database and the environment allows it."""
    if config.auth is None or config.auth.keys or config.auth.jwt or keyring.live():
        return None
    if config.environment is Environment.TEST:
        return TEST_KEY
    return generate_dev_key(os.urandom(32)) if config.environment is Environment.DEVELOPMENT else None


def door(spec: Upstream, clock: Clock) -> Door:
    """Open the way to an upstream."""
    return EchoUpstream(spec, clock) if spec.kind is Kind.ECHO else HttpUpstream(spec, clock)


async def opened(config: Config, folder: Path, environ: Mapping[str, str], clock: Clock) -> tuple[Database, Keyring]:
    """Open the database, and read its keys: what `check` and `runtime` need. Raises StoreError; then nothing is left open."""
    path = database_path(config.storage.url, folder, environ.get("STATE_DIRECTORY"))
    database = Database(path, durability=config.storage.durability, on_failure=config.storage.on_failure, clock=clock)
    await database.open()
    keyring = Keyring(ApiKeys(database), clock, random.SystemRandom())
    try:
        await keyring.load()
    except BaseException:
        await database.close()
        raise
    return database, keyring


async def runtime(config: Config, database: Database, keyring: Keyring, clock: Clock) -> tuple[Runtime, str | None]:
    """Put everything together. `check` comes first. Raises StoreError."""
    ledger = Ledger(database)
    recovered = await ledger.recover(clock.now_us())
    key = make_key(config, keyring)
    claims = Claims(database)
    await claims.recover()
    chance = random.Random(os.urandom(32))  # noqa: S311 - ids and jitter; no secret is drawn from it
    made = Runtime(snapshot(config, key, clock, None), clock, chance, ledger, Running(claims))
    made.keyring = keyring
    made.tracer = tracer(config)
    made.database = database
    made.memory = Memory(Conversations(database))
    made.once = Once(claims)
    metrics = made.metrics
    know(made)
    metrics.ledger_recovered(recovered)
    database.observe = lambda seconds, _: metrics.ledger_commit(seconds)
    database.observe_failure = metrics.ledger_failed
    return made, key


def know(runtime: Runtime) -> None:
    """Tell the metrics the names of the configuration, which alone may be labels."""
    config = runtime.snapshot.config
    runtime.metrics.know(config.models, config.upstreams)
