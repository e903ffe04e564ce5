"""Which upstreams a model name means, who may use it, and in which order they are tried."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.config.patterns import covers
from proxyd.config.schema import Strategy
from proxyd.model import UNLIMITED
from proxyd.rules.auth import limits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxyd.config.schema import Config, Model
    from proxyd.model import Caller, Limits

EXPLORE = 0.05
"""Share of `lowest_latency` requests that begin elsewhere, so that what was slow once is measured again."""
SUGGEST_AMONG = 200
"""Names compared for a suggestion, and its longest name: a wrong name must not cost more than a right one."""
SUGGEST_LENGTH = 96


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream of a route and the model's name there."""

    upstream: str
    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """What a model name means."""

    label: str
    """The key in the YAML (`hf/*`), for metrics and limits: a client cannot make up new ones."""
    model: Model
    targets: tuple[Target, ...]
    """In the order of the YAML; `order` says in which order to try them."""
    limits: Limits = UNLIMITED
    """Of all callers together."""
    per_caller: Limits = UNLIMITED


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an upstream at this moment."""

    busy: int = 0
    """Exchanges running there."""
    latency: float | None = None
    """Running mean of seconds to the first byte; None before the first answer."""
    ready_in: float = 0.0
    """Seconds until its breaker lets a request pass; 0 when it does now."""
    may_retry: bool = True
    """Its retry budget has something left."""


UNKNOWN = Facts()
"""An upstream of which nothing is known yet: idle, and let through."""


class RouteTable:
    """The route table of one configuration; never changes. Raises ValueError for an alias that leads nowhere."""

    __slots__ = ("_aliases", "_exact", "_lengths", "_limits", "_prefixes")

    def __init__(self, config: Config) -> None:
        self._exact = {name: model for name, model in config.models.items() if not name.endswith("*")}
        self._prefixes = {name[:-1]: model for name, model in config.models.items() if name.endswith("*")}
        self._limits = {name: (limits_of(model.limits), limits_of(model.limits.per_caller)) for name, model in config.models.items()}
        self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)
        self._aliases = config.aliases
        for alias in config.aliases:
            if self.resolve(alias) is None:
                raise ValueError(f"alias `{alias}` leads to no model")

    def resolve(self, asked: str) -> Route | None:
        """Find the route of a name: as it is written, else as an alias, else by the longest pattern. None: no such model."""
        name = asked
        if asked not in self._exact and asked in self._aliases:
            name = self._aliases[asked]
        model = self._exact.get(name)
        label = name
        if model is None:
            prefix = self._longest_prefix(name)
            if prefix is None:
                return None
            model, label = self._prefixes[prefix], f"{prefix}*"
        targets = tuple(_targets(model, name))
        return Route(label, model, targets, *self._limits[label]) if targets else None

    def allowed(self, caller: Caller, asked: str) -> bool:
        """Whether a caller may use a name: by that name, or by the one that it is an alias of."""
        if any(covers(pattern, asked) for pattern in caller.models):
            return True
        meant = self._aliases.get(asked) if asked not in self._exact else None
        return meant is not None and any(covers(pattern, meant) for pattern in caller.models)

    def listed(self, caller: Caller | None = None) -> list[str]:
        """List the names for `GET /v1/models`, models before aliases; patterns have none. With a caller, only what it may use."""
        names = [*self._exact, *(alias for alias in self._aliases if alias not in self._exact)]
        return names if caller is None else [name for name in names if self.allowed(caller, name)]

    def suggest(self, caller: Caller, asked: str) -> str | None:
        """Guess which name was meant, among those that the caller may know of; None where nothing is near."""
        if len(asked) > SUGGEST_LENGTH:
            return None
        names = {name.lower(): name for name in self.listed(caller)[:SUGGEST_AMONG]}
        near = difflib.get_close_matches(asked.lower(), names, n=1, cutoff=0.7)
        return names[near[0]] if near else None

    def _longest_prefix(self, name: str) -> str | None:
        for length in self._lengths:
            if length <= len(name) and name[:length] in self._prefixes:
                return name[:length]
        return None


def order(route: Route, facts: Mapping[str, Facts], chance: float) -> list[Target]:
    """Put a route's targets into the order in which to try them: the strategy's choice first, the rest as its fallbacks.

    Upstreams whose breaker is open come last, whatever the strategy. `chance` is in [0, 1).
    """
    targets = _ORDER[route.model.strategy](route.targets, facts, chance)
    return sorted(targets, key=lambda target: facts.get(target.upstream, UNKNOWN).ready_in > 0)


def _targets(model: Model, name: str) -> list[Target]:
    targets = []
    for target in model.upstreams:
        there = target.model
        if there is None:
            there = name.removeprefix(model.strip_prefix) if model.strip_prefix else name
        if there:
            targets.append(Target(target.upstream, there, target.weight))
    return targets


def _as_written(targets: Sequence[Target], _facts: Mapping[str, Facts], _chance: float) -> list[Target]:
    return list(targets)


def _by_weight(targets: Sequence[Target], _facts: Mapping[str, Facts], chance: float) -> list[Target]:
    """Draw without replacement, one float for all draws: what is left of it inside the drawn share is uniform again.

    Taking some out of such an order leaves the others in their proportions: so the share of an upstream that rests goes to
    all the others by weight.
    """
    left = list(targets)
    drawn: list[Target] = []
    while left:
        point = chance * sum(target.weight for target in left)
        for index, target in enumerate(left):
            if point < target.weight or index == len(left) - 1:
                chance = min(max(point / target.weight, 0.0), 1.0)
                drawn.append(left.pop(index))
                break
            point -= target.weight
    return drawn


def _by_load(targets: Sequence[Target], facts: Mapping[str, Facts], _chance: float) -> list[Target]:
    return sorted(targets, key=lambda target: facts.get(target.upstream, UNKNOWN).busy)


def _by_latency(targets: Sequence[Target], facts: Mapping[str, Facts], chance: float) -> list[Target]:
    """Fastest first, and the unmeasured before them all; now and then another one leads."""
    latency = {target.upstream: facts.get(target.upstream, UNKNOWN).latency for target in targets}
    ranked = sorted(targets, key=lambda target: latency[target.upstream] or 0.0)
    if chance < EXPLORE:
        leader = ranked.pop(min(int(chance / EXPLORE * len(ranked)), len(ranked) - 1))
        ranked.insert(0, leader)
    return ranked


_ORDER = {
    Strategy.FAILOVER: _as_written,
    Strategy.WEIGHTED: _by_weight,
    Strategy.LEAST_BUSY: _by_load,
    Strategy.LOWEST_LATENCY: _by_latency,
}
