"""Notices that the configuration's files changed, however that was done: rewritten, renamed over, or a symlink turned.

It looks at them by name, twice a second, instead of asking the kernel to be told: inotify sees neither a symlink above the
file turn (Kubernetes mounts) nor changes on network file systems, and a descriptor of it goes stale with each rename.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from proxyd.daemon.reload import Reloader

POLL = 0.5
QUIET = 0.25
"""Seconds without a further change before the files are read: an editor or a copy may be at work."""
PATIENCE = 20
"""Times that is waited; a file that never rests is read all the same."""

State = tuple[int, int, int, int]


async def watch(reloader: Reloader) -> None:
    """Reload whenever a file is not as it was when it was last read, and rests. Goes on for ever."""
    while True:
        await asyncio.sleep(POLL)
        if not reloader.runtime.snapshot.config.watch:
            continue
        now = await _look(reloader)
        if now != reloader.seen:
            now = await _rested(now, reloader)
            # Gone is not changed: it may come back in a moment, and there is nothing to read until then.
            if now != reloader.seen and now[reloader.file] is not None:
                await reloader.reload("the file changed")


async def _rested(now: dict[Path, State | None], reloader: Reloader) -> dict[Path, State | None]:
    for _ in range(PATIENCE):
        await asyncio.sleep(QUIET)
        before, now = now, await _look(reloader)
        if before == now:
            break
    return now


async def _look(reloader: Reloader) -> dict[Path, State | None]:
    """How each file is. In a thread: a network file system may let us wait."""
    return await asyncio.to_thread(look, reloader.files)


def look(files: Iterable[Path]) -> dict[Path, State | None]:
    """Tell of each file what no way of changing it leaves as it was; symlinks are followed. None where there is none."""
    return {path: _state(path) for path in files}


def _state(path: Path) -> State | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
