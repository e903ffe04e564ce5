"""The RPC methods, over Connect and gRPC-Web, on the same road as the plain routes: one function a method.

Sources: https://connectrpc.com/docs/protocol/ and https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from proxyd.errors import ProxyError
from proxyd.flow import handler
from proxyd.flow.admit import authenticate
from proxyd.model import Endpoint
from proxyd.web import models, streams
from proxyd.web.protobuf import as_chat, as_embeddings, as_models, as_nothing
from proxyd.web.rpc_encoder import Rpc, Speech
from proxyd.wire import connect, proto
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto_embed import embeddings_request
from proxyd.wire.proto_scan import parse
from proxyd.wire.wishes import Asked, of_chat, of_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream
    from proxyd.web.protobuf import Write

M = TypeVar("M", bound=Message)

UNARY = {
    "application/proto": Speech("connect", streamed=False, json=False, kind=b"application/proto"),
    "application/json": Speech("connect", streamed=False, json=True, kind=b"application/json"),
}
STREAM = {
    "application/connect+proto": Speech("connect", streamed=True, json=False, kind=b"application/connect+proto"),
    "application/connect+json": Speech("connect", streamed=True, json=True, kind=b"application/connect+json"),
}
WEB = dict.fromkeys(
    ("application/grpc-web", "application/grpc-web+proto"),
    Speech("grpc-web", streamed=True, json=False, kind=b"application/grpc-web+proto"),
) | dict.fromkeys(
    ("application/grpc-web-text", "application/grpc-web-text+proto"),
    Speech("grpc-web", streamed=True, json=False, kind=b"application/grpc-web-text+proto", text=True),
)


async def create_chat_completion(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Answer with the whole completion."""
    await _chat(runtime, down, streamed=False)


