"""Keys on disk: what is written is read, and what cannot be is refused without a trace."""

import sqlite3

import pytest

from proxyd.model import TOKENS, Budget, Caller, DeliveryDefaults, Limits, Per
from proxyd.store.db import Database
from proxyd.store.keys import ApiKeys, KeyRefusedError, StoredKey, stored

NOW = 1_800_000_000_000_000
HOUR = 3600 * 10**6
FULL = Caller(
    "full",
    ("a", "b*"),
    admin=True,
    limits=Limits(1, 2, 3),
    budget=Budget(5, TOKENS, Per.DAY, 0.5),
    default_model="a",
    expires_at=NOW + 2 * HOUR,
    delivery=DeliveryDefaults(0, 4096, compress=False),
)


@pytest.fixture
async def store(tmp_path):
    database = Database(tmp_path / "k.db")
    await database.open()
    yield ApiKeys(database), tmp_path / "k.db"
    await database.close()


def key(caller, number=1, now=NOW):
    return StoredKey(0, bytes([number]) * 32, f"pxd_{number:04}", caller, now)


@pytest.mark.parametrize("caller", [Caller("bare"), FULL], ids=lambda caller: caller.name)
async def test_a_key_is_read_as_it_was_written(store, caller):
    keys, path = store
    (added,) = await keys.add(key(caller))
    assert (added.caller, added.prefix, added.hash, added.created_at, added.revoked_at) == (caller, "pxd_0001", b"\1" * 32, NOW, None)
    assert await keys.load() == stored(path) == [added]


async def test_a_caller_has_one_first_key(store):
    keys, _ = store
    await keys.add(key(Caller("a")))
    with pytest.raises(KeyRefusedError, match="has a key already"):
        await keys.add(key(Caller("a"), 2))
    await keys.revoke("a", None, NOW)
    await keys.add(key(Caller("a"), 2))
    assert [row.live(NOW) for row in await keys.load()] == [False, True]


async def test_the_same_key_is_never_there_twice(store):
    keys, _ = store
    await keys.add(key(Caller("a")))
    with pytest.raises(sqlite3.IntegrityError):
        await keys.add(key(Caller("b")))
    assert len(await keys.load()) == 1


async def test_a_replacement_allows_the_same_and_lets_the_old_one_live_on(store):
    keys, _ = store
    await keys.add(key(FULL))
    new, old = await keys.replace("full", (b"\2" * 32, "pxd_0002"), NOW, NOW + HOUR)
    assert new.caller == FULL  # its own end goes on to hold
    assert old.caller.expires_at == NOW + HOUR
    assert (old.live(NOW), old.live(NOW + HOUR)) == (True, False)
    with pytest.raises(KeyRefusedError, match="two live keys"):
        await keys.replace("full", (b"\3" * 32, "pxd_0003"), NOW, NOW + HOUR)
    await keys.replace("full", (b"\3" * 32, "pxd_0003"), NOW, NOW)  # without grace the others end
    assert [row.prefix for row in await keys.load() if row.live(NOW)] == ["pxd_0003"]


async def test_grace_never_makes_a_key_live_longer(store):
    keys, _ = store
    await keys.add(key(FULL))
    _, old = await keys.replace("full", (b"\2" * 32, "pxd_0002"), NOW, NOW + 100 * HOUR)
    assert old.caller.expires_at == FULL.expires_at


async def test_nothing_is_replaced_or_revoked_that_is_not_there(store):
    keys, _ = store
    for refused in (keys.replace("a", (b"\2" * 32, "x"), NOW, NOW), keys.revoke("a", None, NOW)):
        with pytest.raises(KeyRefusedError, match="no live key"):
            await refused
    await keys.add(key(Caller("a")))
    with pytest.raises(KeyRefusedError, match="begins with pxd_9999"):
        await keys.revoke("a", "pxd_9999", NOW)


async def test_use_is_noted(store):
    keys, _ = store
    (added,) = await keys.add(key(Caller("a")))
    await keys.used({added.id: NOW + 5})
    assert [row.last_used_at for row in await keys.load()] == [NOW + 5]
