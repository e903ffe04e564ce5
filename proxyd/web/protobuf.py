"""Answers as protobuf: whole ones as one message, streams as delimited frames, errors as `proxyd.v1.Error`, with lean headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import orjson

from proxyd.errors import ProxyError
from proxyd.flow.packer import Packer, unpackable
from proxyd.model import Format
from proxyd.wire import proto_embed, proto_error, proto_reply
from proxyd.wire._pb import chat_pb2
from proxyd.wire.inflate import inflated
from proxyd.wire.meter import format_of
from proxyd.wire.negotiate import DELIMITED, PROTOBUF
from proxyd.wire.proto_frames import FrameReader, delimited
from proxyd.wire.proto_stream import padded
from proxyd.wire.proto_whole import as_stream
from proxyd.wire.wishes import NO_WISHES, Wishes

if TYPE_CHECKING:
    from proxyd.clock import Clock
    from proxyd.web.encoder import Emit, Headers

_KEPT = frozenset(
    {b"idempotent-replayed", b"preference-applied", b"allow", b"www-authenticate", b"vary", b"stream-events", b"stream-state"}
)
"""Headers that stay on lean answers: what they say is said nowhere else."""
MAX_FRAME = 64 << 20
"""Bytes of one frame of ours that is taken up again, to be padded or put into an envelope."""
Write = Callable[[bytes, Wishes], bytes]
"""Writes a whole answer of OpenAI's JSON as the message that its endpoint has. Raises ProxyError."""


def write_chat(body: bytes, wishes: Wishes) -> bytes:
    """A ChatCompletion."""
    return proto_reply.completion(body, wishes.delivery)


def write_embeddings(body: bytes, wishes: Wishes) -> bytes:
    """A CreateEmbeddingsResponse."""
    return proto_embed.embeddings(body, wishes.vectors)


def write_nothing(_body: bytes, _wishes: Wishes) -> bytes:
    """An empty message: there is nothing to say but that it is done."""
    return b""


def as_chat(_query: Mapping[str, str]) -> Write:
    """What writes completions."""
    return write_chat


def as_embeddings(_query: Mapping[str, str]) -> Write:
    """What writes vectors."""
    return write_embeddings


def as_nothing(_query: Mapping[str, str]) -> Write:
    """What writes empty answers."""
    return write_nothing


def as_models(query: Mapping[str, str]) -> Write:
    """A ListModelsResponse, or one Model; `page_size` and `page_token` stand in the query."""

    def write(body: bytes, _wishes: Wishes) -> bytes:
        document = orjson.loads(body)
        if "data" not in document:
            page = proto_embed.models([document])
            return chat_pb2.ListModelsResponse.FromString(page).models[0].SerializeToString()
        size = query.get("page_size", "0")
        if not (size.isascii() and size.isdigit() and len(size) < 8):
            raise ProxyError("invalid_request", "`page_size` is a number of models.", param="page_size")
        return proto_embed.models(document["data"], chat_pb2.ListModelsRequest(page_size=int(size), page_token=query.get("page_token", "")))

    return write


class Protobuf:
    """The answer of one exchange at an endpoint that speaks protobuf."""

    protocol = "protobuf"
    ends = False

    def __init__(self, write: Write, clock: Clock, *, streamed: bool = False) -> None:
        """`streamed`: a stream of chat was asked for, so that an answer that is said at once is written as one, too."""
        self._write = write
        self._clock = clock
        self._wishes = NO_WISHES
        self._streamed = streamed
        self._delimited = False
        """The whole answer was written as a stream."""
        self._packer: Packer | None = None
        self._framed = False
        self._frames = FrameReader(MAX_FRAME)

    @property
    def lean(self) -> bool:
        """All but DETAIL_FULL."""
        return not self._wishes.delivery.full

    def wish(self, wishes: Wishes, *, streamed: bool) -> None:
        """Learn how the client wants it."""
        self._wishes = wishes
        self._streamed = streamed

    def take_frames(self) -> bool:
        """From now on what comes are frames already."""
        self._framed = True
        return True

    def _padded(self, data: bytes) -> bytes:
        """Frames as this client wants them."""
        multiple = self._wishes.delivery.pad_to
        if not self._framed:
            return b""
        if multiple < 2:
            return data
        return b"".join(padded(message, multiple, delimited) for message in self._frames.feed(data))

    def head(self, headers: Headers, *, streamed: bool) -> Headers:
        """Choose the headers: a content type of ours, and what is kept."""
        kind = (b"Content-Type", DELIMITED if streamed or self._delimited else PROTOBUF)
        kept = [header for header in headers if header[0].lower() in _KEPT or (not self.lean and _told(header[0].lower()))]
        return [kind, *kept]

    def document(self, body: bytes) -> bytes:
        """Write a whole answer. Who asked for a stream reads frames, whatever the upstream made of it."""
        body = inflated(body)
        if not self._streamed:
            return self._write(body, self._wishes)
        self._delimited = True
        return Packer(self._wishes.delivery, self._clock, lambda _: None).end(as_stream(body))

    def refusal(self, error: ProxyError) -> tuple[int, Headers, bytes]:
        """Write an error."""
        return error.status, self.head((), streamed=False), proto_error.error_body(error)

    def begin(self, headers: Headers, data: bytes, emit: Emit) -> bytes:
        """Begin a stream."""
        if self._framed:
            return self._padded(data)
        names = {name.lower(): value.decode("latin-1") for name, value in headers}
        if b"content-encoding" in names or format_of(names.get(b"content-type"), streamed=True, head=data) is not Format.SSE:
            raise unpackable()
        self._packer = Packer(self._wishes.delivery, self._clock, emit)
        return self._packer.feed(data)

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream."""
        return self._packer.feed(data) if self._packer is not None else self._padded(data)

    def ping(self) -> bytes:
        """Give an empty frame."""
        return self._packer.ping() if self._packer is not None else b""

    def end(self, data: bytes) -> bytes:
        """Take the stream's last bytes."""
        return self._packer.end(data) if self._packer is not None else self._padded(data)

    def fail(self, data: bytes) -> bytes:
        """Take the last bytes of a stream that breaks."""
        return self._packer.fail(data) if self._packer is not None else self._padded(data)

    def stop(self) -> None:
        """Nothing is emitted from now on."""
        if self._packer is not None:
            self._packer.stop()


def _told(name: bytes) -> bool:
    """What a client that wants everything gets of the upstream's and our headers."""
    return name not in {b"content-type", b"content-encoding", b"cache-control", b"x-accel-buffering"}
