"""The event loop of the bench's own processes: uvloop where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def has_uvloop() -> bool:
    """Whether proxyd's `fast` extra is installed here."""
    return importlib.util.find_spec("uvloop") is not None


def run(main: Coroutine[None, None, T]) -> T:
    """Run `main` to its end on the fastest loop there is."""
    if has_uvloop():
        import uvloop  # noqa: PLC0415 - an optional extra

        return uvloop.run(main)
    return asyncio.run(main)
