"""Where exchanges wait for a place on a route: callers take turns, and each caller's own come in order."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.rules.ratelimit import Refused

    Attempt = Callable[[], Refused | None]
    """Takes a place if there is one: None. Raises ProxyError where there is another reason why not."""


@dataclass(slots=True, eq=False)
class _Waiter:
    attempt: Attempt
    answer: asyncio.Future[Refused | None]


@dataclass(slots=True)
class WaitingRooms:
    """All routes'. `call` whenever a place may have become free."""

    _rooms: dict[str, _Room] = field(default_factory=dict)
    """By route; only where somebody waits."""
    _shut: ProxyError | None = None

    @property
    def size(self) -> int:
        """Exchanges that wait."""
        return sum(room.size for room in self._rooms.values())

    def full(self, route: str, most: int) -> bool:
        """Whether so many wait at a route already."""
        room = self._rooms.get(route)
        return (0 if room is None else room.size) >= most

    async def wait(self, route: str, caller: str, attempt: Attempt, seconds: float) -> Refused | None:
        """Wait for a turn, at most so long; None when it came. Raises TimeoutError, and what the attempt or `shut` raises."""
        if self._shut is not None:
            raise self._shut
        room = self._rooms.setdefault(route, _Room())
        try:
            return await room.wait(caller, attempt, seconds)
        finally:
            if not room.size and self._rooms.get(route) is room:  # a new one may stand there, with others in it
                del self._rooms[route]

    def call(self) -> None:
        """Let in who can go."""
        for room in list(self._rooms.values()):
            room.call()

    def shut(self, error: ProxyError) -> None:
        """Send all away with an error, and whoever comes from now on."""
        self._shut = error
        for room in self._rooms.values():
            room.shut(error)


@dataclass(slots=True)
class _Room:
    """One route's."""

    size: int = 0
    _lines: OrderedDict[str, deque[_Waiter]] = field(default_factory=OrderedDict)

    async def wait(self, caller: str, attempt: Attempt, seconds: float) -> Refused | None:
        waiter = _Waiter(attempt, asyncio.get_running_loop().create_future())
        self._lines.setdefault(caller, deque()).append(waiter)
        self.size += 1
        try:
            async with asyncio.timeout(seconds):
                return await waiter.answer
        except TimeoutError:
            if waiter.answer.done() and not waiter.answer.cancelled():
                return waiter.answer.result()  # the turn came in the last moment
            raise
        finally:
            self._remove(caller, waiter)

    def call(self) -> None:
        """Let in who can go: one of each caller in turn, until nobody can."""
        blocked = 0
        while blocked < len(self._lines):
            caller, line = next(iter(self._lines.items()))
            self._lines.move_to_end(caller)
            waiter = line[0]
            if waiter.answer.done():  # its client has left just now
                self._remove(caller, waiter)
                blocked = 0
                continue
            try:
                refused = waiter.attempt()
            except ProxyError as error:
                waiter.answer.set_exception(error)
            else:
                if refused is not None and refused.reason == "concurrency":
                    blocked += 1
                    continue
                waiter.answer.set_result(refused)
            self._remove(caller, waiter)
            blocked = 0

    def shut(self, error: ProxyError) -> None:
        """Send all away with an error."""
        for line in self._lines.values():
            for waiter in line:
                if not waiter.answer.done():
                    waiter.answer.set_exception(error)
                    waiter.answer.exception()  # its client may have left, and nobody asks

    def _remove(self, caller: str, waiter: _Waiter) -> None:
        line = self._lines.get(caller)
        if line is None or waiter not in line:
            return
        line.remove(waiter)
        self.size -= 1
        if not line:
            del self._lines[caller]
