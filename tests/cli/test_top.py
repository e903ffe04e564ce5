"""`proxyd top`: what it draws of two readings, and the live view on a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
import threading
import time

import pytest

from bench.children import free_port
from proxyd.cli import main
from proxyd.cli.top import frame, rate
from tests.e2e.client import Visit, chat, request
from tests.origin import HANG, Gate, delta, stream
from tests.process import ROOT

SIZE = os.terminal_size((100, 30))


def reading(at: float = 100.0, started: int = 1, **more):
    """What /state says."""
    upstream = {"state": "closed", "busy": 2, "first_byte_seconds": 0.34, "ready_in_seconds": 0.0, "requests": 10, "failed": 0}
    base = {
        "version": "1.2.3", "pid": 7, "started_at": started, "now": int(at * 1e6), "ready": True, "reasons": [], "ledger_queue": 0,
        "upstreams": {"ollama": upstream}, "active": 0, "running": [],
        "totals": {"requests": 10, "failed": 1, "prompt_tokens": 5, "completion_tokens": 1000},
    }  # fmt: skip
    return {**base, **more}


def going(number: int = 1, **more):
    """A running exchange."""
    base = {
        "request_id": f"req_{number}", "caller": "laptop", "model": "fast", "upstream": "ollama", "attempt": 1, "streamed": True,
        "begun": True, "seconds": 3.2, "events": 17, "client": True,
    }  # fmt: skip
    return {**base, **more}


def test_a_frame_tells_rates_upstreams_and_what_runs():
    before = reading()
    totals = {"requests": 14, "failed": 2, "prompt_tokens": 9, "completion_tokens": 2024}
    now = reading(102.0, totals=totals, active=1, running=[going()], ledger_queue=3)
    lines = frame(now, before, [0.0, 256.0, 512.0], SIZE)
    assert lines[0] == "proxyd 1.2.3   ready   up 1 m 41 s   pid 7"
    assert lines[1] == "1 running   2.0 requests/s   0.5 failed/s   512 tokens/s   14 requests   3 rows waiting"
    assert lines[2].startswith("▁▅█  tokens/s, most 512")
    assert re.split(" {2,}", lines[5]) == ["ollama", "closed", "2", "0.0", "0.0", "340 ms"]
    assert re.split(" {2,}", lines[-1]) == ["laptop", "fast", "ollama", "answering", "3 s", "17", "req_1"]


def test_a_restart_between_two_readings_is_no_rate():
    assert rate(reading(101.0, started=5), reading(), "requests") == 0
    assert rate(reading(), reading(), "requests") == 0
    assert rate(reading(101.0, totals={"requests": 3}), reading(), "requests") == 0


def test_trouble_is_seen():
    upstream = {"state": "open", "busy": 0, "first_byte_seconds": None, "ready_in_seconds": 12.5, "requests": 0, "failed": 0}
    now = reading(101.0, ready=False, reasons=["the database cannot be written"], upstreams={"far": upstream})
    lines = "\n".join(frame(now, reading(), (), SIZE))
    assert "not ready: the database cannot be written" in lines
    assert re.search(r"far +open 12.5 s +0 +0.0 +0.0 +-", lines)
    assert "nothing runs" in lines


def test_a_crowd_is_cut_to_the_screen_and_names_cannot_act_on_it():
    crowd = [going(n, model="x\x1b[2J" + "y" * 200) for n in range(200)]
    lines = frame(reading(101.0, active=5000, running=crowd), reading(), [1.0], SIZE)
    assert len(lines) <= SIZE.lines
    assert all(len(line) <= SIZE.columns for line in lines)
    assert lines[-1].startswith("and 4,9")
    assert "\x1b" not in "".join(lines)


@pytest.fixture
def watched(launch, origin):
    """A daemon with a stream that runs until its gate opens."""
    gate = Gate()
    origin.on("m", stream(delta("Hel"), delta("lo"), gate))
    daemon = launch(
        upstreams={"origin": {"kind": "openai", "base_url": origin.url}}, models={"*": "origin"}, ops={"listen": f"127.0.0.1:{free_port()}"}
    )
    yield daemon, gate
    gate.open()


def test_one_frame_of_a_real_daemon_is_printed(watched, monkeypatch, capsys):
    daemon, gate = watched
    monkeypatch.chdir(daemon.folder)

    async def look():
        visit = await Visit.open(daemon.url)
        await visit.say(request("POST", "/v1/chat/completions", json.dumps(chat("m", stream=True)).encode()))
        assert await asyncio.to_thread(gate.reached.wait, HANG)
        found = []
        for argv in (["--interval", "0.1"], ["--format", "json"]):
            assert await asyncio.to_thread(main, ["top", "--once", *argv]) == 0
            found.append(capsys.readouterr().out)
        gate.open()
        await visit.rest()
        await visit.leave()
        return found

    text, told = asyncio.run(look())
    assert re.search(r"tester +m +origin +answering +\d+ s +2 +req_", text)
    document = json.loads(told)
    assert document["totals"]["completion_tokens"] == 2, "an event stands for a token until the stream is settled"
    assert (document["running"][0]["caller"], document["upstreams"]["origin"]["busy"]) == ("tester", 1)
    daemon.settled("m")
    assert main(["top", "--once", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["totals"]["requests"], document["active"], document["upstreams"]["origin"]["requests"]) == (1, 0, 1)


class Terminal:
    """`proxyd top` on a terminal of its own."""

    def __init__(self, folder, **environ):
        self.output = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8", **environ}
            os.execve(sys.executable, [sys.executable, "-m", "proxyd", "top", "--interval", "0.1"], env)
        self.thread = threading.Thread(target=self._collect, daemon=True)
        self.thread.start()

    def _collect(self):
        try:
            while data := os.read(self.master, 65536):
                self.output += data
        except OSError:
            pass

    def shows(self, pattern: bytes):
        until = time.monotonic() + HANG
        while not re.search(pattern, self.output):
            assert time.monotonic() < until, self.output
            time.sleep(0.01)

    def ended(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.thread.join(HANG)
        os.close(self.master)
        return code


@pytest.mark.parametrize("end", [b"q", b"\x03", signal.SIGTERM])
def test_the_live_view_leaves_the_terminal_as_it_was(watched, end):
    daemon, _ = watched
    terminal = Terminal(daemon.folder)
    # Lines that are longer than the terminal are cut there: wrapped, they would push the frame off the screen.
    terminal.shows(rb"\x1b\[\?1049h\x1b\[\?25l\x1b\[\?7l")
    terminal.shows(rb"UPSTREAM[^\n]*\n[^\n]*origin")
    if isinstance(end, bytes):
        os.write(terminal.master, end)
    else:
        os.kill(terminal.pid, end)
    assert terminal.ended() == 0
    assert terminal.output.rstrip().endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")


def test_no_color_is_obeyed_and_a_restart_is_lived_through(watched):
    daemon, _ = watched
    terminal = Terminal(daemon.folder, NO_COLOR="1")
    terminal.shows(rb"origin")
    daemon.stop()
    terminal.shows(rb"no daemon answers")
    daemon.start()
    seen = len(terminal.output)
    until = time.monotonic() + HANG
    while b"UPSTREAM" not in terminal.output[seen:]:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0
    assert not re.search(rb"\x1b\[\d+m", terminal.output)


def test_without_a_daemon_or_with_a_wrong_wish_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(
        f"upstreams: {{e: {{kind: echo}}}}\nmodels: {{e: e}}\nops: {{listen: '127.0.0.1:{free_port()}'}}\n"
    )
    assert main(["top"]) == 1
    assert "no daemon answers" in capsys.readouterr().err
    assert main(["top", "--format", "json"]) == 2
    assert "needs --once" in capsys.readouterr().err
    for wrong in ("0", "61", "x", "nan"):
        assert main(["top", "--interval", wrong]) == 2
