"""What a request says to proxyd beside what it asks the model: delivery, the name it goes by, its conversation.

A protobuf request has fields for it. A JSON request has top-level members (`delivery`, `handle`), which are taken off before
an upstream sees them, and the header `Delivery`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import Raw, Struct
from msgspec.json import Decoder

from proxyd.errors import ProxyError
from proxyd.model import STREAMED, Ask, Endpoint
from proxyd.wire.delivery import Delivery, from_header, from_members
from proxyd.wire.proto import ChatRequest, chat, name_bytes, name_text
from proxyd.wire.proto_embed import FLOAT32, EmbeddingsRequest, embeddings_request
from proxyd.wire.proto_text import write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_AS_USUAL = Delivery()
OWN = frozenset({"delivery", "handle"})
"""Members that no upstream is told of."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is for proxyd alone."""

    delivery: Delivery = _AS_USUAL
    handle: str | None = None
    """The Idempotency-Key, where the body says it: base64url of 8 to 16 bytes."""
    conversation: str | None = None
    history: int | None = None
    vectors: int = FLOAT32
    """How the vectors of embeddings are to be sent, in protobuf."""


NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's body as OpenAI's JSON, whatever it came as."""

    body: bytes
    size: int
    """Bytes as they came, decompressed."""
    wishes: Wishes | None = None
    """None: a JSON body, in which they still stand; see `taken`."""


class _Peek(Struct):
    conversation_id: str | None = None
    model: str | None = None


_PEEK = Decoder(_Peek)


def nameless_turn(asked: Asked) -> str | None:
    """The conversation of a request that names no model, before it is parsed: the model is that of the conversation.

    Raises ProxyError invalid_request for an id that is none.
    """
    if asked.wishes is None and b'"conversation_id"' not in asked.body:
        return None
    if asked.wishes is not None and asked.wishes.conversation is None:
        return None
    try:
        found = _PEEK.decode(asked.body)
    except (ValueError, RecursionError):  # what is wrong with it is said by who parses the body
        return None
    if found.model:
        return None
    if asked.wishes is not None:
        return asked.wishes.conversation
    return None if found.conversation_id is None else conversation_name(found.conversation_id)


def conversation_name(text: str, param: str = "conversation_id") -> str:
    """Read a `conversation_id`: `c_` and base64url of 8 to 16 bytes. Raises ProxyError invalid_request."""
    try:
        if text.startswith("c_"):
            return name_text(name_bytes(text[2:]))
    except ProxyError:
        pass
    raise ProxyError("invalid_request", f"`{param}` is `c_` and base64url of 8 to 16 bytes.", param=param)


def from_protobuf(endpoint: Endpoint, data: bytes) -> Asked:
    """Read a protobuf request. Raises ProxyError invalid_request."""
    if endpoint is Endpoint.EMBEDDINGS:
        return of_embeddings(embeddings_request(data), len(data))
    return of_chat(chat(data), len(data))


def of_embeddings(asked: EmbeddingsRequest, size: int) -> Asked:
    """Take an embeddings request that came as so many bytes."""
    return Asked(asked.body, size, Wishes(vectors=asked.encoding))


def of_chat(asked: ChatRequest, size: int) -> Asked:
    """Take a chat request that came as so many bytes."""
    handle = name_text(asked.handle) if asked.handle else None
    conversation = name_text(asked.conversation) if asked.conversation else None
    return Asked(asked.body, size, Wishes(asked.delivery, handle, conversation, asked.history))


def taken(ask: Ask, headers: Iterable[tuple[bytes, bytes]]) -> tuple[Ask, Wishes]:
    """Take the wishes out of a JSON request: the request without them, and what they are. Raises ProxyError invalid_request."""
    said = b", ".join(value for name, value in headers if name.lower() == b"delivery")
    if ask.endpoint not in STREAMED:  # vectors, say: no member of theirs is for proxyd, but they may be compressed
        return ask, Wishes(from_header(said.decode("latin-1"))) if said else NO_WISHES
    fields = ask.fields
    if not said and OWN.isdisjoint(fields) and "conversation_id" not in fields:
        return ask, NO_WISHES
    delivery = from_header(said.decode("latin-1")) if said else _AS_USUAL
    handle = None
    if "delivery" in fields:
        delivery = from_members(_read(fields["delivery"]))
    if "handle" in fields:
        text = _read(fields["handle"])
        if not isinstance(text, str):
            raise ProxyError("invalid_request", "`handle` must be a string: base64url of 8 to 16 bytes.", param="handle")
        handle = name_text(name_bytes(text))
    rest = {name: value for name, value in fields.items() if name not in OWN}
    conversation, history = None, None
    if ask.endpoint is Endpoint.CHAT and "conversation_id" in fields:
        conversation, history = _conversation(fields, rest)
    return replace(ask, fields=rest), Wishes(delivery, handle, conversation, history)


def _conversation(fields: Mapping[str, Raw], rest: dict[str, Raw]) -> tuple[str, int | None]:
    """Take the members of a conversation off; `message` becomes the one of `messages`. Raises ProxyError invalid_request."""
    text, history = _read(fields["conversation_id"]), None
    name = conversation_name(text if isinstance(text, str) else "")
    if "history" in fields:
        count = _read(fields["history"])
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**31:
            raise ProxyError("invalid_request", "`history` is a number of messages: 0 or more.", param="history")
        history = count
    if "message" in fields:
        message = _read(fields["message"])
        if "messages" in fields or not isinstance(message, (str, dict)):
            raise ProxyError("invalid_request", "`message` is a text or one message, and stands in place of `messages`.", param="message")
        one = bytes(fields["message"]) if isinstance(message, dict) else orjson.dumps({"role": "user", "content": message})
        rest["messages"] = Raw(b"[" + one + b"]")
    for member in ("conversation_id", "history", "message"):
        rest.pop(member, None)
    return name, history


def told_apart(ask: Ask, wishes: Wishes) -> bytes:
    """The body of a request within a conversation, in the one form in which its repetition is known again."""
    members = {name: bytes(value) for name, value in ask.fields.items()}
    members["conversation_id"] = orjson.dumps(wishes.conversation)
    members["history"] = orjson.dumps(wishes.history)
    return write(members)


def _read(raw: Any) -> object:
    try:
        return orjson.loads(bytes(raw))
    except orjson.JSONDecodeError:
        raise ProxyError("invalid_json", "The JSON body of your request is not valid.") from None
