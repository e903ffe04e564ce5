"""How commands talk to the running daemon: over its ops port."""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxyd.cli import Failed
from proxyd.config.address import parse_address
from proxyd.config.load import load_file
from proxyd.config.mistakes import ConfigError
from proxyd.config.schema import Ops
from proxyd.config.tree import Mapping, Scalar, grow

if TYPE_CHECKING:
    from collections.abc import Mapping as Map
    from pathlib import Path

    from proxyd.config.schema import Config

TIMEOUT = 30.0
"""Seconds for one answer."""
QUICK = 3.0
"""Seconds for an answer that the daemon has at hand."""
MOST = 16 * 1024 * 1024
"""Bytes of an answer that are read."""


class Unreachable(Failed):
    """No daemon answers there."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the daemon said."""

    status: int
    document: dict[str, Any]

    @property
    def error(self) -> str:
        """The message of an error."""
        told = self.document.get("error")
        return str(told.get("message")) if isinstance(told, dict) else f"the daemon answered with status {self.status}"


def address(path: Path, environ: Map[str, str]) -> str:
    """Find the ops port's address in a configuration, even in one that has mistakes elsewhere. Raises Failed if it is off."""
    try:
        listen = load_file(path, environ).ops.listen
    except ConfigError:
        listen = _written(path)
    if listen is None:
        raise Failed("ops.listen is off: without the ops port there is no way to ask the daemon")
    return listen


def ask(config: Config, method: str, path: str, body: object = None, timeout: float = QUICK) -> dict[str, Any]:
    """Ask the daemon of a configuration, with the admin key of the environment; `timeout` in seconds is for each silence.

    Raises Failed, and Unreachable when none answers.
    """
    listen = config.ops.listen
    if listen is None:
        raise Unreachable("ops.listen is off: without the ops port there is no way to ask the daemon")
    reply = _exchange(_Connection(listen, timeout), method, path, body, os.environ.get("PROXYD_ADMIN_KEY"))
    if reply.status >= 400:
        raise Failed(f"the proxyd at {listen} says: {reply.error.rstrip('.')}")
    return reply.document


def call(listen: str, method: str, path: str, body: object = None, key: str | None = None) -> Reply:
    """Ask the daemon. Raises Unreachable when none answers, Failed for an answer that is no JSON."""
    return _exchange(_Connection(listen, TIMEOUT), method, path, body, key)


def _exchange(connection: _Connection, method: str, path: str, body: object, key: str | None) -> Reply:
    headers = {"Host": "localhost"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body)
    if data is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        document = json.loads(answer.read(MOST))
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or error
        raise Unreachable(f"no daemon answers on {connection.listen} (ops.listen): {why}; is `proxyd serve` running?") from error
    except ValueError as error:
        raise Failed(f"what answers on {connection.listen} is no proxyd") from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise Failed(f"what answers on {connection.listen} is no proxyd")
    return Reply(answer.status, document)


def _written(path: Path) -> str | None:
    """What stands in a bad file, as far as it can be read; else the default, which is what most have."""
    default = Ops().listen
    try:
        root, _ = grow(path.read_text("utf-8", "replace"), str(path))
    except OSError:
        return default
    ops = root.get("ops") if isinstance(root, Mapping) else None
    listen = ops.get("listen") if isinstance(ops, Mapping) else None
    if not isinstance(listen, Scalar):
        return default
    try:
        parse_address(listen.text)
    except ValueError:
        return default
    return listen.text


class _Connection(http.client.HTTPConnection):
    """HTTP over TCP or a Unix socket; no proxy of the environment has a say. `timeout` in seconds is for each silence."""

    def __init__(self, listen: str, timeout: float) -> None:
        self.listen = listen
        place = parse_address(listen)
        # What listens everywhere is reached here.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(place.host, place.host)
        super().__init__(host or "localhost", place.port, timeout=timeout)
        self._path = place.path

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
