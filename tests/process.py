"""The real daemon as a child process, its log, and its ledger as any reader sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.origin import HANG

if TYPE_CHECKING:
    import socket

ROOT = Path(__file__).parent.parent
KEY = "tester-key-0123456789abcdef"
START = 30.0
"""Seconds that a start may take before a test gives up: a guard, not a target."""
_LISTENING = re.compile(r"listening on (https?://\S+)")
_OPS = re.compile(r"ops on (http://\S+)")
# Whatever a sound process never prints: each one is a bug that a green test would hide.
_ILL = ("Traceback (most recent call last)", "was never awaited", "exception was never retrieved", "Task was destroyed", "ResourceWarning")


def settings(**more: object) -> dict[str, object]:
    """A whole configuration but for upstreams and models: free ports and one key."""
    base: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "ops": {"listen": "127.0.0.1:0"},
        "environment": "test",
        "storage": {"url": "sqlite:///proxyd.db"},
        "auth": {"keys": [{"name": "tester", "key": KEY}]},
    }
    return {**base, **more}


# What a service manager does between fork and exec (sd_listen_fds(3)): descriptors from 3 on, and whom they are meant for.
_HAND_OVER = """
import os, sys
given = [int(fd) for fd in sys.argv[1].split(",")]
for place, fd in enumerate(given):
    os.dup2(fd, 200 + place)
for place, _ in enumerate(given):
    os.dup2(200 + place, 3 + place, inheritable=True)
    os.close(200 + place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given))}
os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A running command of proxyd; its output is collected line by line, both streams in one list.

    `handed` are listening sockets that it inherits by name, as from systemd.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        environ: dict[str, str] | None = None,
        handed: dict[str, socket.socket] | None = None,
    ) -> None:
        env = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
        self.lines: list[str] = []
        command = [sys.executable, "-X", "faulthandler", "-W", "default", "-m", "proxyd", *arguments]
        fds = [each.fileno() for each in (handed or {}).values()]
        if handed:
            env["LISTEN_FDNAMES"] = ":".join(handed)
            command = [sys.executable, "-S", "-c", _HAND_OVER, ",".join(map(str, fds)), *command]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, **(environ or {})},
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def log(self) -> str:
        """All that was printed so far."""
        return "\n".join(list(self.lines))

    def expect(self, pattern: re.Pattern[str], deadline: float = START) -> re.Match[str]:
        """Wait until the pattern was printed; fails with the whole output when it is not."""
        until = time.monotonic() + deadline
        while True:
            ended = self.process.poll() is not None
            if ended:
                self._thread.join(HANG)
            if found := pattern.search(self.log):
                return found
            if ended or time.monotonic() > until:
                raise AssertionError(f"{pattern.pattern!r} was not printed (exit {self.process.poll()}):\n{self.log}")
            time.sleep(0.005)

    def wait(self, deadline: float = START) -> int:
        """Wait for its end, and return the exit code."""
        code = self.process.wait(deadline)
        self._thread.join(HANG)
        return code

    def end(self) -> None:
        """Be rid of it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(HANG)
        self._thread.join(HANG)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Daemon:
    """`proxyd serve` over a folder of its own, which outlives each run."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, object] | str,
        environ: dict[str, str] | None = None,
        handed: dict[str, socket.socket] | None = None,
    ) -> None:
        self.folder = folder
        self.file = folder / "config.yaml"
        self.database = folder / "proxyd.db"
        self.environ = environ
        self.handed = handed
        self.child: Child | None = None
        self.url = self.ops = ""
        self.write(config)

    def write(self, config: dict[str, object] | str) -> None:
        """Write the configuration. JSON is YAML."""
        self.file.write_text(config if isinstance(config, str) else json.dumps(config, indent=1), "utf-8")

    def start(self) -> Daemon:
        """Start it, and return once it listens."""
        self.child = Child(["serve", "-c", str(self.file)], self.folder, self.environ, self.handed)
        try:
            self.url = self.child.expect(_LISTENING)[1].rstrip("/")
            self.ops = self.child.expect(_OPS)[1].rstrip("/")
        except AssertionError:
            self.child.end()
            raise
        return self

    @property
    def log(self) -> str:
        """What the running (or last) process printed."""
        return self.child.log if self.child else ""

    @property
    def pid(self) -> int:
        """The process."""
        assert self.child is not None
        return self.child.process.pid

    def stop(self) -> None:
        """SIGTERM, as systemd does; it must leave with 0 and without a sign of illness."""
        assert self.child is not None
        child = self.child
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
        try:
            code = child.wait()
        finally:
            child.end()
        ill = [line for line in child.lines if any(sign in line for sign in _ILL)]
        assert not ill, f"the daemon complained:\n{child.log}"
        assert code == 0, f"exit {code}:\n{child.log}"

    def kill(self) -> None:
        """SIGKILL: no last word."""
        assert self.child is not None
        self.child.process.kill()
        self.child.end()

    def rows(self, model: str | None = None) -> list[dict]:
        """The ledger, oldest attempt first, read as another process would."""
        link = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=HANG)
        try:
            link.row_factory = sqlite3.Row
            found = link.execute("SELECT * FROM usage_events WHERE ?1 IS NULL OR model = ?1 ORDER BY id, attempt", (model,))
            return [dict(row) for row in found]
        finally:
            link.close()

    def settled(self, model: str, count: int = 1) -> list[dict]:
        """Wait until `count` rows of a model are there and none is open. For endings that no client is told of."""
        until = time.monotonic() + HANG
        while True:
            rows = self.rows(model)
            if len(rows) >= count and all(row["state"] != "open" for row in rows):
                return rows
            if time.monotonic() > until:
                raise AssertionError(f"not settled: {rows}\n{self.log}")
            time.sleep(0.005)

    def memory(self) -> int:
        """Resident bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def damage(database: Path) -> None:
    """Make a database of a daemon that has ended no database any more."""
    for beside in ("-wal", "-shm"):  # there still, where a reader outlived the daemon: it would hide what is damaged
        database.with_name(database.name + beside).unlink(missing_ok=True)
    database.write_bytes(b"notes" * 1000)
