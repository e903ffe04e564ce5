"""JSON text and numbers as the protobuf mapping needs them: verbatim, checked, and spliced rather than re-encoded.

Text in `*_json` fields keeps its integers over 64 bits, its number spelling and the order of its members, so it is put
into the JSON body as it came; but first it must be exactly one JSON value, or a client could write past its place.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import msgspec
import orjson

from proxyd.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_JSON = 1024 * 1024
"""Bytes of one `*_json` field."""

_FLOAT = struct.Struct("<f")
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUE = msgspec.json.Decoder(msgspec.Raw)


def refusal(param: str, fault: str) -> ProxyError:
    """Make the error for a request that is well-formed protobuf and still means nothing."""
    return ProxyError("invalid_request", f"{param} {fault}.", param=param)


def value(text: str, param: str) -> bytes:
    """Check that the text is one JSON value; returns it as bytes. Raises ProxyError `invalid_request`."""
    raw = text.encode()
    if len(raw) > MAX_JSON:
        raise refusal(param, f"is longer than {MAX_JSON} bytes")
    try:
        _VALUE.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise refusal(param, "is not valid JSON") from None
    return raw


def members(text: str, param: str) -> dict[str, bytes]:
    """Read the members of a JSON object, each value verbatim. Raises ProxyError `invalid_request`."""
    if not text:
        return {}
    raw = text.encode()
    if len(raw) > MAX_JSON:
        raise refusal(param, f"is longer than {MAX_JSON} bytes")
    try:
        return {name: bytes(item) for name, item in _OBJECT.decode(raw).items()}
    except (msgspec.DecodeError, RecursionError):
        raise refusal(param, "is not a JSON object") from None


def merge(into: dict[str, bytes], extra_json: str, param: str) -> None:
    """Add the members of an `extra_json`; one that is there already would have two meanings and is refused."""
    if not extra_json:
        return
    for name, raw in members(extra_json, f"{param}extra_json").items():
        if name in into:
            raise refusal(f"{param}extra_json", f"has a member that its field gives too: {name[:64]}")
        into[name] = raw


def write(object_members: Mapping[str, bytes]) -> bytes:
    """Write a JSON object of which the values are JSON text already."""
    return b"{%b}" % b",".join(b"%b:%b" % (orjson.dumps(name), raw) for name, raw in object_members.items())


def write_list(items: Iterable[bytes]) -> bytes:
    """Write a JSON array of which the items are JSON text already."""
    return b"[%b]" % b",".join(items)


def single(number: float) -> float:
    """Give the float with the fewest digits that is the same float32: 0.7f reads 0.699999988, and meant 0.7.

    Six digits survive the way through float32 and nine tell any two apart (IEEE 754: FLT_DIG, FLT_DECIMAL_DIG).
    Raises ProxyError `invalid_request` where JSON has no such number.
    """
    if not math.isfinite(number):
        raise ProxyError("invalid_request", "A number is infinite or not a number, which JSON cannot say.")
    if number == int(number) and abs(number) < 2**24:
        return number
    exact = _FLOAT.pack(number)
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if _FLOAT.pack(short) == exact:
            return short
    return float(f"{number:.9g}")


def number(single_value: float) -> bytes:
    """Write a float32 as JSON; whole numbers as integers."""
    short = single(single_value)
    return b"%d" % short if short == int(short) and abs(short) < 2**53 else orjson.dumps(short)


def fits_single(number_value: float) -> bool:
    """Whether a float32 keeps this number, as `single` reads it."""
    try:
        return single(_FLOAT.unpack(_FLOAT.pack(number_value))[0]) == number_value
    except (OverflowError, ProxyError):
        return False
