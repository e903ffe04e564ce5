"""The request's body: from bytes to an Ask, and from an Ask to the bytes that an upstream gets.

Law: the upstream never sees the client's bytes, but the members that were parsed, written anew. So what proxyd routed,
limited and billed by is what the upstream acts on, also where a member came twice (the last one counts, RFC 8259 4).
Values are carried as the client wrote them; only names are spelled afresh.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from proxyd.config.schema import FIXED_MEMBERS
from proxyd.errors import ProxyError
from proxyd.model import LONGEST, STREAMED, Ask, Endpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MAX_MEMBERS = 256
"""Top-level members of a request. OpenAI knows 37; a million of them would stall the event loop for a second."""
MAX_MODEL_NAME = 256
"""Characters of a model name."""
MAX_COUNT = 2**31 - 1
"""Of `n`, `max_tokens` and `max_completion_tokens`; what the upstreams' own integers hold."""
MAX_LOOK = 1 << 20
"""Bytes of a body that is no JSON in which is looked for the reason: 20 ms at worst."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_NO_HALF = re.compile(rb"(?:[^\\]++|(?:\\(?!u[dD][89a-fA-F])[\s\S])++|(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})++)*+")
T = TypeVar("T")
_TRUE = Raw(b"true")
_NULL = b"null"


@dataclass(frozen=True, slots=True)
class Edits:
    """What a route changes in the requests that it passes on. Made once per route; raises ValueError for a fixed member."""

    model: str | None = None
    """The model's name at the upstream; None keeps the client's."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Members added where the client sent none (a null that it sent stays)."""
    force: Mapping[str, Any] = field(default_factory=dict)
    """Members that replace the client's, or are added."""
    drop: Collection[str] = ()
    """Members removed from what the client sent, before `set` and `force` add theirs."""
    ask_usage: bool = False
    """Ask a stream for its usage event (`stream_options.include_usage`)."""
    rename_max_tokens: bool = False
    """Say `max_completion_tokens` also as `max_tokens`: Ollama's /v1 ignores the modern name and would never stop."""

    def __post_init__(self) -> None:
        for name in (*self.set, *self.force, *self.drop):
            if name in FIXED_MEMBERS:
                raise ValueError(f"`{name}` cannot be set, forced or dropped: it steers the exchange")


class _StreamOptions(Struct):
    include_usage: bool | None = None


_TEXT = Decoder(str)
_SWITCH = Decoder(bool | None)
_COUNT = Decoder(Annotated[int, Meta(ge=-MAX_COUNT, le=MAX_COUNT)] | None)
_CHOICES = Decoder(Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None)
_OPTIONS = Decoder(_StreamOptions | None)


class _Name(str):
    """A member's name. A type of its own, so that msgspec shows each one to `_Names` and can be stopped."""

    __slots__ = ()


