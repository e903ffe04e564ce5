"""Faults of disk and clock in a process that runs: the preload of faults.c, and its handles."""

from __future__ import annotations

import contextlib
import mmap
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash import compiler

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACES = ("write", "sync", "open", "read", "sync_delay_us", "clock_ns")


class Faults:
    """Handles of one process, which is started with `environ`; `prefix` is how the paths begin whose disk may fail."""

    def __init__(self, folder: Path, prefix: Path) -> None:
        built, control = folder / "faults.so", folder / "faults"
        command = [compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", built, Path(__file__).with_name("faults.c"), "-ldl"]
        subprocess.run(command, check=True)
        control.write_bytes(bytes(64))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 64)
        self.environ = {"LD_PRELOAD": str(built), "FAULTS": str(control), "FAULTS_PATH": str(prefix)}

    def set(self, **values: int) -> None:
        """From now on; 0 is no fault."""
        for name, value in values.items():
            struct.pack_into("q", self._map, 8 * _PLACES.index(name), value)

    @contextlib.contextmanager
    def failing(self, **values: int) -> Iterator[None]:
        """Fail for a while."""
        self.set(**values)
        yield
        self.set(**dict.fromkeys(values, 0))
