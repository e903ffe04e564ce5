"""Decoding of gzip and deflate as the bytes arrive, for a copy that is only read. Bounded against bombs."""

from __future__ import annotations

import zlib

CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
"""The content codings that `Inflater` knows (RFC 9110, 8.4.1)."""

# A burst of output for one piece of input. Text compresses some 3 to 20 times; a bomb 1000 times.
_BURST = 1 << 20
_RATIO = 64
_SLICE = 1 << 16
_MEMBERS = 64

_AUTO = zlib.MAX_WBITS | 32  # gzip or zlib, by the header
_RAW = -zlib.MAX_WBITS


class Inflater:
    """Incremental decoder of one body. After `failed` nothing more comes out."""

    __slots__ = ("_coding", "_decoder", "_members", "_started", "failed")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._decoder = zlib.decompressobj(_AUTO)
        self._started = False
        self._members = 1
        self.failed = False
        """The input was damaged, or swelled beyond all measure."""

    def feed(self, data: bytes) -> list[bytes]:
        """What `data` decodes to, in slices; at most 1 MiB + 64 times its size."""
        out: list[bytes] = []
        room = _BURST + _RATIO * len(data)
        while data and not self.failed:
            try:
                piece = self._decoder.decompress(data, _SLICE)
            except zlib.error:
                if not self._headless():
                    self.failed = True
                    break
                continue
            self._started = True
            room -= len(piece)
            if room < 0:
                self.failed = True
                break
            if piece:
                out.append(piece)
            data = self._decoder.unconsumed_tail
            if self._decoder.eof:
                data = self._next_member()
        return out

    def _headless(self) -> bool:
        """`deflate` means zlib's format, but some servers send it without its header: try that, once, at the start."""
        if self._started or self._coding != "deflate":
            return False
        self._started = True
        self._decoder = zlib.decompressobj(_RAW)
        return True

    def _next_member(self) -> bytes:
        """A gzip body may have several members (RFC 1952, 2.2). Anything else after the end is padding."""
        rest = self._decoder.unused_data
        if not rest.startswith(b"\x1f") or self._members >= _MEMBERS:
            return b""
        self._members += 1
        self._decoder = zlib.decompressobj(_AUTO)
        return rest
