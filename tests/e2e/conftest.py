"""Daemons and origins that a module's tests share: each test scripts a model name of its own."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.origin import Origin
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "upstream-secret-0123456789"


@dataclass(frozen=True, slots=True)
class Rig:
    """A running daemon and the origin behind it."""

    daemon: Daemon
    origin: Origin

    @property
    def url(self) -> str:
        """Where clients call."""
        return self.daemon.url


@contextlib.contextmanager
def rigged(folder: Path, config: Callable[[Origin], dict[str, object]], environ: dict[str, str] | None = None) -> Iterator[Rig]:
    """Run a daemon with the settings that `config` makes for an origin; both must end well."""
    origin = Origin()
    daemon = Daemon(folder, settings(**config(origin)), environ)
    try:
        yield Rig(daemon.start(), origin)
        daemon.stop()
    finally:
        if daemon.child is not None:
            daemon.child.end()
        origin.close()
    assert origin.violations == []


def at(origin: Origin, **more: object) -> dict[str, object]:
    """An upstream at an origin."""
    return {"kind": "openai", "base_url": origin.url, "api_key": SECRET, **more}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One daemon that sends every model to one origin, once (no retry)."""
    models = {"*": {"upstream": "origin", "retry": {"attempts": 1}}}
    with rigged(tmp_path_factory.mktemp("rig"), lambda origin: {"upstreams": {"origin": at(origin)}, "models": models}) as found:
        yield found
