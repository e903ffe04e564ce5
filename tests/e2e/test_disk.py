"""The disk fails under the real daemon: full, locked, read-only, erring. As `storage.on_failure` says; and it heals by itself."""

import contextlib
import errno
import os
import sqlite3
import subprocess

import pytest

from tests.crash import compiler
from tests.e2e.client import Visit, ask, becomes, chat
from tests.e2e.conftest import at
from tests.faults import Faults
from tests.origin import DONE, Gate, completion, delta, stream, whole
from tests.process import Daemon, settings

PATH = "/v1/chat/completions"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def full(daemon: Daemon):
    """No room on the database's disk."""
    ballast = daemon.database.parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    yield
    ballast.unlink()


@contextlib.contextmanager
def locked(daemon: Daemon):
    """Another process holds the database for itself."""
    link = sqlite3.connect(daemon.database, isolation_level=None)
    link.execute("BEGIN IMMEDIATE")
    yield
    link.rollback()
    link.close()


def erring(**faults: int):
    """The kernel says so of the database's files."""

    def fault(daemon: Daemon):
        return daemon.faults.failing(**faults)

    return fault


FAULTS = {
    "full": full,
    "locked": locked,
    "read-only": erring(write=errno.EROFS, sync=errno.EROFS, open=errno.EROFS),  # as ext4 turns after an error
    "unwritable": erring(write=errno.EIO),
    "unsynced": erring(sync=errno.EIO),
    "unreadable": erring(read=errno.EIO, write=errno.EIO, open=errno.EIO),
}


@pytest.fixture
def started(tmp_path, small_disk, origin):
    """Start a daemon whose database is on the small disk, and may fail in other ways, too."""
    running: list[Daemon] = []

    def start(on_failure: str) -> Daemon:
        if compiler() is None:
            pytest.skip("no C compiler")
        database = small_disk / "p.db"
        storage = {"url": f"sqlite:///{database}", "on_failure": on_failure}
        config = settings(upstreams={"origin": at(origin)}, models={"*": {"upstream": "origin", "retry": {"attempts": 1}}}, storage=storage)
        faults = Faults(tmp_path, database)
        daemon = Daemon(tmp_path, config, faults.environ)
        daemon.database, daemon.faults = database, faults
        running.append(daemon)
        return daemon.start()

    yield start
    for daemon in running:
        if daemon.child is not None:
            daemon.child.end()


async def trouble(daemon: Daemon) -> None:
    """Ask until the daemon has noticed that its disk fails, by way of /ready, without a client in the way."""
    while (await ask(daemon.url, "/ready", method="GET")).status == 200:
        await ask(daemon.url, PATH, chat("probe"))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_while_the_disk_fails_new_work_is_refused_and_running_work_ends_and_all_is_written_after(started, origin, fault):
    gate = Gate()
    origin.on("*", whole(completion("hi")))
    origin.on("running", stream(delta("a"), gate, delta("", finish="stop"), DONE))
    daemon = started("refuse")
    running = await (await Visit.open(daemon.url)).post(PATH, chat("running", stream=True))
    await running.head()
    await running.until(delta("a"))
    with fault(daemon):
        await trouble(daemon)
        count = len(origin.requests)
        refused = await ask(daemon.url, PATH, chat("refused"))
        assert (refused.status, refused.error()["code"]) == (503, "ledger_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert len(origin.requests) == count
        gate.open()
        assert (await running.rest()).whole  # its open row was on disk; its settled one waits in memory
    await running.leave()
    await becomes(lambda: [row["state"] for row in daemon.rows("running")] == ["done"])
    while (await ask(daemon.url, "/ready", method="GET")).status != 200:
        pass
    assert (await ask(daemon.url, PATH, chat("after"))).status == 200
    assert [row["state"] for row in daemon.settled("after")] == ["done"]
    assert daemon.rows("refused") == []
    daemon.stop()


@pytest.mark.parametrize("fault", [full, locked, FAULTS["read-only"]], ids=["full", "locked", "read-only"])
async def test_where_answers_matter_more_than_bills_they_go_on_and_rows_follow(started, origin, fault):
    origin.on("*", whole(completion("hi")))
    daemon = started("serve")
    with fault(daemon):
        await trouble(daemon)
        for number in range(20):
            assert (await ask(daemon.url, PATH, chat(f"m{number}"))).status == 200
    await becomes(lambda: [row["state"] for row in daemon.rows() if row["model"].startswith("m")] == ["done"] * 20)
    daemon.stop()


async def test_a_disk_that_is_read_only_at_the_start_is_told_with_what_to_do(started):
    daemon = started("refuse")
    daemon.stop()
    told = r"exit 1[\s\S]*Read-only file system\): make it writable for this user"
    with FAULTS["read-only"](daemon), pytest.raises(AssertionError, match=told):
        daemon.start()
    daemon.start().stop()
