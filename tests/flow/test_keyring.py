"""Keys are changed on disk and in memory together, whoever asked for it and left."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from proxyd.clock import Clock
from proxyd.flow.keyring import Keyring
from proxyd.model import Caller
from proxyd.store.db import Database
from proxyd.store.keys import ApiKeys, KeyRefusedError
from tests.flow.stops import Stop


@pytest.fixture
async def database(tmp_path):
    found = Database(tmp_path / "k.db")
    await found.open()
    yield found
    await found.close()


async def _ring(database):
    ring = Keyring(ApiKeys(database), Clock(), random.Random(1))
    await ring.load()
    return ring


@pytest.mark.parametrize("change", ["create", "rotate", "revoke"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_change_whose_asker_left_holds_here_as_it_does_on_disk(database, change, late):
    ring = await _ring(database)
    secret, _ = await ring.create(Caller("laptop"))
    changes = {
        "create": lambda: ring.create(Caller("phone")),
        "rotate": lambda: ring.rotate("laptop", 0),
        "revoke": lambda: ring.revoke("laptop", None),
    }
    with contextlib.suppress(asyncio.CancelledError):
        await Stop(1, late).over(changes[change]())
    await database.submit(lambda _: None)  # whatever was begun is on disk now
    assert ring.listed() == (await _ring(database)).listed()
    assert (ring.find(secret.encode()) is not None) == (change == "create")


async def test_a_key_that_is_on_disk_no_longer_lets_nobody_in_once_that_is_told(database):
    ring = await _ring(database)
    secret, _ = await ring.create(Caller("laptop"))
    await (await _ring(database)).revoke("laptop", None)  # as after a commit of which nobody knew whether it had failed
    with pytest.raises(KeyRefusedError):
        await ring.revoke("laptop", None)
    assert ring.find(secret.encode()) is None
