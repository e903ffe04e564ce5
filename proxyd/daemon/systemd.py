"""How proxyd and its supervisor talk: readiness, the watchdog, and sockets handed over. Silent where there is no systemd."""

from __future__ import annotations

import logging
import os
import re
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
PATIENCE = 1.0  # seconds that a change of state may wait for a full queue; the manager empties it in microseconds

_log = logging.getLogger(__name__)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Notifier:
    """Tells the supervisor how the daemon is, by sd_notify(3). Without $NOTIFY_SOCKET every method does nothing.

    Each method returns whether the supervisor was told. None raises: a supervisor that does not listen must not stop
    what it supervises. `close` when done.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket = _connected(environ.get("NOTIFY_SOCKET", ""))

    def ready(self, status: str = "") -> bool:
        """Say that start-up, or a reload begun with `reloading`, is finished. `status` is for people."""
        return self._tell("READY=1", *_status(status), patience=PATIENCE)

    def reloading(self, monotonic_us: int, status: str = "") -> bool:
        """Say that a reload begins; `ready` must follow, whether it went well or not.

        `monotonic_us` is CLOCK_MONOTONIC in microseconds. It must be in the same datagram: with Type=notify-reload
        systemd 253 and later wait for one that is not older than their own signal.
        """
        return self._tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}", *_status(status), patience=PATIENCE)

    def stopping(self, status: str = "") -> bool:
        """Say that the daemon drains and will end."""
        return self._tell("STOPPING=1", *_status(status), patience=PATIENCE)

    def watchdog(self) -> bool:
        """Say that the event loop turns. Call it from the loop, every `watchdog_interval`; it never waits."""
        return self._tell("WATCHDOG=1")

    def status(self, text: str) -> bool:
        """Show a line in `systemctl status`, or none when empty; it never waits."""
        return self._tell(*_status(text) or ["STATUS="])

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for at least so many more seconds for the start, reload or stop that is going on; ask again before they end."""
        return self._tell(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1e6))}")

    def close(self) -> None:
        """Close the socket; from now on nothing is told."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str, patience: float = 0.0) -> bool:
        """Send one datagram. systemd works through each as a whole, so what belongs together goes together."""
        if self._socket is None:
            return False
        try:
            self._socket.settimeout(patience)
            self._socket.send("\n".join(lines).encode("utf-8", "replace"), socket.MSG_NOSIGNAL)
        except OSError as error:  # the queue is full, or the supervisor is gone
            _log.warning("the supervisor could not be told %s: %s", lines[0], error)
            return False
        return True


def _connected(address: str) -> socket.socket | None:
    if not address:
        return None
    if address[0] not in "/@":  # vsock:… is for whole virtual machines
        _log.warning("NOTIFY_SOCKET is neither a path nor abstract, so the supervisor is told nothing: %r", address)
        return None
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        made.close()
        _log.warning("NOTIFY_SOCKET cannot be reached, so the supervisor is told nothing: %s", error)
        return None
    return made


def _status(text: str) -> list[str]:
    """Make the STATUS= line. A line break in it would begin another variable."""
    return [f"STATUS={_CONTROL.sub(' ', text)}"] if text else []


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds between two calls of `Notifier.watchdog`: half of what the unit's WatchdogSec= allows; None when it is not set.

    $WATCHDOG_PID says for which process it is meant (sd_watchdog_enabled(3)). Raises ValueError when it is no number.
    """
    allowed = environ.get("WATCHDOG_USEC")
    if not allowed or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not _is_number(allowed) or int(allowed) == 0:
        raise ValueError(f"WATCHDOG_USEC is not a number of microseconds: {allowed!r}")
    return int(allowed) / 2e6


def listen_fds(environ: Mapping[str, str]) -> dict[str, socket.socket]:
    """Take over the listening sockets that systemd opened, by name (FileDescriptorName=, else the socket unit's name).

    Empty when there are none, or when they are meant for another process. Call it once: each call would make new objects
    for the same descriptors. Raises ValueError for two of one name, and for what is not a listening stream socket
    (Accept=yes, ListenDatagram=), so that nothing that was handed over is silently left deaf.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):  # inherited from a parent (sd_listen_fds(3))
        return {}
    count = environ.get("LISTEN_FDS", "0")
    if not _is_number(count) or int(count) > 1000:
        raise ValueError(f"LISTEN_FDS is not a number of descriptors: {count!r}")
    given = environ.get("LISTEN_FDNAMES")
    names = given.split(":") if given else ["unknown"] * int(count)
    if len(names) != int(count):
        raise ValueError(f"LISTEN_FDNAMES has {len(names)} names for {count} descriptors")
    sockets: dict[str, socket.socket] = {}
    for fd, name in enumerate(names, FIRST_FD):
        if name in sockets:
            raise ValueError(f"two sockets were handed over as {name!r}: give each its own FileDescriptorName=")
        sockets[name] = _listening(fd, name)
    return sockets


def _listening(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
        listens = taken.type == socket.SOCK_STREAM and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ValueError(f"descriptor {fd} ({name!r}) that was handed over is no socket: {error}") from error
    if not listens:
        taken.detach()
        raise ValueError(f"descriptor {fd} ({name!r}) that was handed over does not listen for streams")
    return taken


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
