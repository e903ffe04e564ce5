"""A write that waits for the writer, and those who wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from proxyd.store.file import StoreError
    from proxyd.store.writer import Op, Upsert


@dataclass(slots=True, eq=False)
class Entry:
    """A write that is not on disk yet."""

    work: Upsert | Op
    keep: bool
    """It outlives a failing disk in memory; otherwise it fails with it."""
    undo: Upsert | None = None
    """Takes the write back where nobody learnt that it is on disk."""
    waiters: list[asyncio.Future[Any]] = field(default_factory=list)

    def abandoned(self) -> bool:
        """Whether somebody waited for it, and all of them were cancelled."""
        waiters = self.waiters
        return bool(waiters) and waiters[0].cancelled() and all(future.cancelled() for future in waiters)

    def tell(self, result: object, error: Exception | None) -> None:
        """It is on disk, or it could not be applied: tell those who wait."""
        for future in self.waiters:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

    def release(self, trouble: StoreError) -> None:
        """The disk fails: let nobody wait any longer. A kept write counts as accepted, another one has failed."""
        self.tell(None, None if self.keep else trouble)
        self.waiters = []
