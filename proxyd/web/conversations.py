"""Conversations: begin, list, look at, delete and take away what is remembered of one's chats. Each caller sees its own alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import orjson

from proxyd.errors import ProxyError
from proxyd.flow.admit import authenticate
from proxyd.flow.claims import REPLAYED, key_in
from proxyd.flow.memory import not_found
from proxyd.rules.idempotency import fingerprint
from proxyd.store.conversations import LATEST, Turn
from proxyd.store.db import StoreError
from proxyd.store.idempotency import Claim
from proxyd.web.document import JSON, tell
from proxyd.wire import canonical
from proxyd.wire.negotiate import negotiate
from proxyd.wire.proto import name_text
from proxyd.wire.turn import MAX_MESSAGES
from proxyd.wire.wishes import conversation_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from proxyd.flow.runtime import Runtime
    from proxyd.store.conversations import Stored
    from proxyd.web.downstream import Downstream

    Headers = tuple[tuple[bytes, bytes], ...]

LINES = (b"Content-Type", b"application/jsonl")
PATH = "/v1/conversations"
MAX_PAGE = 100
EXPORTED_AT_ONCE = 20
"""Conversations that are read for one piece of an export."""


class _Begin(msgspec.Struct, forbid_unknown_fields=True):
    """What a conversation may begin with."""

    model: str = ""
    messages: list[msgspec.Raw] = []


async def begin(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Begin a conversation; a body may bring the model and the first messages, a system prompt for instance."""
    caller = await authenticate(runtime, down)
    key = key_in(down.headers)
    runtime.check_room()
    limits = runtime.snapshot.config.limits
    negotiate(down.kind, None, speaks_protobuf=False)
    body = await down.body(limits.body, limits.body_timeout)
    try:
        asked = msgspec.json.decode(body or b"{}", type=_Begin)
        messages = tuple(orjson.dumps(msgspec.json.decode(one, type=dict)).decode() for one in asked.messages)
    except msgspec.ValidationError:
        raise ProxyError("invalid_request", "The body may have `model`, a name, and `messages`, a list of messages, or be empty.") from None
    except msgspec.DecodeError:
        raise ProxyError("invalid_json", "The body is not valid JSON.") from None
    if len(messages) > MAX_MESSAGES:
        raise ProxyError("invalid_request", f"A conversation has at most {MAX_MESSAGES} messages.", param="messages")

    now = runtime.clock.now_us()

    def make() -> tuple[Headers, bytes, Awaitable[object]]:
        name = name_text(os.urandom(12))
        turn = Turn(caller.name, name, None, 0, messages, asked.model, "{}", down.request_id, now)
        body = orjson.dumps({"conversation_id": f"c_{name}", "object": "conversation", "created": now // 1_000_000})
        return (JSON,), body, runtime.memory.store.create(turn)

    if key is None:
        headers, body, made = make()
        try:
            await made
        except StoreError:
            raise ProxyError("ledger_unavailable", "proxyd cannot write its conversations now.", retry_after=2) from None
        down.reply(200, headers, body)
        return
    config, condensed = runtime.snapshot.config, fingerprint(canonical.plain(body or b"{}"))
    expires = now + int(config.storage.retain.idempotency * 1e6)
    claim = Claim(caller.name, key, PATH, False, condensed, down.request_id, 1, now, expires)
    kept, before = await runtime.once.answer(claim, config.idempotency.on_broken, make)
    if before:
        runtime.metrics.replayed()
    down.request_id = kept.request_id
    down.reply(200, [*kept.headers, *(REPLAYED if before else ())], kept.body or b"")


async def listed(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """List the caller's conversations, the last used first; `limit` and `after` go through them page by page."""
    caller = await authenticate(runtime, down)
    most = _limit(down.query)
    before = (LATEST, "")
    if after := down.query.get("after"):
        last = await runtime.memory.load(caller.name, conversation_name(after, "after"))
        if last is None:
            raise not_found()
        before = (last.updated_at, last.name)
    found = await _page(runtime, caller.name, before, most + 1)
    tell(down, {"object": "list", "data": [_told(one) for one in found[:most]], "has_more": len(found) > most})


async def one(runtime: Runtime, down: Downstream, argument: str) -> None:
    """Show a conversation with its messages; `ID/export` gives it as a file, `export` all of the caller's, one a line."""
    caller = await authenticate(runtime, down)
    if argument == "export":
        await _export(runtime, down, caller.name)
        return
    stored = await runtime.memory.load(caller.name, conversation_name(argument.removesuffix("/export")))
    if stored is None:
        raise not_found()
    if argument.endswith("/export"):
        disposition = (b"Content-Disposition", b'attachment; filename="c_%b.json"' % stored.name.encode())
        down.reply(200, [JSON, disposition], _whole(stored))
    else:
        down.reply(200, [JSON], _whole(stored))


async def delete(runtime: Runtime, down: Downstream, argument: str) -> None:
    """Delete a conversation with all its messages. A turn that runs in it ends as it would, and is not stored."""
    caller = await authenticate(runtime, down)
    name = conversation_name(argument)
    await runtime.memory.load(caller.name, name)  # what is on its way to the disk comes first
    try:
        there = await runtime.memory.store.delete(caller.name, name)
    except StoreError:
        raise ProxyError("ledger_unavailable", "proxyd cannot write its conversations now.", retry_after=2) from None
    if not there:
        raise not_found()
    tell(down, {"conversation_id": f"c_{name}", "object": "conversation", "deleted": True})


async def _export(runtime: Runtime, down: Downstream, caller: str) -> None:
    """Every conversation of the caller, one a line, as they are read: there may be more than fits in memory."""
    down.begin(200, [LINES, (b"Content-Disposition", b'attachment; filename="conversations.jsonl"')], b"")
    before = (LATEST, "")
    while found := await _page(runtime, caller, before, EXPORTED_AT_ONCE):
        for head in found:
            stored = await runtime.memory.load(caller, head.name)
            if stored is not None:
                await down.drained()
                down.write(_whole(stored) + b"\n")
        before = (found[-1].updated_at, found[-1].name)
    down.finish(b"")


async def _page(runtime: Runtime, caller: str, before: tuple[int, str], most: int) -> list[Stored]:
    try:
        return await runtime.memory.store.page(caller, before, most)
    except StoreError:
        raise ProxyError("ledger_unavailable", "proxyd cannot read its conversations now.", retry_after=2) from None


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MAX_PAGE):
        raise ProxyError("invalid_request", f"`limit` is a number from 1 to {MAX_PAGE}.", param="limit")
    return int(text)


def _told(stored: Stored) -> dict[str, object]:
    return {
        "conversation_id": f"c_{stored.name}",
        "object": "conversation",
        "model": stored.model or None,
        "length": stored.length,
        "created": stored.created_at // 1_000_000,
        "updated": stored.updated_at // 1_000_000,
    }


def _whole(stored: Stored) -> bytes:
    """A conversation and its messages, which stand as they are stored."""
    head = orjson.dumps(_told(stored))
    return head[:-1] + b',"messages":[' + b",".join(text.encode() for text in stored.messages) + b"]}"
