"""`proxyd chat` against a running daemon, as somebody at a terminal uses it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

from bench.children import free_port
from tests.origin import DONE, delta, stream, usage_event, whole
from tests.process import KEY, ROOT


def chat(daemon, *arguments: str, say: str | bytes = "", text: bool = True, **environ: str) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PROXYD_KEY": KEY, **environ}
    command = [sys.executable, "-m", "proxyd", "chat", *arguments]
    return subprocess.run(command, cwd=daemon.folder, env=env, input=say, capture_output=True, text=text, timeout=60, check=False)


def test_one_question_and_what_it_cost(daemon, origin):
    origin.on("m", stream(delta("Ten "), delta("minutes."), delta("", finish="stop"), usage_event(5, 40), DONE))
    done = chat(daemon, "m", "How long?", "--url", daemon.url, "--bytes", "--system", "Be brief.")
    assert (done.returncode, done.stdout) == (0, "Ten minutes.\n"), done.stderr
    up, down, frames, tokens, events = re.search(
        r"\[([\d,]+) bytes up, ([\d,]+) down in (\d+) frames; (\d+) tokens as OpenAI's events: about ([\d,]+) bytes\]", done.stderr
    ).groups()
    (row,) = daemon.rows("m")
    assert (row["bytes_in"], row["bytes_out"]) == (int(up), int(down))
    assert (int(frames), int(tokens), events) == (2, 40, "13,560")


def test_a_conversation_line_by_line(daemon, origin):
    origin.on("m", stream(delta("One.", finish="stop"), DONE), stream(delta("Two.", finish="stop"), DONE))
    done = chat(daemon, "m", say="First?\n\nSecond?\n", PROXYD_URL=daemon.url)
    assert (done.returncode, done.stdout) == (0, "One.\nTwo.\n"), done.stderr
    assert [one["content"] for one in origin.asked("m")[1].json()["messages"]] == ["First?", "One.", "Second?"]


def test_what_goes_wrong_is_one_line(daemon, origin):
    origin.on("m", whole(b'{"error":{"message":"No.","type":"x","param":null,"code":"no"}}', status=400))
    for arguments, code, told in (
        (("m", "a", "--url", daemon.url), 1, "No."),
        (("m", "a", "--url", daemon.url, "--key", "wrong-key-wrong-key"), 1, "The API key is not valid here."),
        (("m", "a", "--url", "ftp://x"), 2, "URL"),
    ):
        done = chat(daemon, *arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "" if code == 2 else done.stdout, 1), done.stderr
        assert told in done.stderr


def test_while_nobody_answers_it_says_so_and_waits(daemon):
    command = [sys.executable, "-m", "proxyd", "chat", "m", "a", "--url", f"http://127.0.0.1:{free_port()}"]
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "PROXYD_KEY": KEY}
    with subprocess.Popen(command, cwd=daemon.folder, env=env, stderr=subprocess.PIPE, text=True) as waiting:
        told = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130
    assert told == "[The connection broke: Connection refused. The next attempt is in 1 s; Ctrl-C gives up.]\n"


def test_lines_may_end_as_windows_ends_them_and_must_be_utf_8(daemon, origin):
    origin.on("m", stream(delta("One.", finish="stop"), DONE))
    done = chat(daemon, "m", say="Grüß?\r\n", PROXYD_URL=daemon.url, PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stdout) == (0, "One.\n"), done.stderr
    assert origin.asked("m")[-1].json()["messages"][-1]["content"] == "Grüß?"
    for arguments, say in ((("m",), "\udcff?\n"), (("m", "\udcff?"), ""), (("m", "a", "--system", "\udcff"), "")):
        done = chat(daemon, *arguments, say=say.encode(errors="surrogateescape"), PROXYD_URL=daemon.url, LC_ALL="C.UTF-8", text=False)
        assert (done.returncode, done.stderr) == (2, b"proxyd: what is asked must be UTF-8 text\n")


def test_a_key_that_no_header_carries_is_refused_and_never_printed(daemon):
    """A file with Windows' line ends leaves one behind it."""
    for key in ("dev_secret\r", "dev_secret\nX: y", "dev_secretß"):
        done = chat(daemon, "m", "a", PROXYD_URL=daemon.url, PROXYD_KEY=key)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("proxyd: the key has a character that no header carries")
        assert "secret" not in done.stderr
