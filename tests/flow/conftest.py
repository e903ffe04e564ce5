"""Fixtures for whoever is stopped in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.flow.stops import Stop


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, Stop], None]:
    """Say where the next call of a function is stopped."""

    def stops(where: object, verb: str, stop: Stop) -> None:
        original = getattr(where, verb)

        def once(*given: Any, **more: Any) -> Coroutine[Any, Any, Any]:
            monkeypatch.undo()
            return stop.over(original(*given, **more))

        monkeypatch.setattr(where, verb, once)

    return stops
