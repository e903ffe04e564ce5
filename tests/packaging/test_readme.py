"""README.md, followed from top to bottom: its configuration, its commands in their order, its Python, its links."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from bench.children import free_port
from proxyd.cli import COMMANDS
from proxyd.config.load import parse
from proxyd.config.secrets import Secrets
from tests.process import ROOT, Daemon

TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
CONFIG, *MORE = [block for kind, block in BLOCKS if kind == "yaml"]
SHELL = [block for kind, block in BLOCKS if kind == "sh" and "venv" not in block and "proxyd serve" not in block]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
KEY = re.compile(r"key for this run: (\S+)")


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """The daemon of the first YAML, and a function that runs a program as its reader does."""
    folder = tmp_path_factory.mktemp("readme")
    port, ops = free_port(), free_port()
    ports = f"listen: 127.0.0.1:{port}\nops: {{listen: 127.0.0.1:{ops}}}\n"
    daemon = Daemon(folder, CONFIG + ports, {"OPENAI_API_KEY": "sk-none"}).start()
    key = daemon.child.expect(KEY)[1]
    command = folder / "bin" / "proxyd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m proxyd "$@"\n')
    command.chmod(0o755)
    env = {"PATH": f"{command.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OPENAI_API_KEY": "sk-none"}

    def run(program: list[str], text: str) -> subprocess.CompletedProcess[str]:
        for old, new in (("127.0.0.1:8080", f"127.0.0.1:{port}"), ("127.0.0.1:9464", f"127.0.0.1:{ops}"), ("dev_…", key)):
            text = text.replace(old, new)
        return subprocess.run([*program, text], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)

    yield run
    daemon.stop()


def test_every_command_works_as_it_stands(shell):
    """But for the one that is broken off on purpose, and the doctor, who finds no Ollama here."""
    done = shell(["bash", "-c"], 'trap \'printf "\\nFAILED %s\\n" "$BASH_COMMAND"\' ERR\n' + "\n".join(SHELL))
    failed = re.findall(r"^FAILED (.*)", done.stdout, re.MULTILINE)
    assert [re.sub(r"curl -sN -m 2 .*", "curl -sN -m 2", line) for line in failed] == ["proxyd doctor", "curl -sN -m 2"], done
    assert done.stdout.count("data: [DONE]") == 2  # the first chat, and the end of the one that was broken off
    broken_off, rest = done.stdout.split("FAILED curl")
    events = {where: re.findall(r'"content":"(\d+|,)"', part) for where, part in (("before", broken_off), ("after", rest))}
    assert "".join(events["before"]).startswith("1,2,3,")
    assert "".join([*events["before"][:19], *events["after"]]) == ",".join(map(str, range(1, 81)))  # event 1 has the role alone
    assert len(re.findall(r"^pxd_\w{28}$", done.stdout, re.MULTILINE)) == 2
    assert "as OpenAI's events" in done.stderr


@pytest.mark.parametrize("program", PYTHON, ids=range(len(PYTHON)))
def test_its_python_says_hello(shell, program):
    done = shell([sys.executable, "-c"], program)
    assert (done.returncode, done.stdout) == (0, "Hello"), done.stderr


@pytest.mark.parametrize("more", MORE, ids=range(len(MORE)))
def test_what_it_adds_to_the_configuration_is_good(more):
    whole = yaml.safe_load(CONFIG)
    for section, value in yaml.safe_load(more).items():
        whole[section] = {**whole[section], **value} if section in whole else value
    parse(yaml.safe_dump(whole), filename="README.md", secrets=Secrets({"OPENAI_API_KEY": "sk-none"}, lambda _: ""))


def test_what_it_names_is_there():
    links = set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    files = set(re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", TEXT)) | set(re.findall(r"`(\w+\.(?:py|yaml|toml|lock))`", TEXT))
    places = (ROOT, ROOT / "proxyd", ROOT / "bench")
    assert [name for name in sorted(links | files) if not any((place / name).exists() for place in places)] == ["config.yaml"]
    assert set(re.findall(r"proxyd ([a-z]+)", " ".join(re.findall(r"`proxyd [^`]+`|^proxyd \w+", TEXT, re.MULTILINE)))) <= COMMANDS.keys()
