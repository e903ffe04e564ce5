"""The process under pressure: no descriptors, crowds that leave at once, crowds that do not read. Nothing is left behind."""

import asyncio
import contextlib
import re
import resource
from pathlib import Path

import pytest

from tests.e2e.client import PATH, Visit, ask, becomes, chat, happens
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, SSE, Ending, Gate, chunk, completion, delta, event, head, stream, whole
from tests.process import Daemon

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A daemon whose upstream takes as many connections as there are."""
    models = {"*": {"upstream": "origin", "retry": {"attempts": 1}}}
    with rigged(
        tmp_path_factory.mktemp("process"),
        lambda origin: {"upstreams": {"origin": at(origin, max_connections=10_000)}, "models": models},
    ) as found:
        found.origin.on("fine", whole(completion("hi")))
        yield found


def descriptors(daemon: Daemon) -> int:
    """How many files and sockets the daemon has open."""
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


async def active(daemon: Daemon) -> int:
    """Exchanges that run."""
    return (await ask(daemon.ops, "/state", method="GET")).json()["active"]


async def test_without_descriptors_new_clients_are_told_and_those_who_are_served_notice_nothing(rig):
    gate = Gate()
    rig.origin.on("held", stream(delta("a"), gate, delta("", finish="stop"), DONE))
    held = await (await Visit.open(rig.url)).post(PATH, chat("held", stream=True))
    await held.head()
    await held.until(delta("a"))
    before = resource.prlimit(rig.daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(rig.daemon.pid, resource.RLIMIT_NOFILE, (120, before[1]))
    crowd = [await Visit.open(rig.url) for _ in range(150)]
    try:
        logged = len(rig.daemon.log)
        answers = 0
        for visit in crowd[-50:]:
            with contextlib.suppress(ConnectionError, EOFError):
                await visit.post(PATH, chat("fine"))
                answer = await visit.rest()
                assert answer.status == 503
                answers += 1
        assert answers > 0
        assert (await ask(rig.daemon.ops, "/health", method="GET")).status == 200
        assert len(rig.daemon.log) - logged < 20_000
        gate.open()
        assert (await held.rest()).whole
    finally:
        resource.prlimit(rig.daemon.pid, resource.RLIMIT_NOFILE, before)
        for visit in [held, *crowd]:
            await visit.leave()
    assert (await ask(rig.url, PATH, chat("fine"))).status == 200


async def test_a_crowd_that_leaves_at_once_leaves_nothing_behind(rig):
    """Three hundred streams, all dropped in one moment: their upstreams stop, their rows are settled, no descriptor stays."""
    rig.origin.on("crowd", stream(delta("a"), ending=Ending.HANG))
    assert (await ask(rig.url, PATH, chat("fine"))).status == 200
    before = descriptors(rig.daemon)
    visits = [await (await Visit.open(rig.url)).post(PATH, chat("crowd", stream=True)) for _ in range(300)]
    for visit in visits:
        await visit.head()
        await visit.until(delta("a"))
    assert await active(rig.daemon) == 300
    await asyncio.gather(*(visit.leave(reset=number % 2 == 0) for number, visit in enumerate(visits)))
    for seen in rig.origin.asked("crowd"):
        await happens(seen.connection.closed)
    rows = rig.daemon.settled("crowd", 300)
    assert {(row["state"], row["error"]) for row in rows} == {("cancelled", "client_gone")}
    assert len(rows) == 300
    assert await active(rig.daemon) == 0
    await becomes(lambda: descriptors(rig.daemon) <= before + 2)


async def test_a_crowd_that_does_not_read_costs_a_bounded_memory_each(rig):
    """At most 256 KiB of one stream is held; then its upstream waits."""
    count = 100

    def flood(_):
        yield head(200, SSE)
        while True:
            yield chunk(event({"choices": [], "padding": "x" * 16_000}))  # no text, which would be kept to be counted

    rig.origin.on("unread", flood)
    before = rig.daemon.memory()
    visits = [await (await Visit.open(rig.url, receive_buffer=4096)).post(PATH, chat("unread", stream=True)) for _ in range(count)]
    await becomes(lambda: len(rig.origin.asked("unread")) == count)
    sent, seen = -1, 0
    while sent != seen:
        await asyncio.sleep(0.5)
        sent, seen = seen, sum(request.connection.sent() for request in rig.origin.asked("unread"))
    each = (rig.daemon.memory() - before) / count
    assert (await ask(rig.url, PATH, chat("fine"))).status == 200
    for visit in visits:
        await visit.leave(reset=True)
    assert each < 256 * 1024, f"{each / 1024:.0f} KiB"
    rows = rig.daemon.settled("unread", count)
    assert max(row["bytes_out"] for row in rows) < 512 * 1024  # what the kernel took on top of that


async def test_memory_is_steady_over_many_requests(rig):
    async def some(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(ask(rig.url, PATH, chat("fine")) for _ in range(20)))

    await some(15)
    before = rig.daemon.memory()
    await some(50)
    assert rig.daemon.memory() - before < 12 * MIB


async def test_a_silent_stream_is_not_written_down_again_and_again(rig):
    """Ten thousand of them would keep a fifth of a core busy. Its progress is noted once, and that is the last commit."""

    async def commits() -> float:
        page = (await ask(rig.daemon.ops, "/metrics", method="GET")).body.decode()
        return float(re.search(r"^proxyd_ledger_commit_seconds_count (\S+)", page, re.MULTILINE)[1])

    rig.origin.on("silent", stream(delta("some words"), ending=Ending.HANG))
    visit = await (await Visit.open(rig.url)).post(PATH, chat("silent", stream=True))
    await visit.head()
    await visit.until(delta("some words"))
    await becomes(lambda: rig.daemon.rows("silent")[0]["completion_tokens"])
    before = await commits()
    await asyncio.sleep(2.5)
    assert await commits() == before
    await visit.leave()
