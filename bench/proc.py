"""What a process and its children cost, read from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TICK = 1.0 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds used so far, and resident bytes now."""

    cpu: float
    rss: int


def _stat(pid: int) -> list[str]:
    """Read the fields of /proc/PID/stat from `state` (the third) on; the name before it may hold spaces (proc(5))."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return text[text.rindex(")") + 2 :].split()


def tree(root: int) -> list[int]:
    """List `root` and its living descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cost(pids: list[int]) -> Cost:
    """Add up what `pids` cost, threads and awaited children included; CPU to 10 ms. Raises OSError if one is gone."""
    cpu, rss = 0.0, 0
    for pid in pids:
        fields = _stat(pid)
        # utime stime cutime cstime are fields 14-17, rss is 24, of proc(5)'s numbering, which starts at pid = 1
        cpu += sum(int(ticks) for ticks in fields[11:15]) * TICK
        rss += int(fields[21]) * PAGE
    return Cost(cpu, rss)


def descriptors(pid: int) -> int:
    """Count what it has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def machine_idle() -> tuple[int, int]:
    """Idle ticks and all ticks of the machine so far: how much of it was free tells whether a figure can be trusted."""
    with Path("/proc/stat").open(encoding="utf-8") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
