"""Compressed request bodies: decoded piece by piece, never to more than the caller allows.

gzip and deflate come with Python; br and zstd with the extra `compress`. A truncated body, bytes behind the end, and joined
members are refused: what two readers may understand differently is not passed on (and joined zstd frames are a known bomb).
"""

from __future__ import annotations

import zlib
from typing import Protocol

from proxyd.errors import ProxyError

CODINGS = ("gzip", "deflate", "br", "zstd")
STEP = 64 * 1024
"""Decoded bytes made at once, so that a bomb is noticed after one step."""


class Decoder(Protocol):
    """Decodes one body."""

    def feed(self, data: bytes, room: int) -> bytes:
        """Decode a piece into at most `room` bytes. Raises ProxyError body_too_large, invalid_request."""

    def finish(self) -> None:
        """The body is over. Raises ProxyError invalid_request if it was cut short."""


def decoder(coding: str | None) -> Decoder | None:
    """The decoder for a Content-Encoding; None where there is nothing to decode. Raises ProxyError unsupported_media_type."""
    name = (coding or "identity").strip().lower()
    if name == "identity":
        return None
    if name in {"gzip", "x-gzip"}:
        return _Zlib(31)
    if name == "deflate":
        return _Zlib(15)
    try:
        if name == "br":
            return _Brotli()
        if name == "zstd":
            return _Zstd()
    except ImportError:
        raise ProxyError(
            "unsupported_media_type", f"{name} bodies need the extra `compress` of proxyd (pip install 'proxyd[compress]')."
        ) from None
    raise ProxyError("unsupported_media_type", f"The request body may come as {', '.join(CODINGS)}, or uncompressed.")


class _Zlib:
    """gzip (RFC 1952) or deflate, which is zlib (RFC 1950) by the book and raw (RFC 1951) in the wild."""

    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)
        self._may_be_raw = bits == 15

    def feed(self, data: bytes, room: int) -> bytes:
        out = bytearray()
        while data:
            if self._inner.eof:
                raise _bad("has bytes behind its end")
            try:
                out += self._inner.decompress(data, min(STEP, room + 1))
            except zlib.error:
                if not self._may_be_raw:
                    raise _bad("is not what its Content-Encoding says") from None
                self._inner = zlib.decompressobj(-15)
                self._may_be_raw = False
                continue
            self._may_be_raw = False
            _within(len(out), room)
            if self._inner.unused_data:
                raise _bad("has bytes behind its end")
            data = self._inner.unconsumed_tail
        return bytes(out)

    def finish(self) -> None:
        if not self._inner.eof:
            raise _bad("was cut short")


class _Brotli:
    def __init__(self) -> None:
        import brotli  # noqa: PLC0415 - an extra

        self._error = brotli.error
        self._inner = brotli.Decompressor()

    def feed(self, data: bytes, room: int) -> bytes:
        out = bytearray()
        try:
            while True:
                step = self._inner.process(data, output_buffer_limit=min(STEP, room + 1))
                data = b""
                out += step
                _within(len(out), room)
                if not step and self._inner.can_accept_more_data():
                    return bytes(out)
                if self._inner.is_finished():
                    return bytes(out)
        except self._error:
            raise _bad("is not what its Content-Encoding says") from None

    def finish(self) -> None:
        if not self._inner.is_finished():
            raise _bad("was cut short")


class _Zstd:
    """One frame (RFC 8878), with the window that Ollama and browsers allow: 8 MiB."""

    def __init__(self) -> None:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - Python 3.14
        except ImportError:
            from backports import zstd  # type: ignore[no-redef,unused-ignore]  # noqa: PLC0415 - an extra
        self._error = zstd.ZstdError
        self._inner = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23})

    def feed(self, data: bytes, room: int) -> bytes:
        out = bytearray()
        try:
            while data or not self._inner.needs_input:
                if self._inner.eof:
                    if data or self._inner.unused_data:
                        raise _bad("has bytes behind its end")
                    break
                out += self._inner.decompress(data, min(STEP, room + 1))
                data = b""
                _within(len(out), room)
        except self._error:
            raise _bad("is not what its Content-Encoding says") from None
        if self._inner.eof and self._inner.unused_data:
            raise _bad("has bytes behind its end")
        return bytes(out)

    def finish(self) -> None:
        if not self._inner.eof:
            raise _bad("was cut short")


def _within(size: int, room: int) -> None:
    if size > room:
        raise ProxyError("body_too_large", "The request body is too large once it is decompressed.")


def _bad(what: str) -> ProxyError:
    return ProxyError("invalid_request", f"The compressed request body {what}.")
