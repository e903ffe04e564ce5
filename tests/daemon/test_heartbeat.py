"""A loop that stands still is named while it does, counted, and does not feed the supervisor's watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest

from proxyd.clock import Clock
from proxyd.daemon.heartbeat import Heartbeat
from proxyd.daemon.systemd import Notifier
from proxyd.metrics import Metrics
from tests.daemon.scrape import series
from tests.e2e.client import ask, becomes, chat
from tests.origin import DONE, HANG, Gate, completion, delta, stream, whole
from tests.process import settings

PATH = "/v1/chat/completions"


def empty(manager: socket.socket) -> int:
    """Read what waits; how many datagrams that were."""
    count = 0
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while manager.recv(4096):
            count += 1
    manager.settimeout(HANG)
    return count


@pytest.fixture
def supervisor(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "supervisor"))
        made.settimeout(HANG)
        yield made


@pytest.fixture
async def heartbeat(tmp_path, supervisor):
    """One that beats in this test's own loop, with its metrics."""
    metrics, notifier = Metrics("0"), Notifier({"NOTIFY_SOCKET": str(tmp_path / "supervisor")})
    heart = Heartbeat(Clock(), metrics, notifier, 0.1)
    beating = asyncio.create_task(heart.beat())
    yield metrics
    beating.cancel()
    heart.close()
    notifier.close()


async def test_a_stalled_loop_is_named_and_feeds_nobody(heartbeat, supervisor, caplog):
    def hold_up() -> None:
        """Keep the loop until the other thread has noticed: it is the one that writes."""
        empty(supervisor)
        until = time.monotonic() + HANG
        while "held up" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)  # a blocking call in a coroutine, as a bug would have it

    for _ in range(2):
        assert await asyncio.to_thread(supervisor.recv, 100) == b"WATCHDOG=1"
    hold_up()
    assert empty(supervisor) == 0
    (record,) = [record for record in caplog.records if "held up" in record.message]
    assert "daemon/test_heartbeat.py" in record.message
    assert record.message.endswith(" hold_up")
    assert "\n" not in record.message
    assert await asyncio.to_thread(supervisor.recv, 100) == b"WATCHDOG=1"  # it goes on
    await becomes(lambda: "stood still for" in caplog.text)
    text = heartbeat.render().decode()
    assert series(text, "proxyd_loop_stalls_total") == {"": 1}
    assert series(text, "proxyd_loop_lag_seconds_bucket")['le="0.25"'] < series(text, "proxyd_loop_lag_seconds_count")[""]


async def test_a_loop_that_turns_is_not_complained_of(heartbeat, supervisor, caplog):
    for _ in range(5):
        await asyncio.to_thread(supervisor.recv, 100)
    assert "held up" not in caplog.text
    assert series(heartbeat.render().decode(), "proxyd_loop_stalls_total") == {"": 0}


async def test_a_daemon_that_hangs_is_killed_by_its_supervisor_and_its_successor_settles_what_ran(start, origin, manager, connect):
    """The supervisor's part, played: silence for longer than WatchdogSec= means SIGABRT and a new start; the socket is held meanwhile."""
    gate = Gate()
    origin.on("slow", stream(delta("one"), gate, DONE))
    origin.on("m", whole(completion("hi")))
    upstreams = {"origin": {"kind": "openai", "base_url": origin.url}}
    with socket.create_server(("127.0.0.1", 0)) as held:
        environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
        daemon = start(settings(upstreams=upstreams, models={"*": "origin"}), environ=environ, handed={"clients": held})
        manager.until("WATCHDOG=1")
        running = await (await connect(daemon.url)).post(PATH, chat("slow", stream=True))
        await running.head()
        await running.until(b"one")
        os.kill(daemon.pid, signal.SIGSTOP)  # nothing in it moves any more
        manager.empty()
        assert await asyncio.to_thread(manager.silent, 0.4)
        waiting = asyncio.create_task(ask(daemon.url, PATH, chat("m")))
        for number in (signal.SIGABRT, signal.SIGCONT):
            os.kill(daemon.pid, number)
        assert await asyncio.to_thread(daemon.child.wait) == -signal.SIGABRT
        daemon.child.end()
        await asyncio.to_thread(daemon.start)
        assert (await waiting).status == 200
        assert not (await running.rest()).whole
        assert [row["state"] for row in daemon.rows("slow")] == ["interrupted"]
        daemon.stop()
    gate.open()
