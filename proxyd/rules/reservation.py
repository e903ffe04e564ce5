"""How much to hold back for an exchange whose cost nobody knows yet: the part of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.model import LONGEST, Endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from proxyd.config.schema import Model
    from proxyd.model import Ask

FIRST_GUESS = 512.0
"""Tokens of an answer on a route that has given none yet."""
SMOOTHING = 0.1
"""Weight of the newest answer in a route's running mean."""


def longest_answer(ask: Ask, model: Model) -> int | None:
    """Say how many tokens the answer has at most, as the request or its route bounds it; None where nothing does.

    What the route forces counts instead of what the client asked for, by either name; what it adds, only where the client was silent.
    """
    if ask.endpoint is Endpoint.EMBEDDINGS:
        return 0
    forced = _numbers(model.force)
    asked = [] if ask.max_tokens is None or any(name in model.drop for name in LONGEST) else [ask.max_tokens]
    bounds = forced or asked or _numbers(model.set)
    return max(bounds) * choices(ask, model) if bounds else None


def likely_answer(ask: Ask, model: Model, mean: float, room: int | None) -> int:
    """Guess the tokens of an answer that nothing bounds, by the mean of one choice; at most `room`, so that a guess refuses nobody."""
    guess = round(mean * choices(ask, model))
    return guess if room is None else max(1, min(guess, room))


def choices(ask: Ask, model: Model) -> int:
    """How many answers in one."""
    forced = model.force.get("n")
    if isinstance(forced, int) and not isinstance(forced, bool):
        return max(1, forced)
    if "n" in model.drop:
        return 1
    added = model.set.get("n") if "n" not in ask.fields else None
    return max(1, added) if isinstance(added, int) and not isinstance(added, bool) else ask.choices


def smoothed(mean: float | None, tokens: int) -> float:
    """Bring a running mean up to date."""
    return float(tokens) if mean is None else mean + SMOOTHING * (tokens - mean)


def _numbers(members: Mapping[str, Any]) -> list[int]:
    return [value for name in LONGEST if isinstance(value := members.get(name), int) and not isinstance(value, bool) and value >= 0]
