"""Upstreams that are asked how they are before a client finds out: `upstreams.x.probe`. What they say goes to their breaker."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from proxyd.config.schema import Probe
    from proxyd.flow.runtime import Runtime, Snapshot

LOOK = 1.0
"""Seconds between two looks at the configuration, which may have changed."""

log = logging.getLogger(__name__)


async def probe(runtime: Runtime) -> None:
    """Ask each upstream that is to be asked, at its own pace. Goes on for ever."""
    due: dict[str, float] = {}
    while True:
        due = await _round(runtime, due)
        now = runtime.clock.monotonic()
        await asyncio.sleep(min([LOOK, *(max(0.0, moment - now) for moment in due.values())]))


async def _round(runtime: Runtime, due: dict[str, float]) -> dict[str, float]:
    """Ask those whose time has come; returns when each comes next. Between two rounds no snapshot is held on to."""
    snapshot, now = runtime.snapshot, runtime.clock.monotonic()
    wanted = {name: spec.probe for name, spec in snapshot.config.upstreams.items() if spec.probe is not None}
    ripe = {name: spec for name, spec in wanted.items() if due.get(name, 0.0) <= now}
    await asyncio.gather(*(_ask(runtime, snapshot, name, spec) for name, spec in ripe.items()))
    return {name: now + spec.every if name in ripe else due[name] for name, spec in wanted.items()}


async def _ask(runtime: Runtime, snapshot: Snapshot, name: str, spec: Probe) -> None:
    health = snapshot.health[name]
    ticket = health.begin_probe(runtime.clock.monotonic())
    if ticket is None:
        return  # it rests: the breaker says when to try again
    problem: str | None = None
    try:
        async with asyncio.timeout(spec.timeout):
            status = await snapshot.doors[name].probe(spec.path)
        if status >= 400 and status != 429:  # a limit says that somebody is there
            problem = f"it answered with status {status}"
    except TimeoutError:
        problem = f"it did not answer within {spec.timeout:g} seconds"
    except ProxyError as error:
        problem = f"{error.code}: {error.message}"
    before = health.probe
    health.probed(ticket, runtime.clock.monotonic(), problem)
    if problem is not None and before in {None, "ok"}:
        log.warning("the upstream %s fails its probe: %s", name, problem)
    elif problem is None and before not in {None, "ok"}:
        log.warning("the upstream %s answers its probe again", name)
