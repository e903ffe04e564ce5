"""Clients that leave in odd ways or do not read: noticed, let go, and nothing is held for them."""

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.client import PATH, Visit, ask, becomes, begin, chat, happens
from tests.e2e.conftest import at, rigged
from tests.origin import SSE, Ending, Gate, chunk, completion, delta, flood, head, stream, whole

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A daemon that waits a second for a client to take what it was sent."""
    config = {"models": {"*": {"upstream": "origin", "retry": {"attempts": 1}}}, "limits": {"write_timeout": "1s"}}
    with rigged(tmp_path_factory.mktemp("hasty"), lambda origin: {"upstreams": {"origin": at(origin)}, **config}) as found:
        yield found


async def test_a_client_that_leaves_in_the_moment_of_the_first_event_has_left(hasty):
    """The daemon is stopped meanwhile, so that it learns of both in one turn of its loop."""
    for turn in range(6):
        model, gate = f"moment-{turn}", Gate()
        hasty.origin.on(model, [gate, *stream(delta("a"), ending=Ending.HANG)])
        visit = await (await Visit.open(hasty.url)).post(PATH, chat(model, stream=True))
        await happens(gate.reached)
        connection = hasty.origin.asked(model)[0].connection
        os.kill(hasty.daemon.pid, signal.SIGSTOP)
        try:
            gate.open()
            await becomes(lambda: connection.sent() > len(delta("a")))  # noqa: B023
            await visit.leave(reset=True)
        finally:
            os.kill(hasty.daemon.pid, signal.SIGCONT)
        await happens(connection.closed)
        assert [row["state"] for row in hasty.daemon.settled(model)] == ["cancelled"]


async def test_a_client_that_says_it_will_send_no_more_has_left(hasty):
    """Half-closed: nginx and aiohttp take it as the end, and so does proxyd; the upstream stops."""
    hasty.origin.on("half", stream(delta("a"), ending=Ending.HANG))
    visit = await begin(hasty, "half")
    await visit.until(delta("a"))
    visit._writer.write_eof()
    await happens(hasty.origin.asked("half")[0].connection.closed)
    (row,) = hasty.daemon.settled("half")
    assert (row["state"], row["error"]) == ("cancelled", "client_gone")
    await visit.leave()


async def test_a_client_that_leaves_before_its_request_was_sent_has_used_up_nothing(launch, origin):
    """The row stands, for the call was about to be made; but no upstream has read the prompt."""
    daemon = launch(upstreams={"origin": at(origin, max_connections=1)}, models={"*": "origin"})
    origin.on("first", stream(delta("a"), ending=Ending.HANG))
    first = await begin(daemon, "first")
    await first.until(delta("a"))
    second = await (await Visit.open(daemon.url)).post(PATH, chat("second"))
    called = None
    while called is None:  # a row that is on disk is taken back while its exchange has not heard of it
        running = (await ask(daemon.ops, "/state", method="GET")).json()["running"]
        called = next((one["upstream"] for one in running if one["model"] == "second"), None)
    await second.leave()
    (row,) = daemon.settled("second")
    assert (row["state"], row["error"]) == ("cancelled", "client_gone")
    assert (row["prompt_tokens"], row["completion_tokens"], row["tokens_source"]) == (None, None, "none")
    await first.leave()
    assert daemon.settled("first")[0]["prompt_tokens"] > 0  # that one was read
    assert not origin.asked("second")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_takes_nothing_of_its_answer_is_let_go(hasty, streamed):
    model = f"stuck-{streamed}"
    text = "x" * 16 * MIB
    hasty.origin.on(model, flood(head(200, SSE), chunk(delta("x" * 8000))) if streamed else whole(completion(text)))
    visit = await (await Visit.open(hasty.url, receive_buffer=8 * 1024)).post(PATH, chat(model, stream=streamed))
    await becomes(lambda: hasty.origin.asked(model))
    if streamed:
        await happens(hasty.origin.asked(model)[0].connection.closed)
        (row,) = hasty.daemon.settled(model)
        assert (row["state"], row["error"]) == ("cancelled", "client_gone")
    await becomes(lambda: established(hasty.daemon, visit) == 0)
    await visit.leave(reset=True)


async def test_a_slow_reader_is_not_a_silent_one(hasty):
    """Bytes that trickle keep it: what counts is that something was taken, not how much is left."""
    size = 12 * MIB
    hasty.origin.on("trickle", whole(completion("x" * size)))
    visit = await (await Visit.open(hasty.url, receive_buffer=64 * 1024)).post(PATH, chat("trickle"))
    until = time.monotonic() + 2.5
    await visit.head()
    taken = 0
    while time.monotonic() < until:
        taken += len(await visit.some())
        await asyncio.sleep(0.1)
    answer = await visit.rest()
    assert answer.whole
    assert len(answer.body) > size
    await visit.leave()


def established(daemon, visit: Visit) -> int:
    """How many connections the daemon's process has with this client."""
    port = visit._writer.get_extra_info("sockname")[1]
    found = 0
    inodes = set()
    for link in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                inodes.add(match[1])
    for line in Path(f"/proc/{daemon.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        found += fields[2].endswith(f":{port:04X}") and fields[9] in inodes
    return found
