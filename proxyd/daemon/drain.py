"""The end of a process that nobody should notice: no new work, and what runs may finish."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxyd.daemon.listen import Port
    from proxyd.daemon.systemd import Notifier
    from proxyd.flow.runtime import Runtime

LAST_CALL = 1.0
"""Seconds that who was let in before a handed-over socket was left has for the request that is on its way."""
TURNS = 10
"""Turns of the event loop until a connection that was accepted is one of the listener's: asyncio takes three."""
LOOK = 0.02
"""Seconds between two looks whether all is done."""
AFTER = 30.0
"""Seconds that the supervisor should grant beyond `streams.drain`: counting, and the last commits."""

log = logging.getLogger(__name__)


async def drain(runtime: Runtime, ports: Sequence[Port], notifier: Notifier, hurry: asyncio.Event) -> None:
    """Turn new work away and let the rest finish, for up to `streams.drain` seconds or until `hurry`; what still runs then is broken off.

    A socket of our own stays open and answers 503, so that balancers and clients are told. One that somebody else holds is
    left: who connects from now on waits there for our successor.
    """
    limit = runtime.snapshot.config.streams.drain
    runtime.stopping = True
    notifier.stopping(_status(runtime))
    notifier.extend_timeout(limit + AFTER)
    log.info(_status(runtime))
    deadline = runtime.clock.monotonic() + limit
    handed = [port for port in ports if port.handed]
    for port in handed:
        port.close()
    for port in ports:
        port.listener.close_idle()
    # "No new work" begins when the last one who got in has asked: a restart with a held socket turns nobody away.
    if handed:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await _until(lambda: not any(port.listener.expected for port in handed), runtime, hurry, min(LAST_CALL, limit))
    runtime.draining = True
    status = ""
    while not hurry.is_set() and _busy(runtime, ports) and runtime.clock.monotonic() < deadline:
        if status != (status := _status(runtime)):
            notifier.status(status)
        await _until(lambda: not _busy(runtime, ports), runtime, hurry, 1.0)
    if runtime.active:
        log.warning("%d exchanges are broken off", len(runtime.active))
    _cut(runtime)


def _cut(runtime: Runtime) -> None:
    """Break off what still runs. Each exchange settles its row and tells its client."""
    runtime.cut = _too_late()
    runtime.allowances.turn_away(runtime.cut)  # first: what is broken off frees places, and nobody is to be let in any more
    for ex in list(runtime.active.values()):
        if ex.answer is not None and not ex.answer.over:
            ex.answer.fail(_too_late())  # one for each: it takes the id of the upstream's answer
        elif ex.task is not None:
            ex.task.cancel()  # between two attempts; others hang on their client's connection, and end with it


def _too_late() -> ProxyError:
    return ProxyError("draining", "proxyd shut down before the answer was complete.", retry_after=1)


async def _until(done: Callable[[], bool], runtime: Runtime, hurry: asyncio.Event, limit: float) -> None:
    deadline = runtime.clock.monotonic() + limit
    while not done() and not hurry.is_set() and runtime.clock.monotonic() < deadline:  # noqa: ASYNC110 - many small things end this
        await asyncio.sleep(LOOK)


def _busy(runtime: Runtime, ports: Sequence[Port]) -> bool:
    return bool(runtime.active) or any(port.listener.busy for port in ports)


def _status(runtime: Runtime) -> str:
    return f"draining: {len(runtime.active)} running"
