"""Node's packages, for the clients that are written in JavaScript."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def installed(folder: Path, *packages: str) -> Path:
    """Install packages into a folder of modules; the test is skipped where that cannot be done."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node is not installed")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {', '.join(packages)}: {done.stderr.strip()[-200:]}")
    return folder
