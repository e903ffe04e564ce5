"""Compressed answers: which coding a client takes (RFC 9110 12.5.3), whole bodies, and streams that are flushed at each write."""

from __future__ import annotations

import zlib

LEAST = 256
"""Bytes of a body that is worth it."""
BROTLI_QUALITY = 5
GZIP_LEVEL = 6


def choose(accept_encoding: str | None, *, streamed: bool) -> str | None:
    """The coding that an answer may leave in: gzip for streams, brotli before gzip for whole bodies; None for none.

    Brotli comes with the extra `compress`; without it, it is not offered.
    """
    weights: dict[str, float] = {}
    for item in (accept_encoding or "").split(",")[:32]:
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
    offered = ["gzip"] if streamed or not _has_brotli() else ["br", "gzip"]
    found = [(weights.get(name, 0.0), -place, name) for place, name in enumerate(offered)]
    best = max(found)
    return best[2] if best[0] > 0 else None


def whole(data: bytes, coding: str) -> bytes:
    """Compress a body; `coding` is what `choose` said."""
    if coding == "br":
        import brotli  # noqa: PLC0415 - an extra

        compressed: bytes = brotli.compress(data, quality=BROTLI_QUALITY)
        return compressed
    return zlib.compress(data, GZIP_LEVEL, 31)


class Flushed:
    """One gzip'd stream. Each piece that is fed can be read by the client at once: Z_SYNC_FLUSH, which all inflaters take."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)

    def feed(self, data: bytes) -> bytes:
        """Compress a piece."""
        return self._inner.compress(data) + self._inner.flush(zlib.Z_SYNC_FLUSH) if data else b""

    def end(self, data: bytes) -> bytes:
        """Compress the last piece."""
        return self._inner.compress(data) + self._inner.flush(zlib.Z_FINISH)


def _has_brotli() -> bool:
    try:
        import brotli  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True
