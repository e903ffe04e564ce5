"""Turns on disk: written whole, once, and only onto the conversation that they were asked of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxyd.store.conversations import LATEST, Conversations, Turn
from proxyd.store.db import Database

FIRST = Turn("laptop", "n", None, 0, ('{"role":"user"}', '{"role":"assistant"}'), "m", '{"temperature":1}', "r1", 10)


@pytest.fixture
async def store(tmp_path):
    database = Database(tmp_path / "p.db")
    await database.open()
    yield Conversations(database)
    await database.close()


async def test_a_turn_begins_a_conversation_and_the_next_one_goes_on(store):
    await store.keep(FIRST)
    await store.keep(replace(FIRST, version=1, base=2, messages=("3", "4"), request_id="r2", at_us=20))
    found = await store.load("laptop", "n")
    assert found.messages == (*FIRST.messages, "3", "4")
    assert (found.length, found.version, found.model, found.settings, found.updated_at) == (4, 2, "m", '{"temperature":1}', 20)
    assert await store.load("phone", "n") is None


async def test_a_turn_that_is_written_twice_is_there_once(store):
    await store.keep(FIRST)
    await store.keep(FIRST)
    assert (await store.load("laptop", "n")).length == 2


async def test_a_turn_of_a_conversation_that_changed_meanwhile_is_left_out(store):
    await store.keep(FIRST)
    await store.keep(replace(FIRST, version=1, base=2, messages=("3",), request_id="r2"))
    await store.keep(replace(FIRST, version=1, base=2, messages=("lost",), request_id="r3"))
    assert (await store.load("laptop", "n")).messages[2:] == ("3",)


async def test_what_comes_behind_an_edited_message_goes(store):
    await store.keep(FIRST)
    await store.keep(replace(FIRST, version=1, base=1, messages=("new",), request_id="r2"))
    assert (await store.load("laptop", "n")).messages == (FIRST.messages[0], "new")


async def test_a_deleted_conversation_does_not_come_back_by_its_running_turn(store):
    await store.keep(FIRST)
    assert await store.delete("laptop", "n")
    await store.keep(replace(FIRST, version=1, base=2, request_id="r2"))
    assert await store.load("laptop", "n") is None
    assert not await store.delete("laptop", "n")


async def test_pages_go_through_all_of_a_callers_own_last_used_first(store):
    for number in range(5):
        await store.create(replace(FIRST, name=f"n{number}", at_us=100 + number // 2, request_id=f"r{number}"))
    await store.create(replace(FIRST, caller="phone", name="other"))
    before, names = (LATEST, ""), []
    while page := await store.page("laptop", before, 2):
        names += [one.name for one in page]
        before = (page[-1].updated_at, page[-1].name)
    assert names == ["n4", "n3", "n2", "n1", "n0"]


async def test_old_ones_are_pruned_with_their_messages(store):
    for number in range(30):
        await store.create(replace(FIRST, name=f"n{number}", at_us=number, request_id=f"r{number}"))
    assert await store.prune(25) == 25
    rows = await store._db.read(lambda connection: connection.execute("SELECT count(*) FROM messages").fetchone()[0])
    assert rows == 10
    assert not await store.create(replace(FIRST, name="n29"))


async def test_one_in_which_a_turn_runs_is_in_use_however_old_it_is(store):
    for caller in ("laptop", 'o"\u2028é'):
        await store.create(replace(FIRST, caller=caller, name="n"))
        await store.create(replace(FIRST, caller=caller, name="m"))
    store.busy = {("laptop", "n"), ('o"\u2028é', "m")}
    assert await store.prune(LATEST) == 2
    await store.keep(replace(FIRST, version=1, base=2, request_id="r2"))
    assert (await store.load("laptop", "n")).length == 4
    assert await store.load('o"\u2028é', "m") is not None
    store.busy = ()
    assert await store.prune(LATEST) == 2