async def stream_chat_completion(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Stream the completion; the last message has the finish, the last envelope says whether it is whole."""
    await _chat(runtime, down, streamed=True)


async def resume_chat_completion(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Go on with a stream behind the messages that came; it must have been begun as protobuf, in whichever protocol."""
    rpc = await _begun(runtime, down, STREAM, _Shape(as_chat({}), chat_pb2.ChatCompletionChunk))
    asked = await rpc.message(chat_pb2.ResumeChatCompletionRequest)
    await rpc.within_time(streams.go_on(runtime, down, proto.name_text(asked.handle), asked.received))


async def delete_chat_completion(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Stop a running completion, and forget a stored one."""
    rpc = await _begun(runtime, down, UNARY, _Shape(as_nothing({}), chat_pb2.DeleteChatCompletionResponse))
    asked = await rpc.message(chat_pb2.DeleteChatCompletionRequest)
    await rpc.within_time(streams.forget(runtime, down, proto.name_text(asked.handle)))


async def create_embeddings(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Embed one or more inputs."""
    rpc = await _begun(runtime, down, UNARY, _Shape(as_embeddings({}), chat_pb2.CreateEmbeddingsResponse))

    def read(data: bytes) -> Asked:
        return of_embeddings(embeddings_request(rpc.read(chat_pb2.CreateEmbeddingsRequest, data)), len(data))

    down.reader = read
    await rpc.within_time(handler.handle(runtime, Endpoint.EMBEDDINGS, down))


async def list_models(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """List the models that the caller may use. It changes nothing, so it may be asked for by GET, its message in the query."""
    page: dict[str, str] = {}
    rpc = await _begun(runtime, down, UNARY, _Shape(as_models(page), chat_pb2.ListModelsResponse))
    asked = await rpc.message(chat_pb2.ListModelsRequest)
    page.update(page_size=str(asked.page_size), page_token=asked.page_token)
    await rpc.within_time(models.listed(runtime, down, ""))


async def _chat(runtime: Runtime, down: Downstream, *, streamed: bool) -> None:
    answer = chat_pb2.ChatCompletionChunk if streamed else chat_pb2.ChatCompletion
    rpc = await _begun(runtime, down, STREAM if streamed else UNARY, _Shape(as_chat({}), answer))

    def read(data: bytes) -> Asked:
        message = rpc.read(chat_pb2.ChatCompletionRequest, data)
        message.stream = streamed  # the method says it
        return of_chat(proto.from_message(message), len(data))

    down.reader = read
    await rpc.within_time(handler.handle(runtime, Endpoint.CHAT, down))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a method answers with."""

    write: Write
    answer: type[Message]


class _Rpc:
    """One call: how its messages are read, and until when it may run."""

    def __init__(self, runtime: Runtime, down: Downstream, speech: Speech) -> None:
        self._runtime = runtime
        self._limits = runtime.snapshot.config.limits
        self._down = down
        self._speech = speech

    async def message(self, kind: type[M]) -> M:
        """Read the call's one message, out of the body or, for a GET, out of the query. Raises ProxyError."""
        down = self._down
        await authenticate(self._runtime, down)  # nobody unknown makes us read or parse a body
        if down.method in {"GET", "HEAD"}:
            query = {"encoding": "json", "message": "{}"} | {name: down.query[name] for name in down.query}
            _, data = connect.get_message(query, self._limits.body)
        else:
            data = await down.body(self._limits.body, self._limits.body_timeout)
        return self.read(kind, data)

    def read(self, kind: type[M], data: bytes) -> M:
        """Read a message out of a body. Raises ProxyError."""
        if self._speech.text:
            data = connect.from_text(data)
        if self._speech.streamed:
            connect.check_coding(self._down.header(b"connect-content-encoding"), self._down.header(b"grpc-encoding"))
            data = connect.request_message(data, self._limits.body)
        return connect.from_json(kind, data) if self._speech.json else parse(kind, data)

    async def within_time(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the call, and end it when the caller's own time limit is over: nobody waits for it any more."""
        down = self._down
        try:
            seconds = connect.timeout(down.header(b"connect-timeout-ms"), down.header(b"grpc-timeout"))
        except ProxyError:
            work.close()
            raise
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            handler.break_off(down, ProxyError("deadline_exceeded", "The time that the caller allowed is over."))


async def _begun(runtime: Runtime, down: Downstream, speeches: dict[str, Speech], shape: _Shape) -> _Rpc:
    """Learn how the call speaks. Raises ProxyError unsupported_media_type, invalid_request, or invalid_api_key ahead of them."""
    speech = _speech(down, {**speeches, **WEB})
    if speech is None:
        await authenticate(runtime, down)
        known = ", ".join({**speeches, **WEB})
        raise ProxyError("unsupported_media_type", f"This method is called with a Content-Type of {known}.")
    down.encoder = Rpc(speech, shape.write, shape.answer, runtime.clock)
    down.binary = True
    if speech.protocol == "connect" and down.header(b"connect-protocol-version") not in {None, "1"}:
        await authenticate(runtime, down)
        raise ProxyError("invalid_request", "Connect-Protocol-Version must be 1.")
    return _Rpc(runtime, down, speech)


def _speech(down: Downstream, known: dict[str, Speech]) -> Speech | None:
    if down.method in {"GET", "HEAD"}:
        return UNARY["application/json" if down.query.get("encoding", "json") == "json" else "application/proto"]
    return known.get((down.kind or "").partition(";")[0].strip().lower())


METHODS: tuple[tuple[str, str, Callable[[Runtime, Downstream, str], Coroutine[Any, Any, None]]], ...] = (
    ("POST", "/proxyd.v1.ChatService/CreateChatCompletion", create_chat_completion),
    ("POST", "/proxyd.v1.ChatService/StreamChatCompletion", stream_chat_completion),
    ("POST", "/proxyd.v1.ChatService/ResumeChatCompletion", resume_chat_completion),
    ("POST", "/proxyd.v1.ChatService/DeleteChatCompletion", delete_chat_completion),
    ("POST", "/proxyd.v1.EmbeddingService/CreateEmbeddings", create_embeddings),
    ("POST", "/proxyd.v1.ModelService/ListModels", list_models),
    ("GET", "/proxyd.v1.ModelService/ListModels", list_models),
)
"""HTTP method, path, and what serves it."""
