"""The process as its manager has it: what holds its sockets, what hears from it, and clients that tidy up after themselves."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.e2e.client import Visit
from tests.origin import HANG
from tests.process import Daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(HANG)
        self.heard: list[str] = []

    def until(self, line: str) -> list[str]:
        """Read datagrams until one holds this line; its lines."""
        while True:
            lines = self._socket.recv(4096).decode().split("\n")
            self.heard.append("\n".join(lines))
            if any(each.startswith(line) for each in lines):
                return lines

    def empty(self) -> None:
        """Forget what was said so far."""
        while not self.silent(0.0):
            pass

    def silent(self, seconds: float) -> bool:
        """Whether nothing more was said for so long."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(4096)
        except (TimeoutError, BlockingIOError):
            return True
        finally:
            self._socket.settimeout(HANG)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """A listening socket, as systemd holds it."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as made:
        yield made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons of one folder, one after the other."""
    running: list[Daemon] = []

    def begin(config: dict[str, object], **more: object) -> Daemon:
        running.append(Daemon(tmp_path, config, **more))  # type: ignore[arg-type]
        return running[-1].start()

    yield begin
    for daemon in running:
        if daemon.child is not None and daemon.child.process.poll() is None:
            daemon.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Visit]]]:
    """Open connections that are closed at the end."""
    visits: list[Visit] = []

    async def visit(url: str, **more: int) -> Visit:
        visits.append(await Visit.open(url, **more))
        return visits[-1]

    yield visit
    for each in visits:
        await each.leave()
