"""Lines get out in order and whole, and nobody waits for who does not read them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from proxyd.line_writer import LineWriter

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_come_in_order_and_flush_waits_for_them() -> None:
    read_end, write_end = os.pipe()
    writer = LineWriter(write_end)
    for n in range(1000):
        writer.put(b"%d" % n)
    assert writer.flush(30)
    assert os.read(read_end, 65536) == b"".join(b"%d\n" % n for n in range(1000))
    writer.close(5)
    os.close(read_end)
    os.close(write_end)


def test_flush_gives_up_on_a_blocked_reader() -> None:
    read_end, write_end = os.pipe()
    writer = LineWriter(write_end)
    for _ in range(100):
        writer.put(b"x" * 2000)
    assert not writer.flush(0.1)
    os.close(read_end)  # EPIPE frees the thread
    writer.close(5)
    os.close(write_end)


def test_a_reader_that_is_gone_costs_its_lines_and_nothing_else() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = LineWriter(write_end)
    for _ in range(5):
        writer.put(b"x")
    assert writer.flush(30)
    assert writer.dropped == 5
    writer.close(5)
    os.close(write_end)


def test_a_descriptor_made_non_blocking_by_others_loses_nothing() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    writer = LineWriter(write_end)
    for n in range(300):
        writer.put(b"%d " % n + b"x" * 2000)
    got = b""
    while got.count(b"\n") < 300:
        got += os.read(read_end, 65536)
    assert [int(line.split()[0]) for line in got.splitlines()] == list(range(300))
    assert writer.dropped == 0
    writer.close(5)
    os.close(read_end)
    os.close(write_end)


def test_a_line_is_never_glued_to_the_half_of_another(tmp_path: Path) -> None:
    file = tmp_path / "log"
    program = (  # the file may grow to 10 bytes, then the disk heals
        "import os, resource, sys; from proxyd.line_writer import LineWriter\n"
        "writer = LineWriter(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard)); writer.put(b'0123456789abcdef'); writer.flush(30)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)); writer.put(b'next'); writer.close(30)\n"
        "print(writer.dropped)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, check=True, timeout=60)
    assert file.read_bytes() == b"0123456789\nnext\n"
    assert done.stdout == b"1\n"
