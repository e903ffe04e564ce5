"""Routes: what a name means, who may use it, and in which order its upstreams are tried."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.config.schema import Config, Kind, Model, Strategy, Target, Upstream
from proxyd.model import Caller
from proxyd.rules.routes import EXPLORE, Facts, RouteTable, order

ANYBODY = Caller("a")


def to(*upstreams: str, **options: object) -> Model:
    return Model(upstreams=tuple(Target(upstream=upstream) for upstream in upstreams), **options)


def table(models: dict[str, Model], aliases: dict[str, str] | None = None) -> RouteTable:
    names = {target.upstream for model in models.values() for target in model.upstreams}
    return RouteTable(Config(upstreams={name: Upstream(kind=Kind.ECHO) for name in names}, models=models, aliases=aliases or {}))


TABLE = table(
    {
        "gpt-4o": to("openai"),
        "gpt-*": to("azure"),
        "gpt-4o-*": to("mini"),
        "hf/*": to("hub", strip_prefix="hf/"),
        "fast": Model(upstreams=(Target(upstream="ollama", model="llama3.2:1b", weight=3), Target(upstream="openai"))),
        "org/name:tag": to("ollama"),
    },
    {"gpt-3.5-turbo": "fast", "best": "gpt-4o-2024", "hub": "hf/a/b:c", "gpt-4o": "fast"},
)


@pytest.mark.parametrize(
    ("asked", "label", "targets"),
    [
        ("gpt-4o", "gpt-4o", [("openai", "gpt-4o")]),  # exact before alias and pattern
        ("gpt-3.5-turbo", "fast", [("ollama", "llama3.2:1b"), ("openai", "fast")]),  # alias before pattern
        ("gpt-4o-mini", "gpt-4o-*", [("mini", "gpt-4o-mini")]),  # the longest pattern
        ("gpt-4", "gpt-*", [("azure", "gpt-4")]),
        ("gpt-", "gpt-*", [("azure", "gpt-")]),
        ("hf/meta/llama:x", "hf/*", [("hub", "meta/llama:x")]),
        ("hf/hf/x", "hf/*", [("hub", "hf/x")]),  # taken off once
        ("best", "gpt-4o-*", [("mini", "gpt-4o-2024")]),
        ("hub", "hf/*", [("hub", "a/b:c")]),
        ("org/name:tag", "org/name:tag", [("ollama", "org/name:tag")]),
    ],
)
def test_a_name_is_found_as_written_then_as_alias_then_by_the_longest_pattern(asked: str, label: str, targets: list) -> None:
    route = TABLE.resolve(asked)
    assert route is not None
    assert route.label == label
    assert [(target.upstream, target.model) for target in route.targets] == targets


@pytest.mark.parametrize("asked", ["", "gpt", "GPT-4o", "org/name", "hf/", "hf", "llama3.2:1b", "*"])
def test_what_no_line_means_is_no_model(asked: str) -> None:
    assert TABLE.resolve(asked) is None


def test_a_star_alone_takes_every_name() -> None:
    assert table({"*": to("o")}).resolve("any/thing:x").targets[0].model == "any/thing:x"


@pytest.mark.parametrize("aliases", [{"a": "nothing"}, {"a": "b", "b": "a"}, {"a": "a"}])
def test_an_alias_must_lead_to_a_model(aliases: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="leads to no model"):
        table({"m": to("o")}, aliases)


@pytest.mark.parametrize(
    ("models", "asked", "may"),
    [
        (("*",), "anything", True),
        ((), "gpt-4o", False),
        (("gpt-4o",), "gpt-4o", True),
        (("gpt-4o",), "gpt-4o-mini", False),
        (("gpt-*",), "gpt-4o-mini", True),
        (("fast",), "gpt-3.5-turbo", True),  # by the name behind the alias
        (("gpt-3.5-turbo",), "gpt-3.5-turbo", True),  # by the alias itself
        (("gpt-3.5-turbo",), "fast", False),
        (("fast",), "gpt-4o", False),  # an alias in the shadow of a model means nothing
        (("GPT-4o",), "gpt-4o", False),
    ],
)
def test_a_caller_may_use_what_its_patterns_name(models: tuple[str, ...], asked: str, *, may: bool) -> None:
    assert TABLE.allowed(Caller("a", models), asked) is may


def test_models_and_aliases_are_listed_once_and_patterns_are_not() -> None:
    assert TABLE.listed() == ["gpt-4o", "fast", "org/name:tag", "gpt-3.5-turbo", "best", "hub"]
    assert TABLE.listed(Caller("a", ("gpt-*", "org/name:tag"))) == ["gpt-4o", "org/name:tag", "gpt-3.5-turbo", "best"]


def test_a_near_miss_is_told_only_of_what_the_caller_may_use() -> None:
    assert TABLE.suggest(ANYBODY, "gpt4o") == "gpt-4o"
    assert TABLE.suggest(ANYBODY, "Org/Name:Tag") == "org/name:tag"
    assert TABLE.suggest(ANYBODY, "zzz") is None
    assert TABLE.suggest(Caller("a", ("fast",)), "gpt4o") is None
    assert TABLE.suggest(ANYBODY, "gpt4o" * 50) is None


def ordered(strategy: Strategy, weights: dict[str, int], facts: dict[str, Facts], chance: float = 0.5) -> list[str]:
    model = Model(upstreams=tuple(Target(upstream=name, weight=weight) for name, weight in weights.items()), strategy=strategy)
    route = table({"m": model}).resolve("m")
    return [target.upstream for target in order(route, facts, chance)]


ABC = {"a": 1, "b": 1, "c": 1}


def test_failover_is_the_order_of_the_file() -> None:
    assert ordered(Strategy.FAILOVER, ABC, {"a": Facts(busy=9, latency=9.0)}) == ["a", "b", "c"]


def test_the_least_busy_comes_first_and_ties_keep_the_order_of_the_file() -> None:
    assert ordered(Strategy.LEAST_BUSY, ABC, {"a": Facts(busy=2), "b": Facts(busy=1), "c": Facts(busy=1)}) == ["b", "c", "a"]


def test_the_fastest_comes_first_after_those_never_measured() -> None:
    assert ordered(Strategy.LOWEST_LATENCY, ABC, {"a": Facts(latency=2.0), "b": Facts(latency=1.0)}) == ["c", "b", "a"]


def test_now_and_then_a_slower_one_is_measured_again() -> None:
    facts = {"a": Facts(latency=1.0), "b": Facts(latency=2.0), "c": Facts(latency=3.0)}
    firsts = {ordered(Strategy.LOWEST_LATENCY, ABC, facts, EXPLORE * share)[0] for share in (0.1, 0.5, 0.9)}
    assert firsts == {"a", "b", "c"}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_an_upstream_that_rests_comes_last_and_is_still_there(strategy: Strategy) -> None:
    facts = {"a": Facts(ready_in=3.0), "b": Facts(busy=5, latency=5.0), "c": Facts(busy=6, latency=6.0)}
    for chance in (0.0, 0.3, 0.99):
        result = ordered(strategy, {"a": 100, "b": 1, "c": 1}, facts, chance)
        assert result[-1] == "a"
        assert sorted(result) == ["a", "b", "c"]


def test_weights_are_shares_of_the_first_place_and_of_the_second_too() -> None:
    draws = [tuple(ordered(Strategy.WEIGHTED, {"a": 3, "b": 1, "c": 1}, {}, (index + 0.5) / 1000)) for index in range(1000)]
    first = Counter(draw[0] for draw in draws)
    assert first == {"a": 600, "b": 200, "c": 200}
    second_after_b = Counter(draw[1] for draw in draws if draw[0] == "b")
    assert second_after_b["a"] == pytest.approx(150, abs=2)


def test_the_share_of_one_that_rests_goes_to_all_the_others_by_weight() -> None:
    facts = {"a": Facts(ready_in=1.0)}
    draws = Counter(ordered(Strategy.WEIGHTED, {"a": 6, "b": 3, "c": 1}, facts, (index + 0.5) / 1000)[0] for index in range(1000))
    assert draws == {"b": 750, "c": 250}


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True), st.sampled_from(list(Strategy)))
def test_an_order_has_every_target_once(weights: list[int], chance: float, strategy: Strategy) -> None:
    named = {f"u{index}": weight for index, weight in enumerate(weights)}
    assert sorted(ordered(strategy, named, {}, chance)) == sorted(named)
