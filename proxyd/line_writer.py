"""How the log's lines get out: from a thread of its own, so that no loop ever stalls for a full pipe."""

from __future__ import annotations

import logging
import os
import queue
import select
import threading

MAX_LINES = 4096
"""Lines that wait for a blocked reader: 2 MB of access lines; never over 64 MiB, for a line is at most 16 KiB."""
_BATCH = 65536  # bytes joined into one write
_GATHER, _FEW = 0.02, 64  # seconds that a first line waits for others, if few wait: waking the thread costs more than making the line

log = logging.getLogger(__name__)


class LineWriter:
    """Writes lines to a descriptor from a thread of its own; `put` never waits and never raises.

    At most `most` lines wait. Beyond that, and when the descriptor fails, lines are dropped and counted in `dropped`;
    the count is logged when writing works again. A thread, not O_NONBLOCK: that flag would be shared with every other
    process on the same terminal or pipe. `close` when done.
    """

    __slots__ = ("_fd", "_hurry", "_lines", "_most", "_thread", "dropped")

    def __init__(self, fd: int, *, most: int = MAX_LINES) -> None:
        self._fd = fd
        self._most = most
        self._hurry = threading.Event()
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self.dropped = 0
        """Lines lost so far; written by several threads without a lock, so it may be a little low, never wrong by kind."""
        self._thread = threading.Thread(target=self._run, name="proxyd-log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Take one line, without its newline."""
        if self._lines.qsize() >= self._most:
            self.dropped += 1
        else:
            self._lines.put(line)

    def flush(self, timeout: float) -> bool:
        """Wait, at most `timeout` seconds, until all lines taken so far are written or dropped; False if they were not."""
        if not self._thread.is_alive():
            return False
        reached = threading.Event()
        self._lines.put(reached)
        self._hurry.set()
        return reached.wait(timeout)

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds, and end the thread. The descriptor stays open."""
        self._lines.put(None)
        self._hurry.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        told, clean, going = 0, True, True
        while going:
            batch, reached, going = self._batch()
            if batch:
                written = self._write(batch if clean else b"\n" + batch)  # never glue a line to the half of another
                clean = written.endswith(b"\n") if written else clean
                if written and self.dropped != told and self._lines.qsize() * 2 < self._most:  # else this would be dropped too
                    told, lost = self.dropped, self.dropped - told
                    log.warning("%d log lines were dropped: what reads the log was too slow, or failed", lost)
            for event in reached:
                event.set()

    def _batch(self) -> tuple[bytes, list[threading.Event], bool]:
        """All that waits, up to _BATCH: the lines, the flushes among them, and whether to go on."""
        lines: list[bytes] = []
        reached: list[threading.Event] = []
        size, item = 0, self._lines.get()
        if self._lines.qsize() < _FEW and self._hurry.wait(_GATHER):
            self._hurry.clear()
        while item is not None:
            if isinstance(item, threading.Event):
                reached.append(item)
            else:
                lines.append(item)
                size += len(item)
            if size >= _BATCH:
                break
            try:
                item = self._lines.get_nowait()
            except queue.Empty:
                break
        return b"\n".join([*lines, b""]), reached, item is not None

    def _write(self, batch: bytes) -> bytes:
        """Write, waiting as long as it takes; what could be written. A reader that is gone costs its lines, nothing else."""
        done = 0
        while done < len(batch):
            try:
                done += os.write(self._fd, batch[done:])
            except BlockingIOError:  # somebody else made the shared description non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:  # EPIPE, ENOSPC, EIO
                self.dropped += batch.count(b"\n", max(done, 1))
                break
        return batch[:done]
