"""Where clients come in: an address of our own, or a socket that the supervisor holds for us."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxyd.daemon.tls import HANDSHAKE_SECONDS

if TYPE_CHECKING:
    import ssl

    from proxyd.web.connection import Listener

BACKLOG = 128
"""Connections the kernel holds before they are accepted. A longer queue melts the loop when descriptors run out (cpython#151615)."""
HANDED_BACKLOG = 4096
"""The same for a socket that outlives us: who comes while proxyd restarts waits there (the kernel caps it at net.core.somaxconn)."""
_WHY_NOT = {
    errno.EADDRINUSE: ("another program listens there", "find it with `ss -ltnp 'sport = :{port}'`, or choose another port"),
    errno.EACCES: ("ports under 1024 are not for this user", "use the socket unit (systemd/README.md), or a port from 1024 up"),
}


@dataclass(frozen=True, slots=True)
class Port:
    """A listening address. `close` stops accepting; connections that were accepted live on."""

    listener: Listener
    server: asyncio.Server
    url: str
    handed: bool
    """Somebody else holds the socket too: who connects while we do not accept waits for our successor."""
    file: Path | None = None
    """The Unix socket that we made, and take away."""

    def close(self) -> None:
        """Accept no more."""
        self.server.close()
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink()


async def open_port(address: str, listener: Listener, handed: socket.socket | None, context: ssl.SSLContext | None = None) -> Port:
    """Listen on the configuration's address, or on the socket that was handed over in its place. Raises OSError."""
    loop = asyncio.get_running_loop()
    # The timeout may only be given together with TLS.
    tls: dict[str, Any] = {} if context is None else {"ssl": context, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
    if handed is not None:
        handed.setblocking(False)
        make = loop.create_unix_server if handed.family == socket.AF_UNIX else loop.create_server
        server = await make(listener, sock=handed, backlog=BACKLOG, **tls)
        handed.listen(HANDED_BACKLOG)  # asyncio accepts as many at once as it was told, and has told the kernel the same
        return Port(listener, server, _url(handed.getsockname(), context), handed=True)
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        _unlink_stale(path)
        server = await loop.create_unix_server(listener, str(path), backlog=BACKLOG, **tls)
        return Port(listener, server, address, handed=False, file=path)
    host, _, port = address.rpartition(":")
    server = await loop.create_server(listener, host.strip("[]") or None, int(port), backlog=BACKLOG, reuse_address=True, **tls)
    return Port(listener, server, _url(server.sockets[0].getsockname(), context), handed=False)


def why_not(address: str, error: OSError) -> tuple[str, str]:
    """What keeps an address from being listened on, and what to do."""
    why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror or str(error)
    if address.startswith("unix:"):
        return why, "the folder must be there, for this user to write, and the path be free or a socket's"
    says, advice = _WHY_NOT.get(error.errno or 0, (why, "write an address of this machine, or 0.0.0.0 for all of them"))
    return says, advice.format(port=address.rpartition(":")[2])


def address_of(handed: socket.socket) -> str:
    """The address of a socket as the configuration would write it."""
    name = handed.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return f"unix:{name.decode() if isinstance(name, bytes) else name}"


def _url(name: tuple[str, int] | str | bytes, context: ssl.SSLContext | None) -> str:
    if isinstance(name, tuple):
        scheme = "http" if context is None else "https"
        return f"{scheme}://[{name[0]}]:{name[1]}" if ":" in name[0] else f"{scheme}://{name[0]}:{name[1]}"
    return f"unix:{name.decode() if isinstance(name, bytes) else name}"


def _unlink_stale(path: Path) -> None:
    """Remove the socket file that an earlier run left; anything else at that path stays, and binding says so."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
