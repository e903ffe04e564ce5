"""What is installed elsewhere: the wheel and the sdist have all that proxyd needs, and it runs from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.process import ROOT

SOURCES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "config.example.yaml", "proxyd", "systemd", "packaging/completions")
"""All that a build needs; the container copies the same."""
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info")


def build(kind: str, source: Path, into: Path) -> Path:
    """Build a wheel or an sdist, as pip would, without a network."""
    code = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, str(into)], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return into / done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(the wheel of the sdist, the sdist), from a copy of the sources that are needed and nothing else."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    for name in SOURCES:
        place = ROOT / name
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=JUNK)
        else:
            shutil.copy(place, source / name)
    sdist = build("sdist", source, folder)
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(folder / "unpacked")], check=True)
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder), sdist


def test_the_wheel_has_every_file_of_the_package_and_no_other(built):
    names = {name for name in zipfile.ZipFile(built[0]).namelist() if name.startswith("proxyd/")}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "proxyd").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == there
    for needed in (
        "proxyd/py.typed",
        "proxyd/store/migrations/0001_usage_events.sql",
        "proxyd/wire/vocab/o200k_base.xz",
        "proxyd/web/docs.html",
    ):
        assert needed in names


def test_the_wheel_brings_what_an_operator_copies_into_place(built):
    names = {name.partition("/data/share/proxyd/")[2] for name in zipfile.ZipFile(built[0]).namelist() if "/data/share/proxyd/" in name}
    assert names >= {
        "config.example.yaml",
        "systemd/proxyd.service",
        "systemd/proxyd.socket",
        "systemd/monitoring/alerts.yml",
        "completions/proxyd.bash",
    }


def test_the_container_copies_all_that_a_build_needs():
    copied = {
        name
        for line in (ROOT / "packaging" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied == set(SOURCES)


def test_it_installs_elsewhere_and_runs_there(built, tmp_path):
    """A fresh environment, with the dependencies that are here and without this checkout."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    own = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(built[0])]
    subprocess.run(install, check=True, capture_output=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    # A path line is no site folder: an editable install of this checkout, there, has no say.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([home / "bin" / words[0], *words[1:]], capture_output=True, text=True, cwd=tmp_path, env=env, check=True)

    assert run("python", "-c", "import proxyd; print(proxyd.__file__)").stdout.strip() == str(own / "proxyd" / "__init__.py")
    demo = run("proxyd", "demo", "--once", "--port", "0")
    assert "one row in the ledger" in demo.stdout
    assert demo.stderr == ""
    assert json.loads(run("proxyd", "openapi").stdout)["openapi"] == "3.1.0"
    assert (home / "share" / "proxyd" / "systemd" / "proxyd.service").is_file()
    assert run("proxyd", "--version").stdout.startswith("proxyd ")
