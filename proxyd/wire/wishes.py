"""What a request says to proxyd beside what it asks the model: delivery, the name it goes by, its conversation.

A protobuf request has fields for it. A JSON request has top-level members (`delivery`, `handle`), which are taken off before
an upstream sees them, and the header `Delivery`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.errors import ProxyError
from proxyd.model import Ask, Endpoint
from proxyd.wire.delivery import Delivery, from_header, from_members
from proxyd.wire.proto import chat, name_bytes, name_text
from proxyd.wire.proto_embed import FLOAT32, embeddings_request

if TYPE_CHECKING:
    from collections.abc import Iterable

_AS_USUAL = Delivery()
_STREAMED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})


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


def from_protobuf(endpoint: Endpoint, data: bytes) -> Asked:
    """Read a protobuf request. Raises ProxyError invalid_request."""
    if endpoint is Endpoint.EMBEDDINGS:
        embeddings = embeddings_request(data)
        return Asked(embeddings.body, len(data), Wishes(vectors=embeddings.encoding))
    asked = chat(data)
    handle = name_text(asked.handle) if asked.handle else None
    conversation = name_text(asked.conversation) if asked.conversation else None
    return Asked(asked.body, len(data), Wishes(asked.delivery, handle, conversation, asked.history))


def taken(ask: Ask, headers: Iterable[tuple[bytes, bytes]]) -> tuple[Ask, Wishes]:
    """Take the wishes out of a JSON request: the request without them, and what they are. Raises ProxyError invalid_request."""
    if ask.endpoint not in _STREAMED:
        return ask, NO_WISHES
    said = b", ".join(value for name, value in headers if name.lower() == b"delivery")
    fields = ask.fields
    if not said and "delivery" not in fields and "handle" not in fields:
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
    rest = {name: value for name, value in fields.items() if name not in {"delivery", "handle"}}
    return replace(ask, fields=rest), Wishes(delivery, handle)


def _read(raw: Any) -> object:
    try:
        return orjson.loads(bytes(raw))
    except orjson.JSONDecodeError:
        raise ProxyError("invalid_json", "The JSON body of your request is not valid.") from None
