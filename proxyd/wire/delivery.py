"""How a client wants its answer delivered: by the request's `delivery` message, or, for JSON clients, a header or member.

The header is `Delivery: max-delay-ms=100, detail=full` (a dictionary of RFC 9651, tokens and numbers only); the member is
`"delivery": {"max_delay_ms": 100}` in the body, which proxyd takes off before it forwards. All three give a `Delivery`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from proxyd.errors import ProxyError
from proxyd.model import DeliveryDefaults
from proxyd.wire._pb import chat_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxyd.config.schema import Delivery as Written

    T = TypeVar("T")

MAX_DELAY_MS = 10_000
MAX_HELD = 65_536
"""Bytes of text that are ever held back in one stream."""
MAX_PAD = 1024


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the client asked for; None is "not said", and a default of the key, of the route, of all or of the format holds."""

    max_delay_ms: int | None = None
    max_bytes: int = MAX_HELD
    full: bool | None = None
    """DETAIL_FULL; None: not said, which is DETAIL_COMPACT."""
    pad_to: int = 0
    omit_reasoning: bool = False
    resumable: bool = False
    compress: bool = False


def from_message(message: chat_pb2.Delivery) -> Delivery:
    """Read the protobuf message. Raises ProxyError `invalid_request` for what is out of bounds or not known.

    A client that allows token ids is sent text all the same, as the schema has it for servers without the vocabulary.
    """
    _known("delivery.token_vocabulary", {0: False, 1: True}, message.token_vocabulary)
    return _bounded(
        Delivery(
            max_delay_ms=message.max_delay_ms if message.HasField("max_delay_ms") else None,
            max_bytes=message.max_bytes or MAX_HELD,
            full=_known("delivery.detail", {0: None, 1: False, 2: True}, message.detail),
            pad_to=message.pad_to,
            omit_reasoning=message.omit_reasoning,
            resumable=message.resumable,
            compress=message.compress,
        )
    )


def from_members(members: object) -> Delivery:
    """Read a JSON object with the field names of the protobuf message; `detail` is "compact" or "full".

    Raises ProxyError `invalid_request` for anything else.
    """
    if not isinstance(members, dict):
        raise _refusal("delivery", "must be an object")
    return _read({str(name): value for name, value in members.items()})


def from_header(value: str) -> Delivery:
    """Read a `Delivery` header; names have hyphens, a bare name is true. Raises ProxyError `invalid_request`."""
    members: dict[str, object] = {}
    for item in value.split(","):
        name, sep, text = (part.strip() for part in item.partition("="))
        if not name:
            continue
        members[name.replace("-", "_")] = _item(text) if sep else True
    return _read(members)


def combined(key: DeliveryDefaults, route: Written, rest: Written) -> DeliveryDefaults:
    """What holds where a request says nothing: the key's word, else the route's, else everybody's.

    But a route that never compresses has its reasons in what it answers, and no key changes them.
    """
    return DeliveryDefaults(
        _first(key.max_delay_ms, route.max_delay_ms, rest.max_delay_ms),
        _first(key.max_bytes, route.max_bytes, rest.max_bytes),
        False if route.compress is False else _first(key.compress, route.compress, rest.compress),
    )


def with_defaults(delivery: Delivery, default: DeliveryDefaults) -> Delivery:
    """Fill in what the client did not say; `compress: false` holds against it. To ask for MAX_HELD is to say nothing."""
    return replace(
        delivery,
        max_delay_ms=_first(delivery.max_delay_ms, default.max_delay_ms),
        max_bytes=(default.max_bytes or MAX_HELD) if delivery.max_bytes == MAX_HELD else delivery.max_bytes,
        compress=delivery.compress if default.compress is None else default.compress,
    )


def _first(said: T | None, *others: T | None) -> T | None:
    for each in others:
        if said is not None:
            break
        said = each
    return said


def _item(text: str) -> object:
    if text in {"?0", "?1"}:  # RFC 9651's booleans
        return text == "?1"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


_NUMBERS = ("max_delay_ms", "max_bytes", "pad_to")
_FLAGS = ("omit_reasoning", "resumable", "compress")
_WORDS = {"detail": {"compact": 1, "full": 2}, "token_vocabulary": {"o200k_base": 1}}


def _read(members: Mapping[str, object]) -> Delivery:
    message = chat_pb2.Delivery()
    for name, value in members.items():
        number = name in _NUMBERS and type(value) is int and 0 <= value < 2**31
        if number or (name in _FLAGS and isinstance(value, bool)):
            setattr(message, name, value)
        elif name in _WORDS and isinstance(value, str) and value in _WORDS[name]:
            setattr(message, name, _WORDS[name][value])
        else:
            raise _refusal(f"delivery.{name}"[:64], "is unknown or has a wrong value")
    return from_message(message)


def _known(name: str, table: Mapping[int, bool | None], value: int) -> bool | None:
    if value not in table:
        raise _refusal(name, "has a value that is not known")
    return table[value]


def _bounded(delivery: Delivery) -> Delivery:
    for name, bound in (("max_delay_ms", MAX_DELAY_MS), ("max_bytes", MAX_HELD), ("pad_to", MAX_PAD)):
        if (getattr(delivery, name) or 0) > bound:
            raise _refusal(f"delivery.{name}", f"is more than {bound}")
    return delivery


def _refusal(name: str, fault: str) -> ProxyError:
    return ProxyError("invalid_request", f"{name} {fault}.", param=name)
