"""Compressed answers: another encoder's bytes through gzip or brotli; streams are flushed at each write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.wire.compress import LEAST, Flushed, choose, whole

if TYPE_CHECKING:
    from proxyd.errors import ProxyError
    from proxyd.web.encoder import Emit, Encoder, Headers
    from proxyd.wire.wishes import Wishes


class Compressed:
    """What `inner` writes, compressed as the client takes it."""

    def __init__(self, inner: Encoder, accept_encoding: str | None) -> None:
        self._inner = inner
        self._accept = accept_encoding
        self._coding: str | None = None
        self._stream: Flushed | None = None

    @property
    def protocol(self) -> str:
        """What the ledger calls it."""
        return self._inner.protocol

    @property
    def ends(self) -> bool:
        """As the inner one."""
        return self._inner.ends

    @property
    def lean(self) -> bool:
        """As the inner one."""
        return self._inner.lean

    def wish(self, wishes: Wishes, *, streamed: bool) -> None:
        """Learn how the client wants it."""
        self._inner.wish(wishes, streamed=streamed)

    def take_frames(self) -> bool:
        """As the inner one."""
        return self._inner.take_frames()

    def head(self, headers: Headers, *, streamed: bool) -> Headers:
        """The inner one's, and the coding."""
        found = self._inner.head(headers, streamed=streamed)
        if self._coding is None:
            return found
        return [*found, (b"Content-Encoding", self._coding.encode()), (b"Vary", b"Accept-Encoding")]

    def document(self, body: bytes) -> bytes:
        """Compress a whole answer where it pays. What came coded from the upstream is left as it is."""
        body = self._inner.document(body)
        coded = self.protocol == "sse" and body.lstrip()[:1] not in (b"{", b"[")
        self._coding = None if coded or len(body) < LEAST else choose(self._accept, streamed=False)
        return body if self._coding is None else whole(body, self._coding)

    def refusal(self, error: ProxyError) -> tuple[int, Headers, bytes]:
        """Small: as it is."""
        return self._inner.refusal(error)

    def begin(self, headers: Headers, data: bytes, emit: Emit) -> bytes:
        """Begin a stream."""
        coded = any(name.lower() == b"content-encoding" for name, _ in headers)
        self._coding = None if coded else choose(self._accept, streamed=True)
        self._stream = Flushed() if self._coding is not None else None
        return self._feed(self._inner.begin(headers, data, lambda more: emit(self._feed(more))))

    def feed(self, data: bytes) -> bytes:
        """Take more of it."""
        return self._feed(self._inner.feed(data))

    def ping(self) -> bytes:
        """As the inner one."""
        return self._feed(self._inner.ping())

    def end(self, data: bytes) -> bytes:
        """Take its last bytes."""
        last = self._inner.end(data)
        return last if self._stream is None else self._stream.end(last)

    def fail(self, data: bytes) -> bytes:
        """Take the last bytes of a stream that breaks."""
        return self._feed(self._inner.fail(data))

    def stop(self) -> None:
        """Nothing is emitted from now on."""
        self._inner.stop()

    def _feed(self, data: bytes) -> bytes:
        return data if self._stream is None else self._stream.feed(data)
