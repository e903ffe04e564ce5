"""Which keys may stand in the file: never no to one that does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxyd.store.known import Known, collect

NAME = st.tuples(st.text(max_size=5), st.text(max_size=5))


@given(st.lists(NAME), st.lists(NAME), st.lists(NAME))
def test_what_was_found_or_added_before_or_after_is_known(found, before, after):
    known = Known()
    for name in before:
        known.add(name)
    known.learn(*collect(found))
    for name in after:
        known.add(name)
    assert all(name in known for name in [*found, *before, *after])
    assert known.count == len(found) + len(after)


def test_until_it_has_learnt_every_key_may_stand():
    known = Known()
    assert ("a", "b") in known
    known.learn(*collect([]))
    assert ("a", "b") not in known


def test_new_keys_are_hardly_ever_taken_for_known():
    known = Known()
    known.learn(*collect(("caller", f"key-{number}") for number in range(20_000)))
    assert sum(("caller", f"new-{number}") in known for number in range(20_000)) < 20


def test_made_anew_it_forgets_what_has_gone_and_keeps_what_came_meanwhile():
    known = Known()
    known.learn(*collect([("a", "old"), ("a", "stays")]))
    assert known.listen()
    assert not known.listen()
    known.add(("a", "new"))
    assert ("a", "old") in known  # until it has learnt
    known.learn(*collect([("a", "stays")]))
    assert [("a", key) in known for key in ("old", "stays", "new")] == [False, True, True]
    assert not known.listening
