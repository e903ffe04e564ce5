"""What an installation weighs: a fresh venv, the package put into it, and the difference."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import children

if TYPE_CHECKING:
    from pathlib import Path

IGNORED = shutil.ignore_patterns(".git", ".venv", "venv", "build", "dist", "*.egg-info", "__pycache__", ".mypy_cache", ".ruff_cache")


@dataclass(frozen=True, slots=True)
class Weight:
    """Packages, itself included, and bytes of all their files, compiled ones included."""

    packages: int
    size: int


def _checked(command: list[str], directory: Path) -> str:
    done = children.run(command, directory)
    if done.returncode:
        raise children.Trouble(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def make_venv(python: str, home: Path) -> Path:
    """Make a venv at `home`; its interpreter. Raises children.Trouble."""
    home.parent.mkdir(parents=True, exist_ok=True)
    _checked([python, "-m", "venv", str(home)], home.parent)
    return home / "bin" / "python"


def pip_install(python: Path, what: str) -> None:
    """Install `what` with that interpreter's pip. Raises children.Trouble."""
    _checked([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what], python.parent)


def _weigh(python: Path) -> tuple[int, int]:
    listed = json.loads(_checked([str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"], python.parent))
    home = python.parent.parent
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file() and not file.is_symlink())
    return len(listed), size


def weigh(python: str, directory: Path, project: Path) -> Weight:
    """Install a copy of `project` (so that nothing is built inside it) into a fresh venv and weigh it."""
    copy = directory / "project"
    shutil.copytree(project, copy, ignore=IGNORED)
    fresh = make_venv(python, directory / "weighed")
    packages, size = _weigh(fresh)
    pip_install(fresh, str(copy))
    more_packages, more_size = _weigh(fresh)
    shutil.rmtree(directory / "weighed")
    return Weight(more_packages - packages, more_size - size)
