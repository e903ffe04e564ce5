"""What a reload applies, and what it says that waits."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.diff import Change, applied, compare
from proxyd.config.load import parse
from proxyd.config.schema import Config
from tests.config.samples import BASE, GOOD, secrets


def config(text: str) -> Config:
    return parse(text, filename="c.yaml", secrets=secrets())


@pytest.mark.parametrize(
    ("old", "new", "live", "waiting"),
    [
        (BASE, BASE, [], []),
        (BASE, BASE + "  new: ollama\n", ["models.new added"], []),
        (BASE + "  old: ollama\n", BASE, ["models.old removed"], []),
        (BASE, BASE.replace("llama3.2: ollama", "llama3.2: openai"), ["models.llama3.2.upstreams changed"], []),
        (BASE, BASE.replace("${KEY}", "other"), ["upstreams.openai.api_key changed"], []),
        (BASE, BASE + "listen: 127.0.0.1:9\nops: {listen: off}\n", [], ["listen changed", "ops.listen changed"]),
        (BASE, BASE + "environment: test\nstreams: {ping: 1s}\n", ["streams.ping changed"], ["environment changed"]),
        (BASE, BASE + "storage: {url: sqlite:///x.db, durability: relaxed}\n", ["storage.durability changed"], ["storage.url changed"]),
        (BASE, BASE + "auth: none\n", ["auth changed"], []),
        (BASE, BASE + "auth: {keys: [{name: a, key: x}]}\n", ["auth.keys.a added"], []),
        (
            BASE + "auth: {keys: [{name: a, key: x}, {name: b, key: y}]}\n",
            BASE + "auth: {keys: [{name: b, key: z}, {name: c, key: y}]}\n",
            ["auth.keys.a removed", "auth.keys.b.key changed", "auth.keys.c added"],
            [],
        ),
        (
            BASE + "auth: {keys: [{name: a, key: x}, {name: b, key: y}]}\n",
            BASE + "auth: {keys: [{name: b, key: y}, {name: a, key: x}]}\n",
            ["auth.keys changed"],
            [],
        ),
        (BASE, BASE + "  x: {upstream: ollama, set: {a: 1}}\n", ["models.x added"], []),
        (
            BASE + "  x: {upstream: ollama, set: {a: 1, b: 2}}\n",
            BASE + "  x: {upstream: ollama, set: {a: 2, b: 2}}\n",
            ["models.x.set.a changed"],
            [],
        ),
    ],
)
def test_each_difference_is_told_once_by_its_path(old, new, live, waiting):
    found = compare(config(old), config(new))
    assert [str(change) for change in found.live] == live
    assert [str(change) for change in found.waiting] == waiting
    assert bool(found) == bool(live or waiting)


def test_no_value_is_told():
    found = compare(config(BASE), config(BASE.replace("${KEY}", "sk-another-secret")))
    assert "sk-" not in repr(found)


def test_what_waits_stays_as_it_was_and_is_told_again_next_time():
    old, new = config(BASE), config(BASE + "  new: ollama\nlisten: 127.0.0.1:9\nstorage: {durability: relaxed, url: sqlite:///x.db}\n")
    runs = applied(old, new)
    assert (runs.listen, runs.storage.url) == (old.listen, old.storage.url)
    assert (runs.models, runs.storage.durability) == (new.models, new.storage.durability)
    assert compare(runs, new).live == ()
    assert [change.path for change in compare(runs, new).waiting] == ["listen", "storage.url"]


SAMPLES = st.sampled_from([config(text) for text in GOOD.values()])


@given(SAMPLES, SAMPLES)
def test_between_any_two_files_the_live_part_is_all_that_is_applied(old, new):
    runs = applied(old, new)
    assert compare(runs, new).live == ()
    assert compare(old, runs).waiting == ()
    assert compare(old, runs).live == compare(old, new).live
    assert bool(compare(old, new)) == (msgspec.to_builtins(old, str_keys=True) != msgspec.to_builtins(new, str_keys=True))


def test_a_change_reads_as_one_would_say_it():
    assert str(Change("models.x", "added")) == "models.x added"
