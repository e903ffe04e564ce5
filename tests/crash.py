"""A daemon that is killed, or loses its power, under load, again and again; and whether its ledger told the truth.

Each request has a model name and a number of tokens of its own, so rows and answers are matched one to one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.client import Visit, becomes, chat
from tests.origin import DONE, Origin, Request, Step, completion, delta, stream, usage_event, whole
from tests.process import Daemon, settings

if TYPE_CHECKING:
    from random import Random

PATH = "/v1/chat/completions"
_COMPLETION = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass
class Tally:
    """What came out, over all cycles."""

    cycles: int = 0
    acked: int = 0
    """Answers that a client saw whole."""
    missing: int = 0
    """Of these, without a settled row."""
    twice: int = 0
    """Requests with more than one row."""
    wrong: int = 0
    """Rows whose tokens are not those of the answer."""
    interrupted: int = 0
    """Rows that a start found open, and closed."""
    open: int = 0
    """Rows still open after a start."""
    corrupt: int = 0
    """Databases that failed their integrity check."""
    starts: list[tuple[float, float]] = field(default_factory=list)
    """Seconds from exec to listening, after a crash, and the seconds of CPU in them: on a busy machine the one says little."""
    details: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every promise held."""
        return not (self.missing or self.twice or self.wrong or self.open or self.corrupt)

    def line(self) -> str:
        """As a person reads it."""
        slowest, work = max(self.starts, default=(0.0, 0.0))
        return (
            f"{self.cycles} cycles, {self.acked} acked, {self.missing} missing, {self.twice} twice, {self.wrong} wrong, "
            f"{self.interrupted} interrupted, {self.open} left open, {self.corrupt} corrupt, slowest start {slowest:.2f} s "
            f"({work:.2f} of CPU)"
        )


def counted(request: Request) -> list[Step]:
    """An answer whose completion tokens are the request's number."""
    tokens = request.number
    if request.json().get("stream"):
        return stream(delta("a"), delta("b"), 0.001, delta("", finish="stop"), usage_event(11, tokens), DONE)
    return whole(completion("hi", produced=tokens))


class Crashes:
    """One database, one daemon after the other. `preload` and `environ` are for the power cut."""

    def __init__(self, folder: Path, origin: Origin, chance: Random, *, storage: dict[str, object] | None = None) -> None:
        self.tally = Tally()
        self._chance = chance
        self._told: dict[str, int] = {}
        origin.on("*", counted)
        config = settings(
            upstreams={"origin": {"kind": "openai", "base_url": origin.url}},
            models={"*": {"upstream": "origin", "retry": {"attempts": 1}}},
            storage={"url": "sqlite:///proxyd.db", **(storage or {})},
        )
        self.daemon = Daemon(folder, config)

    async def killed(self, callers: int = 8) -> None:
        """One cycle: start, load, SIGKILL at a random moment, start again next time."""
        self._start()
        load = [asyncio.create_task(self._caller(number)) for number in range(callers)]
        told = len(self._told)
        if self._chance.random() > 0.1:  # mostly in full swing; now and then amid the first requests
            await becomes(lambda: len(self._told) > told)
        await asyncio.sleep(self._chance.uniform(0.02, 0.4))
        self.daemon.kill()
        await self._ended(load)

    async def cut(self, library: Path, keep: int, callers: int = 8) -> None:
        """One cycle: start with the power cut preloaded, load until it strikes."""
        self._start(
            {
                "LD_PRELOAD": str(library),
                "POWERCUT_PATH": str(self.daemon.database),
                "POWERCUT_AFTER": str(self._chance.randrange(40, 900)),
                "POWERCUT_KEEP": str(keep),
                "POWERCUT_SEED": str(self._chance.randrange(1 << 30)),
            }
        )
        load = [asyncio.create_task(self._caller(number)) for number in range(callers)]
        assert self.daemon.child is not None
        await asyncio.to_thread(self.daemon.child.wait)
        self.daemon.child.end()
        await self._ended(load)

    def finish(self) -> Tally:
        """Start once more, and look at everything."""
        self._start()
        self.daemon.stop()
        return self.tally

    def _start(self, environ: dict[str, str] | None = None) -> None:
        """Start, and hold the ledger against what clients were told."""
        self.daemon.environ = environ
        began = time.monotonic()
        self.daemon.start()
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(")")[2].split()
        self.tally.starts.append((time.monotonic() - began, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")))
        self._check()

    def _check(self) -> None:
        tally, told = self.tally, self._told
        link = sqlite3.connect(f"file:{self.daemon.database}?mode=ro", uri=True, timeout=10)
        with contextlib.closing(link):
            if link.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                tally.corrupt += 1
            rows = link.execute("SELECT model, state, completion_tokens FROM usage_events ORDER BY id").fetchall()
        found: dict[str, list[tuple[str, int]]] = {}
        for model, state, tokens in rows:
            found.setdefault(model, []).append((state, tokens))
        tally.acked, tally.open = len(told), sum(state == "open" for _, state, _ in rows)
        tally.interrupted = sum(state == "interrupted" for _, state, _ in rows)
        missing = [model for model in told if not any(state == "done" for state, _ in found.get(model, []))]
        tally.missing = len(missing)
        tally.twice = sum(len(some) > 1 for some in found.values())
        tally.wrong = sum(
            (("done", tokens) not in found[model]) for model, tokens in told.items() if model in found and model not in missing
        )
        tally.details += [f"{model}: told {told[model]}, found {found.get(model)}" for model in missing[:3]]

    async def _caller(self, number: int) -> None:
        """Ask, one request after the other on one connection, and note each answer that came whole."""
        visit = await Visit.open(self.daemon.url)
        try:
            for turn in range(1_000_000):
                model = f"c{self.tally.cycles}-{number}-{turn}"
                streamed = (number + turn) % 3 == 0
                options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
                visit.answer = None
                await visit.post(PATH, chat(model, **options))
                answer = await visit.rest()
                if answer.status == 200 and answer.whole:
                    counts = _COMPLETION.findall(answer.body)
                    assert counts, answer
                    self._told[model] = int(counts[-1])
                elif answer.status != 200:
                    assert answer.status == 503, json.dumps(answer.headers)
        except (ConnectionError, EOFError):
            pass
        finally:
            await visit.leave()

    async def _ended(self, load: list[asyncio.Task[None]]) -> None:
        """Every caller ends by itself: its connection is broken. One that does not is a finding."""
        self.tally.cycles += 1
        async with asyncio.timeout(10):
            await asyncio.gather(*load)


def library(folder: Path) -> Path | None:
    """Build the power cut; None where there is no C compiler."""
    if (found := compiler()) is None:
        return None
    built = folder / "powercut.so"
    source = Path(__file__).with_name("powercut.c")
    subprocess.run([found, "-O1", "-shared", "-fPIC", "-o", built, source, "-ldl", "-lpthread"], check=True)
    return built


def compiler() -> str | None:
    """A C compiler, where there is one."""
    return shutil.which("gcc") or shutil.which("cc")
