"""The operator's port: never the clients'. It answers only to its own names, so that no web page can reach it by DNS rebinding."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from proxyd import __version__
from proxyd.errors import ProxyError
from proxyd.flow.admit import administrator
from proxyd.flow.tally import running
from proxyd.metrics import CONTENT_TYPE
from proxyd.web import database, keys
from proxyd.web.app import App, Row, answer_ready, loading
from proxyd.web.document import tell

if TYPE_CHECKING:
    from aiohttp import web

    from proxyd.flow.runtime import Runtime
    from proxyd.web.connection import ClientConnection
    from proxyd.web.downstream import Downstream


def health(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Say that the process is alive, and what the last reload came to."""
    message = "" if runtime.reloaded is None else runtime.reloaded.message
    tell(down, {"status": "ok", "config": loading(runtime, message)})


def ready(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Say whether traffic may come, and which models are in the way."""
    answer_ready(down, runtime.unready(names=True))


async def reload(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Take the configuration's file as it is now: 200, and what changed; 422, and what is wrong with it."""
    if runtime.reload is None:
        raise ProxyError("not_implemented", "This proxyd runs without a configuration file.")
    done = await runtime.reload("asked for")
    changes = {"live": [asdict(each) for each in done.changes.live], "waiting": [asdict(each) for each in done.changes.waiting]}
    document: dict[str, object] = {"ok": done.ok, **changes, "warnings": done.warnings}
    if not done.ok:
        error = {"message": done.message, "type": "invalid_request_error", "param": None, "code": "config_invalid"}
        document |= {"mistakes": done.problems, "error": error}
    tell(down, document, status=200 if done.ok else 422)


def state(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Show the upstreams as they are now, what runs, what is kept to be sent again, and where the database is."""
    active, reasons = list(runtime.active.values()), runtime.unready(names=True)
    document = {
        "version": __version__,
        "pid": os.getpid(),
        "started_at": runtime.started_at,
        "now": runtime.clock.now_us(),
        "ready": not reasons,
        "reasons": reasons,
        "database": str(runtime.database.path.resolve()),
        "ledger_queue": runtime.ledger.backlog,
        "upstreams": {name: {**facts, **runtime.tally.upstream(name)} for name, facts in runtime.upstream_states().items()},
        "active": len(active),
        "totals": runtime.tally.sums(active),
        "running": running(active, runtime.clock.monotonic()),
        "idempotency": runtime.running.describe(),
    }
    tell(down, document)


async def metrics(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Tell all metrics. Ten thousand series take ten milliseconds: streams run between the pieces.

    In a thread they would wait for the interpreter at each of their sockets, up to 5 ms each time.
    """
    runtime.measure()
    told = []
    for piece in runtime.metrics.pieces():
        told.append(piece)
        await asyncio.sleep(0)
    down.reply(200, [(b"Content-Type", CONTENT_TYPE.encode())], b"".join(told))


OPS: tuple[Row, ...] = (
    Row("GET", "/health", health, "alive"),
    Row("GET", "/ready", ready, "may take traffic"),
    Row("POST", "/reload", reload, "apply the configuration's file as it is now"),
    Row("GET", "/metrics", metrics, "for Prometheus"),
    Row("GET", "/state", state, "upstreams and running exchanges"),
    Row("GET", "/keys", keys.listed, "the keys of the database"),
    Row("GET", "/keys/", keys.shown, "one caller's keys"),
    Row("POST", "/keys", keys.create, "make a key"),
    Row("POST", "/keys/", keys.change, "rotate a caller's key: /keys/NAME/rotate"),
    Row("DELETE", "/keys/", keys.revoke, "end a caller's keys"),
    Row("POST", "/db/prune", database.prune, "delete what is past its retention"),
    Row("POST", "/usage/reprice", database.priced_again, "price history again"),
    Row("POST", "/db/vacuum", database.vacuum, "give the database's free room back to the disk"),
)


OPEN = frozenset({"/health", "/ready"})
"""What needs no key anywhere: supervisors and balancers ask it."""


class OpsApp(App):
    """Serves the operator's port. `guarded`: other machines reach it, so whoever asks must have an admin key."""

    elsewhere = "This is the operator's port, with /metrics and the like; clients call the other one (`listen`)."

    def __init__(self, runtime: Runtime, host: str, *, guarded: bool) -> None:
        super().__init__(runtime, OPS)
        self._guarded = guarded
        names = "|".join(re.escape(name) for name in ("localhost", "127.0.0.1", "[::1]", host, f"[{host}]"))
        self._names = re.compile(rf"(?:{names})(?::\d+)?", re.IGNORECASE)

    def check(self, request: web.BaseRequest) -> None:
        """Refuse other names than its own (CVE-2024-28224: DNS rebinding against Ollama), other sites' pages, and strangers."""
        super().check(request)
        # Where a key is needed a rebound page gets nowhere, and the names by which others reach us are not known.
        if not self._guarded and not self._names.fullmatch(request.headers.get("Host", "")):
            raise ProxyError("misdirected_request", "This port answers only to localhost and its own address.")
        origin = request.headers.get("Origin")
        # A page of another site may send a POST here without asking; browsers say where it came from (RFC 6454 7.3).
        if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
            raise ProxyError("forbidden_origin", "This port takes no requests from pages of other sites.")
        # Nor does every request of a page have an Origin; Fetch Metadata (W3C) says of all where they come from.
        if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            raise ProxyError("forbidden_origin", "This port takes no requests from pages of other sites.")
        if self._guarded and request.rel_url.raw_path not in OPEN:
            administrator(self._runtime, request.raw_headers, cast("ClientConnection", request.protocol).address)
