"""The operator's port: never the clients'. It answers only to its own names, so that no web page can reach it by DNS rebinding."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import orjson

from proxyd.errors import ProxyError
from proxyd.metrics import CONTENT_TYPE
from proxyd.web.app import JSON, App, Row, health, ready

if TYPE_CHECKING:
    from aiohttp import web

    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream


def state(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Show the upstreams as they are now, what runs, and what is kept to be sent again."""
    document = {"upstreams": runtime.upstream_states(), "active": len(runtime.active), "idempotency": runtime.running.describe()}
    down.reply(200, [JSON], orjson.dumps(document))


async def metrics(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Tell all metrics. Thousands of series take milliseconds: in a thread, so that no stream waits for them."""
    runtime.measure()
    text = await asyncio.to_thread(runtime.metrics.render)
    down.reply(200, [(b"Content-Type", CONTENT_TYPE.encode())], text)


OPS: tuple[Row, ...] = (
    Row("GET", "/health", health, "alive"),
    Row("GET", "/ready", ready, "may take traffic"),
    Row("GET", "/metrics", metrics, "for Prometheus"),
    Row("GET", "/state", state, "upstreams and running exchanges"),
)


class OpsApp(App):
    """Serves the operator's port."""

    def __init__(self, runtime: Runtime, host: str) -> None:
        super().__init__(runtime, OPS)
        names = "|".join(re.escape(name) for name in ("localhost", "127.0.0.1", "[::1]", host, f"[{host}]"))
        self._names = re.compile(rf"(?:{names})(?::\d+)?", re.IGNORECASE)

    def check(self, request: web.BaseRequest) -> None:
        """Refuse other names than its own (CVE-2024-28224: DNS rebinding against Ollama)."""
        super().check(request)
        if not self._names.fullmatch(request.headers.get("Host", "")):
            raise ProxyError("invalid_request", "This port answers only to localhost and its own address.", status=421)
