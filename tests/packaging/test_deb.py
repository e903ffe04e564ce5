"""The Debian package: what its recipe makes stands where systemd and the shell look, and knows nothing of where it was made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import proxyd
from tests.packaging.test_wheel import JUNK, SOURCES, build
from tests.process import ROOT

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this machine")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The package's files, without the dependencies, which would need a network."""
    folder = tmp_path_factory.mktemp("deb")
    source = folder / "source"
    for name in SOURCES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
            ROOT / name, source / name, **({"ignore": JUNK} if (ROOT / name).is_dir() else {})
        )
    wheel = build("wheel", source, folder)
    env = {**os.environ, "PYTHON": sys.executable, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "TMPDIR": str(folder)}
    done = subprocess.run(
        [ROOT / "packaging" / "deb" / "build", str(wheel)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (package,) = folder.glob("proxyd_*.deb")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder / "root"], check=True)
    assert not list(folder.glob("tmp.*")), "it tidies up"
    return folder / "root"


def test_it_names_its_python_and_its_version(unpacked):
    lines = dict(line.split(": ", 1) for line in (unpacked / "DEBIAN" / "control").read_text().splitlines() if not line.startswith(" "))
    minor = sys.version_info.minor
    assert (lines["Version"], lines["Depends"]) == (proxyd.__version__, f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})")


def test_everything_stands_where_it_is_looked_for(unpacked):
    assert (unpacked / "usr/bin/proxyd").readlink().as_posix() == "/opt/proxyd/bin/proxyd"
    assert (unpacked / "opt/proxyd/bin/proxyd").read_text().startswith("#!/opt/proxyd/bin/python")
    unit = (unpacked / "usr/lib/systemd/system/proxyd.service").read_text()
    assert "ExecStart=/opt/proxyd/bin/proxyd serve -c /etc/proxyd/config.yaml" in unit
    assert (unpacked / "etc/proxyd").is_dir()
    for script in ("postinst", "prerm"):
        subprocess.run(["sh", "-n", unpacked / "DEBIAN" / script], check=True)


def test_nothing_tells_where_it_was_made(unpacked):
    made = str(unpacked.parent).encode()
    assert [file for file in unpacked.rglob("*") if file.is_file() and not file.is_symlink() and made in file.read_bytes()] == []
