"""The operator's page is true: its commands are there as it writes them, and what it puts in front does not buffer."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import shutil
import socket

import pytest

from bench.children import free_port
from proxyd.cli import COMMANDS, command_of
from tests.e2e.client import Visit, becomes, chat
from tests.origin import DONE, Gate, delta, stream
from tests.process import ROOT

PAGES = [ROOT / "systemd" / "README.md", ROOT / "README.md"]


def blocks(kind: str) -> list[str]:
    """The page's blocks of one language."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL)


def written() -> list[str]:
    """Every command line of proxyd's that the pages write."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in lines:
            # A command begins a line, or follows variables or &&.
            found += re.findall(r"(?:^|&& )(?:[A-Z_]+=\S+ )*(proxyd (?!COMMAND)[a-z]\S*(?: [^#|>&;]*)?)", line)
    return sorted({line.strip() for line in found})


@pytest.mark.parametrize("line", written())
def test_every_command_that_is_written_down_is_there(line):
    words = shlex.split(line)[1:]
    assert words[0] in COMMANDS
    _, parser = command_of(words[0])
    actions = next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
    if actions is not None and len(words) <= 2:  # named in a sentence, not to be typed
        assert set(words[1:]) <= set(actions)
    elif "…" not in line:
        parser.parse_args(words[1:])


def test_the_page_knows_the_files_that_it_names():
    text = PAGES[0].read_text("utf-8")
    for name in re.findall(r"`(monitoring/[\w.-]+)`", text):
        assert (ROOT / "systemd" / name).is_file()
    setup = (ROOT / "setup.cfg").read_text()
    for name in re.findall(r"/opt/proxyd/(share/proxyd/\w+)", text):
        assert f"{name} =" in setup


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")
async def test_behind_the_pages_nginx_each_event_comes_as_it_is_made(daemon, origin, tmp_path):
    (block,) = blocks("nginx")
    port = free_port()
    server = re.sub(r"listen 443 ssl;", f"listen 127.0.0.1:{port};", re.sub(r".*ssl_certificate.*\n", "", block))
    server = server.replace("http://127.0.0.1:8080", daemon.url)
    places = "".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = tmp_path / "nginx.conf"
    config.write_text(f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {places}\n{server}\n}}")
    nginx = await asyncio.create_subprocess_exec("nginx", "-p", str(tmp_path), "-c", str(config), stderr=asyncio.subprocess.PIPE)
    gate = Gate()
    origin.on("m", stream(delta("first"), gate, delta("last", finish="stop"), DONE))
    try:
        await becomes(lambda: _answers(port))
        visit = await Visit.open(f"http://127.0.0.1:{port}")
        await visit.post("/v1/chat/completions", chat("m", stream=True))
        answer = await visit.head()
        await visit.until(b"first")
        assert b"last" not in answer.body
        gate.open()
        assert (await visit.rest()).body.endswith(DONE)
        await visit.leave()
    finally:
        gate.open()
        nginx.terminate()
        await nginx.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
