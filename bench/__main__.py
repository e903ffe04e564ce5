"""`python -m bench`: nginx, a bare aiohttp relay and proxyd (LiteLLM if asked) do the same work; a table says what it cost.

`--quick` takes under a minute, the whole about a quarter of an hour. Everything is on 127.0.0.1 and ends by itself.
Exit code: 0 measured, 1 could not measure or an answer was wrong, 2 wrong usage. A missed target is shown, and is no failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import children, install, report, scenes
from bench.contestants import Contestant, contestants

SECTIONS = ("unary", "streams", "memory", "startup", "install")


def _sections(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    if unknown := [part for part in chosen if part not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SECTIONS)}")
    return [section for section in SECTIONS if section in chosen]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, fewer contestants, no install: under 60 s")
    parser.add_argument("--only", type=_sections, metavar="A,B", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, choices=range(1, 21), metavar="N", help="rounds, 1-20, instead of 3 (quick: 1)")
    parser.add_argument("--without", default="", metavar="NAME,…", help="leave out contestants whose name contains this")
    parser.add_argument("--litellm", action="store_true", help="LiteLLM too: installs it into a venv of its own (0.5 GB)")
    parser.add_argument(
        "--litellm-venv", type=Path, default=Path.home() / ".cache" / "proxyd-bench" / "litellm", metavar="DIR", help="where"
    )
    parser.add_argument("--install-nginx", action="store_true", help="apt-get install nginx-light if it is missing (root only)")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where databases and logs go: a real disk, for strict to mean something"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    return parser.parse_args(arguments)


def _install_nginx() -> None:
    if shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise children.Trouble("cannot install nginx: that takes root and apt-get")
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)


def _litellm(home: Path) -> str:
    """Find the interpreter of LiteLLM's venv, which is made if it is not there."""
    python = home / "bin" / "python"
    if not (home / "bin" / "litellm").exists():
        print(f"installing LiteLLM into {home}", file=sys.stderr)
        install.make_venv(sys.executable, home)
        install.pip_install(python, "litellm[proxy]")
    return str(python)


def _versions(who: list[Contestant]) -> dict[str, str]:
    found = {}
    for contestant in who:
        if contestant.kind == "nginx":
            said = subprocess.run([contestant.program, "-v"], capture_output=True, text=True, check=True).stderr
            found["nginx"] = said.strip().rpartition("/")[2]
        elif contestant.kind == "litellm":
            code = "from importlib.metadata import version; print(version('litellm'))"
            found["LiteLLM"] = subprocess.run([contestant.program, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return found


def _sizes(options: argparse.Namespace) -> scenes.Sizes:
    sizes = scenes.QUICK if options.quick else scenes.FULL
    if options.rounds is None:
        return sizes
    return dataclasses.replace(sizes, rounds=options.rounds)


def measure(options: argparse.Namespace, directory: Path) -> tuple[scenes.Board, dict[str, str]]:
    """Do all that was asked for. Raises children.Trouble."""
    if options.install_nginx:
        _install_nginx()
    left_out = [part for part in options.without.split(",") if part]
    found = contestants(quick=options.quick, litellm=_litellm(options.litellm_venv) if options.litellm else None)
    who = [one for one in found if one.kind == "direct" or not any(part in one.name for part in left_out)]
    if all(one.kind != "nginx" for one in who):
        print("no nginx here: no ratios, and the CPU targets cannot be judged (--install-nginx)", file=sys.stderr)
    sections = options.only or [section for section in SECTIONS if section != "install" or not options.quick]
    board = scenes.Board()
    with children.mock(sys.executable, directory) as mock:
        stage = scenes.Stage(who, mock, directory, _sizes(options), board)
        for section in sections:
            if section in scenes.SCENES:
                scenes.SCENES[section](stage)
    if "install" in sections:
        weight = install.weigh(sys.executable, directory, children.PROJECT)
        board.add("install", "proxyd", {"packages": weight.packages, "mb": weight.size / 1e6})
    return board, _versions(who)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Run the bench; the exit code."""
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C also where a shell started us with it ignored
        signal.signal(number, _interrupted)
    # /tmp may be memory, where a commit costs nothing.
    parent = options.directory or Path("/var/tmp")
    with tempfile.TemporaryDirectory(prefix="proxyd-bench-", dir=parent, ignore_cleanup_errors=True) as directory:
        try:
            board, versions = measure(options, Path(directory))
        except children.Trouble as trouble:
            print(f"bench: {trouble}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("bench: interrupted", file=sys.stderr)
            return 1
    print(report.document(board, versions, markdown=options.markdown))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(board, versions), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if board.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
