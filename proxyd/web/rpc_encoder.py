"""Answers over Connect and gRPC-Web: the same messages as on the plain routes, in the envelopes and with the endings of RPC.

Such a stream always ends as HTTP ends bodies: whether it was whole is said by its last envelope.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxyd.errors import TABLE, ProxyError
from proxyd.flow.packer import unpackable
from proxyd.web.protobuf import MAX_FRAME, Protobuf, Write
from proxyd.wire import connect
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_error import error_json
from proxyd.wire.proto_frames import FrameReader
from proxyd.wire.proto_stream import padded

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from proxyd.clock import Clock
    from proxyd.web.encoder import Emit, Headers
    from proxyd.wire.wishes import Wishes


@dataclass(frozen=True, slots=True)
class Speech:
    """Which of the protocols, and how its messages are written."""

    protocol: str
    """As the ledger calls it: connect or grpc-web."""
    streamed: bool
    """Messages stand in envelopes; the HTTP status is 200."""
    json: bool
    kind: bytes
    """The Content-Type of answers."""
    text: bool = False
    """All of it in base64: for what reads a running answer as text only (XMLHttpRequest)."""


class Rpc:
    """One answer. `answer` is the message that whole answers are, and those of streams."""

    ends = True

    def __init__(self, speech: Speech, write: Write, answer: type[Message], clock: Clock) -> None:
        self._speech = speech
        self._answer = answer
        self._chunks = answer is chat_pb2.ChatCompletionChunk
        self._inner = Protobuf(write, clock, streamed=self._chunks)
        self._frames = FrameReader(MAX_FRAME)
        self._pad = 0
        self._error: ProxyError | None = None
        """What the stream said to be wrong; it is told in the last envelope."""

    @property
    def protocol(self) -> str:
        """What the ledger calls it."""
        return self._speech.protocol

    @property
    def lean(self) -> bool:
        """As plain protobuf."""
        return self._inner.lean

    def wish(self, wishes: Wishes, *, streamed: bool) -> None:
        """Learn how the client wants it; padding counts the envelope, so it is done here."""
        self._pad = wishes.delivery.pad_to
        self._inner.wish(replace(wishes, delivery=replace(wishes.delivery, pad_to=0)), streamed=streamed)

    def take_frames(self) -> bool:
        """As plain protobuf."""
        return self._inner.take_frames()

    def head(self, headers: Headers, *, streamed: bool) -> Headers:
        """The plain one's, with the content type of the protocol."""
        rest = [header for header in self._inner.head(headers, streamed=streamed) if header[0] != b"Content-Type"]
        return [(b"Content-Type", self._speech.kind), *rest]

    def document(self, body: bytes) -> bytes:
        """Write a whole answer."""
        if self._chunks:
            return self._text(self._envelopes(self._inner.document(body)) + self._ending(self._error))
        message = self._inner.document(body)
        if self._speech.streamed:
            return self._text(connect.envelope(message) + self._ending(None))
        return self._written(message)

    def refusal(self, error: ProxyError) -> tuple[int, Headers, bytes]:
        """Write an error that is the whole answer."""
        if self._speech.streamed:
            return 200, [(b"Content-Type", self._speech.kind)], self._text(self._ending(error))
        status, body = connect.error_body(error)
        return status, [(b"Content-Type", b"application/json")], body

    def begin(self, headers: Headers, data: bytes, emit: Emit) -> bytes:
        """Begin a stream. Raises ProxyError upstream_bad_response where the method has one answer: its client reads no other."""
        if not self._chunks:
            raise unpackable()
        return self._text(self._envelopes(self._inner.begin(headers, data, lambda more: emit(self._text(self._envelopes(more))))))

    def feed(self, data: bytes) -> bytes:
        """Take more of it."""
        return self._text(self._envelopes(self._inner.feed(data)))

    def ping(self) -> bytes:
        """An empty message."""
        return self._text(self._envelopes(self._inner.ping()))

    def end(self, data: bytes) -> bytes:
        """Take its last bytes."""
        return self._text(self._envelopes(self._inner.end(data)) + self._ending(self._error))

    def fail(self, data: bytes) -> bytes:
        """Take the last bytes of a stream that breaks: the last envelope says why."""
        out = self._envelopes(self._inner.fail(data))
        return self._text(out + self._ending(self._error or ProxyError("internal", "The answer broke off.")))

    def stop(self) -> None:
        """Nothing is emitted from now on."""
        self._inner.stop()

    def _envelopes(self, frames: bytes) -> bytes:
        out = []
        for message in self._frames.feed(frames):
            if b"\x42" in message and (error := _error_in(message)) is not None:
                self._error = error
                continue
            written = self._written(message)
            pad = self._pad if not self._speech.json else 0
            out.append(padded(written, pad, connect.envelope) if pad > 1 else connect.envelope(written))
        return b"".join(out)

    def _text(self, data: bytes) -> bytes:
        return base64.b64encode(data) if self._speech.text else data

    def _written(self, message: bytes) -> bytes:
        return connect.to_json(self._answer.FromString(message)) if self._speech.json else message

    def _ending(self, error: ProxyError | None) -> bytes:
        return connect.web_trailers(error) if self._speech.protocol == "grpc-web" else connect.end_of_stream(error)


def _error_in(message: bytes) -> ProxyError | None:
    """The error that a frame tells; None for other frames (a text may hold the byte of its tag)."""
    frame = chat_pb2.ChatCompletionChunk.FromString(message)
    if not frame.HasField("error"):
        return None
    said = frame.error
    code = said.code if said.code in TABLE else "upstream_error"
    wait = said.retry_after_ms / 1000 or None
    return ProxyError(code, said.message, status=said.status or None, retry_after=wait, body=error_json(said))
