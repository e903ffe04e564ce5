"""Conversations of running exchanges: what was stored comes before what is asked, and a turn is stored when its answer is whole.

The law of this file: one turn of a conversation runs at a time. Who comes second is told so before anything is sent, so that
nothing that was answered is lost.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.store.conversations import Turn
from proxyd.store.db import StoreError
from proxyd.wire import turn
from proxyd.wire.inflate import inflated

if TYPE_CHECKING:
    from proxyd.flow.exchange import Exchange
    from proxyd.store.conversations import Conversations, Stored

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recalled:
    """The conversation of an exchange, as it stood when its turn began."""

    name: str
    version: int | None
    base: int
    """How many stored messages come before."""
    asked: list[bytes]
    """What the turn asks, as JSON messages."""
    model: str
    settings: str
    transcript: turn.Transcript


class Memory:
    """The conversations that exchanges run in."""

    def __init__(self, store: Conversations) -> None:
        self.store = store
        self._turns: dict[tuple[str, str], str] = {}
        """The request id of the turn that runs in a conversation."""
        store.busy = self._turns.keys()
        self._written: dict[tuple[str, str], asyncio.Future[None]] = {}
        """Turns that are on their way to the disk."""

    async def load(self, caller: str, name: str) -> Stored | None:
        """A conversation, with the turns that are still on their way to the disk. Raises ProxyError ledger_unavailable."""
        waiting = self._written.get((caller, name))
        if waiting is not None and not waiting.done():
            await asyncio.wait([waiting])
        try:
            return await self.store.load(caller, name)
        except StoreError:
            raise ProxyError("ledger_unavailable", "proxyd cannot read its conversations now.", retry_after=2) from None

    async def model_of(self, caller: str, name: str) -> str | None:
        """The model of a conversation's first turn, which later ones need not name. Raises ProxyError conversation_not_found."""
        stored = await self.load(caller, name)
        if stored is None:
            raise not_found()
        return stored.model or None

    async def recall(self, ex: Exchange) -> None:
        """Put what was stored before what is asked. Nothing, for an exchange outside conversations.

        Raises ProxyError conversation_not_found, conversation_busy, invalid_request, ledger_unavailable.
        """
        name, ask, caller = ex.wishes.conversation, ex.ask, ex.caller
        if name is None or ask is None or caller is None:
            return
        if self._turns.setdefault((caller.name, name), ex.request_id) != ex.request_id:
            raise ProxyError(
                "conversation_busy",
                "Another turn of this conversation runs. Look at what it adds, then ask again.",
                param="conversation_id",
            )
        stored = await self.load(caller.name, name)
        base = _base(stored, ex.wishes.history)
        begins = base == 0 or stored is None
        settings = turn.held_settings(ask) if begins else stored.settings  # type: ignore[union-attr]  # there is one where it does not begin
        model = ask.model if begins else stored.model or ask.model  # type: ignore[union-attr]
        version = None if stored is None else stored.version
        ex.recalled = Recalled(name, version, base, turn.asked_messages(ask), model, settings, turn.Transcript())
        ex.ask = turn.with_history(ask, () if stored is None else stored.messages[:base], "{}" if begins else settings)

    def keep(self, ex: Exchange) -> None:
        """Store the turn of an exchange whose answer is whole, in the next commit."""
        recalled, caller = ex.recalled, ex.caller
        if recalled is None or caller is None:
            return
        answer = ex.answer
        held = ex.held or (answer.meter.take_held() if answer is not None and answer.meter is not None else b"")
        if answer is not None and answer.streams:
            recalled.transcript.feed(held)
            said = recalled.transcript.message()
        else:
            said = turn.answer_message(inflated(held))
        if said is None:
            log.warning("a turn had no answer that could be stored", extra={"request_id": ex.request_id})
            return
        place = (caller.name, recalled.name)
        messages = tuple(message.decode() for message in [*recalled.asked, said])
        written = self._written[place] = self.store.keep(
            Turn(
                caller=caller.name,
                name=recalled.name,
                version=recalled.version,
                base=recalled.base,
                messages=messages,
                model=recalled.model,
                settings=recalled.settings,
                request_id=ex.request_id,
                at_us=ex.began_us,
            )
        )
        written.add_done_callback(lambda _: self._written.pop(place, None) if self._written.get(place) is written else None)

    def release(self, ex: Exchange) -> None:
        """Let the next turn of its conversation begin. Always, when the exchange is over."""
        if ex.wishes.conversation is None or ex.caller is None:
            return
        place = (ex.caller.name, ex.wishes.conversation)
        if self._turns.get(place) == ex.request_id:
            del self._turns[place]


def not_found() -> ProxyError:
    """No such conversation of this caller, or not as long as the request says."""
    return ProxyError(
        "conversation_not_found", "There is no such conversation here, or less of it than the request says.", param="conversation_id"
    )


def _base(stored: Stored | None, history: int | None) -> int:
    """How many stored messages come before. Raises ProxyError conversation_not_found."""
    if stored is None:
        if history != 0:
            raise not_found()
        return 0
    if history is not None and history > stored.length:
        raise not_found()
    return stored.length if history is None else history
