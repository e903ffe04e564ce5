"""Stop a task at one of its waits, and look whether it has left something behind."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from pathlib import Path

    from proxyd.daemon.run import Daemon

MOST = 60
"""Nothing here waits so often."""


@dataclass
class Stop:
    """Which wait of the next exchange is cut short. `late`: what it waited for has come, and it has not heard of it."""

    at: int = 0
    late: bool = False
    waits: int = 0

    def over(self, work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Run the work, and stop it there."""

        async def run() -> Any:
            return await _Stopped(work, self)

        return run()


class _Stopped:
    def __init__(self, work: Coroutine[Any, Any, Any], stop: Stop) -> None:
        self.work, self.stop = work, stop

    def __await__(self) -> Generator[Any, None, Any]:
        """Do what a task does to a coroutine, with a cancellation in the right place."""
        step, value = self.work.send, None
        while True:
            try:
                waited = step(value)
            except StopIteration as end:
                return end.value
            self.stop.waits += 1
            here = self.stop.waits == self.stop.at
            if here and not self.stop.late and waited is not None:
                waited.cancel()
            step, value = self.work.send, None
            try:
                yield waited
            except BaseException as error:
                step, value = self.work.throw, error
            if here:
                step, value = self.work.throw, asyncio.CancelledError()


class House:
    """A daemon in the test's own loop, and what is to be found in it when nobody is there."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self.daemon, self.file = daemon, file
        self.runtime = daemon._runtime
        self.ended = 0
        self.runtime.observers.append(self._count)
        self.at_rest = set(self.runtime._tasks)

    def _count(self, _ending: object) -> None:
        self.ended += 1

    async def rest(self, ended: int) -> None:
        """Wait until so many exchanges have come to their end."""
        async with asyncio.timeout(10):
            while self.ended < ended or self.runtime.active or self.runtime._tasks - self.at_rest:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            await self.runtime.database.submit(lambda _: None)

    def occupied(self) -> bool:
        """Whether an exchange holds a place."""
        return any(gauge.level.running for gauge in self.runtime.allowances._gauges.values())

    def left(self) -> dict[str, object]:
        """What somebody has left behind."""
        runtime = self.runtime
        pools, healths = [door._pool for door in runtime.snapshot.doors.values()], runtime.snapshot.health.values()
        levels = [gauge.level for gauge in runtime.allowances._gauges.values()]
        accounts = [account for each in runtime.allowances.budgets._accounts.values() for account in each.values()]
        with sqlite3.connect(self.file) as link:
            states = {state for (state,) in link.execute("SELECT state FROM usage_events")}
        found = {
            "open rows": states & {"open"},
            "running": [level.running for level in levels if level.running],
            "held tokens": [level.held for level in levels if level.held],
            "held budget": [account.spent.held for account in accounts if account.spent.held],
            "waiting": runtime.allowances.waiting,
            "busy": [health._busy for health in healths if health._busy],
            "connections": sum(len(pool._members) - len(pool._idle) + pool._connecting + len(pool._waiting) for pool in pools),
            "keys": runtime.running._by_key,
            "ids": runtime.running._by_id,
            "turns": runtime.memory._turns,
        }
        return {name: what for name, what in found.items() if what}
