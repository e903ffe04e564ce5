"""Child processes that cannot outlive the bench: started, awaited until they answer, stopped."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends to a child when its parent dies, however it dies."""
START_LIMIT = 120.0
"""Seconds for a proxy to begin to answer; LiteLLM takes its time."""


class Trouble(Exception):  # noqa: N818 - what it is, not what Python calls it
    """The bench cannot go on, for the reason given."""


_PORTS = itertools.count(random.randrange(10000, 20000))


def free_port() -> int:
    """Find a port of loopback that nobody has, for a child that binds it later.

    It lies below the range that the kernel gives to outgoing connections (32768 and up): one of those, made in the
    meantime, would take it away.
    """
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Trouble("no port is free")


def environment(**more: str) -> dict[str, str]:
    """Say what children see of ours: no proxies, no tokens, nothing that changes what is measured."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **more}


def _bound_to_us() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Away from the terminal's process group, so that Ctrl-C reaches the bench alone, which then stops them in order.
    os.setsid()


def spawn(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` in the directory of `log`, where its output goes."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            cwd=log.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=_bound_to_us,  # noqa: PLW1509 - nothing runs in other threads here
        )


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `command` in `directory` to its end, or to ours."""
    return subprocess.run(
        command,
        cwd=directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_bound_to_us,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it: politely, then by force after 10 s."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return as soon as `port` takes a connection. Raises Trouble if `process` ends first, or takes two minutes."""
    limit = time.monotonic() + START_LIMIT
    while time.monotonic() < limit:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise Trouble(f"{process.args!r} ended with {process.returncode}:\n{_tail(log)}")
        time.sleep(0.002)
    raise Trouble(f"{process.args!r} does not listen:\n{_tail(log)}")


def wait_healthy(port: int, path: str, log: Path) -> None:
    """Return when GET `path` says 200. Raises Trouble when it does not in two minutes."""
    limit = time.monotonic() + START_LIMIT
    while time.monotonic() < limit:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
        time.sleep(0.05)
    raise Trouble(f"nothing healthy at :{port}{path}:\n{_tail(log)}")


def connections(port: int) -> int:
    """Ask the mock how many connections it was ever opened; this one included."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/connections")
        return int(connection.getresponse().read())


@contextlib.contextmanager
def mock(python: str, directory: Path) -> Iterator[int]:
    """Run the mock upstream; its port."""
    log = directory / "mock.log"
    process = spawn([python, "-m", "bench.mock"], log, environment())
    try:
        limit = time.monotonic() + 20
        while b"\n" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > limit:
                raise Trouble(f"the mock did not start:\n{_tail(log)}")
            time.sleep(0.02)
        port = int(log.read_text(encoding="utf-8").splitlines()[0].rpartition(":")[2])
        wait_healthy(port, "/health", log)
        yield port
    finally:
        stop(process)
