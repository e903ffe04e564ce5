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
_GZIP = b"\x1f\x8b"
_RAW = -zlib.MAX_WBITS
_JSON_STARTS = frozenset({b"{", b"["})


class Inflater:
    """Incremental decoder of one body. After `failed` nothing more comes out."""

    __slots__ = ("_decoder", "_head", "_members", "failed")

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_AUTO)
        self._head: bytes | None = b""
        self._members = 1
        self.failed = False
        """The input was damaged, or swelled beyond all measure."""

    def feed(self, data: bytes) -> list[bytes]:
        """Decode `data`, into slices; at most 1 MiB + 64 times its size comes out."""
        if self._head is not None:
            data = self._begin(self._head + data)
        out: list[bytes] = []
        room = _BURST + _RATIO * len(data)
        while data and not self.failed:
            before = self._decoder.copy()
            try:
                piece = self._decoder.decompress(data, _SLICE)
            except zlib.error:
                self.failed = True
                out += _salvage(before, data)
                break
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

    def _begin(self, head: bytes) -> bytes:
        """Tell the format by its first two bytes: `deflate` means zlib's, but some servers leave its header out."""
        if len(head) < 2:
            self._head = head
            return b""
        self._head = None
        zlib_header = head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0  # RFC 1950, 2.2
        if not zlib_header and not head.startswith(_GZIP):
            self._decoder = zlib.decompressobj(_RAW)
        return head

    def _next_member(self) -> bytes:
        """A gzip body may have several members (RFC 1952, 2.2). Anything else after the end is padding."""
        rest = self._decoder.unused_data
        if not rest.startswith(_GZIP[:1]) or self._members >= _MEMBERS:
            return b""
        self._members += 1
        self._decoder = zlib.decompressobj(_AUTO)
        return rest


def inflated(document: bytes) -> bytes:
    """A document of JSON as it reads: some upstreams compress theirs though nobody asked for it. What is none stays as it is."""
    if document[:64].lstrip()[:1] in _JSON_STARTS:
        return document
    inflater = Inflater()
    plain = b"".join(inflater.feed(document))
    return document if inflater.failed or plain.lstrip()[:1] not in _JSON_STARTS else plain


def _salvage(decoder: zlib._Decompress, data: bytes) -> list[bytes]:
    """Decode up to the damage byte by byte, since a call that fails keeps nothing. Less than a slice comes out."""
    out: list[bytes] = []
    for at in range(len(data)):
        try:
            out.append(decoder.decompress(data[at : at + 1]))
        except zlib.error:
            break
    return out
