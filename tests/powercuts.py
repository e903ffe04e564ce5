"""A short session, and the power cut at each of its writes and syncs in turn: whether what was told is there, once, whichever it was.

Random cuts under load (tests/crash.py) find what a crowd does; these leave out no place: the making of the database, the first claim,
the checkpoint when it closes.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.crash import PATH, counted
from tests.e2e.client import Answer, Visit, chat
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.origin import Origin

_COMPLETION = re.compile(rb'"completion_tokens": ?(\d+)')
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
ASKS: tuple[tuple[str, dict[str, object], dict[str, str]], ...] = (
    ("kept", {}, {"idempotency-key": "kept"}),
    ("plain", {}, {}),
    ("streamed", _STREAM, {}),
    ("kept-stream", _STREAM, {"idempotency-key": "kept-stream"}),
    ("last", {}, {}),
)
"""Model, options and headers of each request, one after the other on one connection."""


@dataclass
class Cut:
    """What came of one cut."""

    place: int
    struck: bool
    """False: the session was over before."""
    told: int = 0
    """Answers that the client saw whole."""
    wrong: list[str] = field(default_factory=list)


class Session:
    """The session behind one origin; each cut has a database of its own in a folder of its own."""

    def __init__(self, folder: Path, origin: Origin, library: Path, keep: int = 0, durability: str = "strict") -> None:
        self._folder, self._origin, self._library, self._keep = folder, origin, library, keep
        self._config = settings(
            upstreams={"origin": {"kind": "openai", "base_url": origin.url}},
            models={"*": {"upstream": "origin", "retry": {"attempts": 1}}},
            storage={"url": "sqlite:///proxyd.db", "durability": durability},
        )
        origin.on("*", counted)

    async def cut(self, place: int) -> Cut:
        """Start on no database, play the session, stop; the power goes at that write or sync. Then start again and look."""
        folder = self._folder / f"cut{place}"
        folder.mkdir()
        daemon = Daemon(folder, self._config)
        daemon.environ = {
            "LD_PRELOAD": str(self._library),
            "POWERCUT_PATH": str(daemon.database),
            "POWERCUT_AFTER": str(place),
            "POWERCUT_KEEP": str(self._keep),
            "POWERCUT_SEED": str(random.Random(place).randrange(1 << 30)),
        }
        told: dict[str, Answer] = {}
        with contextlib.suppress(AssertionError):  # cut before it listened
            daemon.start()
            await _play(daemon, told)
        assert daemon.child is not None
        if daemon.child.process.poll() is None and len(told) == len(ASKS):
            daemon.child.process.terminate()
        found = Cut(place, daemon.child.wait() == -signal.SIGKILL, len(told))
        daemon.child.end()
        daemon.environ = None
        daemon.start()
        try:
            await self._look(daemon, told, found)
            daemon.stop()
        finally:
            if daemon.child is not None:
                daemon.child.end()
        return found

    async def _look(self, daemon: Daemon, told: dict[str, Answer], found: Cut) -> None:
        link = sqlite3.connect(f"file:{daemon.database}?mode=ro", uri=True, timeout=10)
        with contextlib.closing(link):
            if link.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                found.wrong.append("corrupt")
        rows: dict[str, list[tuple[str, int]]] = {}
        for row in daemon.rows():
            rows.setdefault(row["model"], []).append((row["state"], row["completion_tokens"]))
        found.wrong += [f"{model} has {len(some)} rows" for model, some in rows.items() if len(some) > 1]
        found.wrong += [f"{model} is open" for model, some in rows.items() if some[0][0] == "open"]
        for model, answer in told.items():
            tokens = int(_COMPLETION.findall(answer.body)[-1])
            if rows.get(model) != [("done", tokens)]:
                found.wrong.append(f"{model}: told {tokens}, found {rows.get(model)}")
        for model, options, headers in ASKS:
            if headers and model in told:
                asked = len(self._origin.requests)
                again = await _ask(daemon, model, options, headers)
                if again.body != told[model].body or len(self._origin.requests) > asked:
                    found.wrong.append(f"{model}: not the same answer again, but {again.status} {again.body[:200]!r}")


async def _play(daemon: Daemon, told: dict[str, Answer]) -> None:
    with contextlib.suppress(ConnectionError, EOFError):
        for model, options, headers in ASKS:
            answer = await _ask(daemon, model, options, headers)
            if answer.status == 200 and answer.whole:
                told[model] = answer


async def _ask(daemon: Daemon, model: str, options: dict[str, object], headers: dict[str, str]) -> Answer:
    visit = await Visit.open(daemon.url)
    try:
        await visit.post(PATH, chat(model, **options), **headers)
        return await visit.rest()
    finally:
        await visit.leave()