class _Names:
    """Counts the members while they are decoded: without it three million of them take two seconds."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most

    def take(self, _kind: type, name: str) -> _Name:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"an object with more than {MAX_MEMBERS} members")
        return _Name(name)


def parse_ask(endpoint: Endpoint, body: bytes, default_model: str | None = None) -> Ask:
    """Read the few members that proxyd needs out of a JSON body, and keep the rest raw. `default_model` stands for none.

    The raw values point into `body` and keep it alive. `wire.text` must have passed it.
    Raises ProxyError `invalid_json` where it is not JSON, else `invalid_request` with `param`.
    """
    fields = _members(body)
    model = default_model if default_model is not None and _absent(fields, "model") else _model(fields)
    if endpoint not in STREAMED:
        return Ask(endpoint, model, stream=False, wants_usage=False, max_tokens=None, choices=1, fields=fields)
    options = _member(fields, "stream_options", _OPTIONS, "an object whose include_usage is a boolean")
    limits = [_limit(fields, name) for name in LONGEST]
    return Ask(
        endpoint=endpoint,
        model=model,
        stream=_member(fields, "stream", _SWITCH, "a boolean") or False,
        wants_usage=options is not None and options.include_usage is True,
        max_tokens=next((limit for limit in limits if limit is not None), None),
        choices=_member(fields, "n", _CHOICES, "an integer of at least 1") or 1,
        fields=fields,
    )


def upstream_body(ask: Ask, edits: Edits) -> bytes:
    """Write the body that the upstream gets: the client's members in the client's order, but for the edits; additions last.

    A limit of the answer's length goes by two names: what a route forces or adds by one of them counts for the other too.
    """
    gone: Collection[str] = edits.drop
    if edits.force and len(other := [name for name in LONGEST if name not in edits.force]) < len(LONGEST):
        gone = {*gone, *other}
    members = {name: value for name, value in ask.fields.items() if name not in gone}
    limited = bool(edits.set) and any(name in members for name in LONGEST)
    for name, value in edits.set.items():
        if name not in members and not (limited and name in LONGEST):
            members[name] = _raw(value)
    for name, value in edits.force.items():
        members[name] = _raw(value)
    if edits.rename_max_tokens and "max_completion_tokens" in members and _absent(members, "max_tokens"):
        members["max_tokens"] = members["max_completion_tokens"]
    if edits.ask_usage and ask.stream and ask.endpoint in STREAMED:
        members["stream_options"] = _with_usage(members.get("stream_options"))
    if edits.model is not None:
        members["model"] = _raw(edits.model)
    return msgspec.json.encode(members)


def route_asks_usage(force: Mapping[str, Any], drop: Collection[str]) -> bool | None:
    """Whether a route has its streams asked for their usage event, or keeps them from it. None where it says nothing."""
    options = force.get("stream_options")
    said = options.get("include_usage") if isinstance(options, dict) else None
    if isinstance(said, bool):
        return said
    return False if "stream_options" in drop else None


def _members(body: bytes) -> dict[str, Raw]:
    try:
        members = msgspec.json.decode(body, type=dict[_Name, Raw], dec_hook=_Names(MAX_MEMBERS).take)
    except msgspec.ValidationError as error:
        if "members" in str(error):
            _refuse(f"The body of your request has more than {MAX_MEMBERS} members.", None)
        _refuse("The body of your request must be a JSON object.", None)
    except UnicodeDecodeError:
        raise ProxyError("invalid_json", "The JSON body of your request is not valid UTF-8.") from None
    except msgspec.DecodeError as error:
        raise ProxyError("invalid_json", f"We could not parse the JSON body of your request: {_half_pair(body) or error}.") from None
    except RecursionError:
        raise ProxyError("invalid_json", "The JSON body of your request is nested too deeply.") from None
    return {str(name): value for name, value in members.items()}


def _half_pair(body: bytes) -> str | None:
    """Tell of half a surrogate pair, where text was cut inside an emoji, say: msgspec calls it truncated input, or a hex escape that is."""
    read = _NO_HALF.match(body) if len(body) <= MAX_LOOK else None
    if read is None or (found := _HALF.match(body, read.end())) is None:
        return None
    return f"{found[0].decode()} in a text is half of a surrogate pair, and no character (byte {found.start()})"


def _model(fields: Mapping[str, Raw]) -> str:
    if "model" not in fields:
        _refuse("You must provide a model parameter.", "model")
    model = _member(fields, "model", _TEXT, "a string")
    if not model:
        _refuse("You must provide a model parameter.", "model")
    if len(model) > MAX_MODEL_NAME:
        _refuse(f"`model` must be at most {MAX_MODEL_NAME} characters.", "model")
    if not model.isprintable():  # controls, line and paragraph separators, direction marks: it goes into logs and pages
        _refuse("`model` must have printable characters only.", "model")
    return model


def _limit(fields: Mapping[str, Raw], name: str) -> int | None:
    """Read a limit of output tokens; below zero is llama.cpp's and Ollama's way to say that there is none."""
    limit = _member(fields, name, _COUNT, "an integer")
    return None if limit is None or limit < 0 else limit


def _member(fields: Mapping[str, Raw], name: str, decoder: Decoder[T], what: str) -> T | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return decoder.decode(value)
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        _refuse(f"`{name}` must be {what}.", name)


def _absent(members: Mapping[str, Raw], name: str) -> bool:
    """Whether a member is missing or null."""
    value = members.get(name)
    return value is None or bytes(value) == _NULL


def _with_usage(options: Raw | None) -> Raw:
    """Stream options that ask for usage, and keep what else they say (include_obfuscation); null becomes an object."""
    merged = {} if options is None else msgspec.json.decode(options, type=dict[str, Raw] | None) or {}
    merged["include_usage"] = _TRUE
    return Raw(msgspec.json.encode(merged))


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def _refuse(message: str, param: str | None) -> NoReturn:
    raise ProxyError("invalid_request", message, param=param) from None
