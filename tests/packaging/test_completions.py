"""The shells' completions: as fresh as the commands, and what a shell really offers."""

from __future__ import annotations

import runpy
import shutil
import subprocess

import pytest

from proxyd.cli import COMMANDS
from tests.process import ROOT

FOLDER = ROOT / "packaging" / "completions"


def test_what_is_committed_is_what_the_commands_say():
    written = runpy.run_path(str(ROOT / "packaging" / "generate_completions.py"))["files"]()
    stale = [place.name for place, text in written.items() if place.read_text("utf-8") != text]
    assert stale == [], "run: python packaging/generate_completions.py"
    assert sorted(written) == sorted(FOLDER.iterdir())


def bash(*words: str, cwd) -> list[str]:
    """What bash offers for the last word."""
    script = f"source {FOLDER / 'proxyd.bash'}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _proxyd"
    done = subprocess.run(
        ["bash", "--norc", "-c", script + '; printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, cwd=cwd, check=True
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["proxyd", ""], sorted([*COMMANDS, "--help", "--version"])),
        (["proxyd", "us"], ["usage"]),
        (["proxyd", "usage", "--f"], ["--format"]),
        (["proxyd", "usage", "--format", ""], ["csv", "json", "table"]),
        (["proxyd", "usage", "--by", "c"], ["caller", "conversation"]),
        (["proxyd", "usage", "--since", ""], []),
        (["proxyd", "db", ""], sorted(["backup", "check", "prune", "vacuum", "-h", "--help", "-c", "--config"])),
        (["proxyd", "db", "prune", "--o"], ["--older-than"]),
        (["proxyd", "db", "-c", "conf.yaml", "ch"], ["check"]),
        (["proxyd", "db", "backup", "conf"], ["conf.yaml"]),
        (["proxyd", "serve", "-c", "conf"], ["conf.yaml"]),
        (["proxyd", "keys", "cr"], ["create"]),
        (["proxyd", "nothing", ""], []),
    ],
)
def test_bash_offers_what_may_follow(words, offered, tmp_path):
    (tmp_path / "conf.yaml").touch()
    assert bash(*words, cwd=tmp_path) == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine")
@pytest.mark.parametrize(
    ("typed", "offered"), [("proxyd us", ["usage"]), ("proxyd usage --format ", ["csv", "json", "table"]), ("proxyd db pr", ["prune"])]
)
def test_fish_offers_what_may_follow(typed, offered, tmp_path):
    script = f"source {FOLDER / 'proxyd.fish'}; complete -C '{typed}'"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TERM": "dumb"}
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, env=env, check=True)
    assert sorted(line.split("\t")[0] for line in done.stdout.splitlines()) == offered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_reads_it_and_knows_every_command():
    script = f"autoload -U compinit; compinit -D -u; source {FOLDER / '_proxyd'}; print -l ${{(k)functions}} ${{_comps[proxyd]}}"
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert {f"_proxyd_{name}" for name in COMMANDS} | {"_proxyd", "_proxyd_db_backup"} <= set(done.stdout.split())
