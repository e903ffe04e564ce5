"""The rooms of `bench/rooms.py` that read protobuf, or make it of what an upstream said."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Target = Callable[[bytes], None]


def request() -> Target:
    """A chat request is refused, or is one JSON object that a client of OpenAI could have sent."""
    from proxyd.errors import ProxyError  # noqa: PLC0415 - imported where it is instrumented
    from proxyd.wire import canonical  # noqa: PLC0415
    from proxyd.wire.proto import chat  # noqa: PLC0415

    def target(data: bytes) -> None:
        with contextlib.suppress(ProxyError):
            body = chat(data).body
            assert type(json.loads(body)) is dict
            canonical.chat(body)

    return target


def embeddings() -> Target:
    """As a chat request; and whatever an upstream says becomes a message or a refusal."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire import proto_embed  # noqa: PLC0415

    def target(data: bytes) -> None:
        with contextlib.suppress(ProxyError):
            assert type(json.loads(proto_embed.embeddings_request(data).body)) is dict
        with contextlib.suppress(ProxyError):
            proto_embed.embeddings(data, 1 + len(data) % 3)

    return target


def calls() -> Target:
    """What Connect and gRPC-Web put around a message."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire import connect  # noqa: PLC0415
    from proxyd.wire._pb import chat_pb2  # noqa: PLC0415

    def target(data: bytes) -> None:
        for read in (connect.from_text, lambda body: connect.request_message(body, 4096), lambda body: connect.gunzip(body, 4096)):
            with contextlib.suppress(ProxyError):
                assert len(read(data)) <= 4096
        with contextlib.suppress(ProxyError):
            connect.from_json(chat_pb2.ChatCompletionRequest, data)
        text = data.decode("latin-1")
        for query in ({"encoding": "proto", "message": text, "base64": "1", "compression": "gzip"}, {"encoding": "json", "message": text}):
            with contextlib.suppress(ProxyError):
                connect.get_message(query, 4096)
        with contextlib.suppress(ProxyError):
            connect.timeout(text if len(text) % 2 else None, text)

    return target


def events() -> Target:
    """Frames can be read, say the same however the events were held, and at DETAIL_FULL give every event again."""
    import orjson  # noqa: PLC0415

    from proxyd.wire._pb import chat_pb2  # noqa: PLC0415
    from proxyd.wire.delivery import Delivery  # noqa: PLC0415
    from proxyd.wire.dialects import decode  # noqa: PLC0415
    from proxyd.wire.proto_frames import FrameReader  # noqa: PLC0415
    from proxyd.wire.proto_rebuild import Rebuilder, same  # noqa: PLC0415
    from proxyd.wire.proto_stream import ChunkEncoder  # noqa: PLC0415
    from proxyd.wire.usage import fault_of  # noqa: PLC0415

    def text(frames: list[bytes]) -> dict[int, str]:
        said: dict[int, str] = {}
        for message in FrameReader(1 << 30).feed(b"".join(frames)):
            chunk = chat_pb2.ChatCompletionChunk.FromString(message)
            said[chunk.index] = said.get(chunk.index, "") + chunk.content
        return {index: words for index, words in said.items() if words}

    def target(data: bytes) -> None:
        came = [event.removeprefix(b"data: ") for event in data.split(b"\n\n")]
        texts, documents = [], []
        for delivery in (Delivery(max_delay_ms=0), Delivery(max_delay_ms=100, max_bytes=50), Delivery(max_delay_ms=0, full=True)):
            encoder = ChunkEncoder(delivery)
            out = [frame for turn, event in enumerate(came) for frame in encoder.feed(event, turn / 50)] + encoder.end()
            texts.append(text(out))
            rebuilder = Rebuilder()
            documents = [event for message in FrameReader(1 << 30).feed(b"".join(out)) for event in rebuilder.feed(message)]
        assert texts[0] == texts[1] == texts[2]
        for event, again in zip(_sound(came), map(orjson.loads, documents), strict=False):
            for each in (event, again):  # an event that only its own text can tell has it still
                each.pop("obfuscation", None)
            assert same(again, event), (again, event)

    def _sound(came: list[bytes]) -> Iterator[dict[str, object]]:
        """The events up to the first that is an end, an error, or JSON only to the lenient."""
        for event in came:
            document = decode(event)
            if document is None:
                continue
            try:
                strict = orjson.loads(event)
            except orjson.JSONDecodeError:
                return
            if fault_of(strict) is not None:
                return
            if isinstance(strict, dict):
                yield strict

    return target


def answer() -> Target:
    """A whole answer becomes a message or a refusal; an error is told whatever it looks like."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire import proto_error, proto_reply  # noqa: PLC0415
    from proxyd.wire.delivery import Delivery  # noqa: PLC0415

    def target(data: bytes) -> None:
        for full in (False, True):
            with contextlib.suppress(ProxyError):
                proto_reply.completion_json(proto_reply.completion(data, Delivery(full=full)))
        proto_error.error_body(ProxyError("upstream_refused", "x", status=400, body=data))

    return target


def frames() -> Target:
    """Whatever comes as frames is events or a refusal, however it is cut."""
    from proxyd.errors import ProxyError  # noqa: PLC0415
    from proxyd.wire.proto_frames import FrameReader, frame_sizes  # noqa: PLC0415
    from proxyd.wire.proto_rebuild import Rebuilder  # noqa: PLC0415

    def read(pieces: list[bytes]) -> list[bytes] | None:
        reader, found = FrameReader(), []
        try:
            for piece in pieces:
                found += reader.feed(piece)
        except ProxyError:
            return None
        return found

    def target(data: bytes) -> None:
        whole = read([data])
        assert whole == read([data[place : place + 3] for place in range(0, len(data), 3)])
        assert sum(frame_sizes(data)) <= len(data)
        rebuilder = Rebuilder()
        with contextlib.suppress(ProxyError):
            for message in whole or []:
                rebuilder.feed(message)

    return target
