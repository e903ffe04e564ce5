"""Fixtures for every room: a scripted upstream, the real daemon, and a real llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

# Tests import one another's tools as `tests.…`, whether pytest was started as a module or as a command.
sys.path[:0] = [] if str(Path(__file__).parent.parent) in sys.path else [str(Path(__file__).parent.parent)]

from tests.llama.server import Llama, why_not  # noqa: E402
from tests.origin import Origin  # noqa: E402
from tests.process import Daemon, settings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# No test is timed: on a busy machine Hypothesis's 200 ms for an example fail what is sound.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A scripted upstream; the test fails when it was sent what no client may send."""
    server = Origin()
    yield server
    server.close()
    assert server.violations == []


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons with a given configuration; each one is stopped, and must stop well, at the end."""
    running: list[Daemon] = []

    def start(**config: object) -> Daemon:
        folder = tmp_path / f"daemon{len(running)}"
        folder.mkdir()
        daemon = Daemon(folder, settings(**config))
        running.append(daemon)
        return daemon.start()

    yield start
    for daemon in running:
        if daemon.child is not None and daemon.child.process.poll() is None:
            daemon.stop()


@pytest.fixture
def daemon(launch: Callable[..., Daemon], origin: Origin) -> Daemon:
    """A daemon that sends every model to the scripted upstream."""
    return launch(upstreams={"origin": {"kind": "openai", "base_url": origin.url, "api_key": "upstream-secret"}}, models={"*": "origin"})


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """llama.cpp's own server over a tiny model made on the spot."""
    yield from _llama(tmp_path_factory, embedding=False)


@pytest.fixture(scope="session")
def llama_embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """The same, for embeddings."""
    yield from _llama(tmp_path_factory, embedding=True)


def _llama(factory: pytest.TempPathFactory, *, embedding: bool) -> Iterator[Llama]:
    if reason := why_not():
        pytest.skip(reason)
    server = Llama(factory.mktemp("llama"), embedding=embedding)
    try:
        yield server.start()
    finally:
        server.end()
