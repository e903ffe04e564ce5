"""A daemon and an origin that a module's tests share: each test scripts a model name of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.origin import Origin
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Rig:
    """The daemon sends every model to the origin, once (no retry)."""

    daemon: Daemon
    origin: Origin

    @property
    def url(self) -> str:
        """Where clients call."""
        return self.daemon.url


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One daemon and one origin for the module."""
    origin = Origin()
    upstreams = {"origin": {"kind": "openai", "base_url": origin.url, "api_key": "upstream-secret-0123456789"}}
    models = {"*": {"upstream": "origin", "retry": {"attempts": 1}}}
    daemon = Daemon(tmp_path_factory.mktemp("rig"), settings(upstreams=upstreams, models=models))
    try:
        yield Rig(daemon.start(), origin)
        daemon.stop()
    finally:
        if daemon.child is not None:
            daemon.child.end()
        origin.close()
    assert origin.violations == []
