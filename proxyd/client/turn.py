"""One turn, without its transport: what to send, what has come, and what to do when the line breaks.

Both clients drive it the same way: `next_request` says what to send; the answer's bytes go into `feed`, and their end is told to
`end`; `cut` is told when the line broke. Then `pause` is waited for. `None` from `next_request` means that the answer is whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto import name_text
from proxyd.wire.proto_frames import FrameReader
from proxyd.wire.proto_reply import finish_text
from proxyd.wire.proto_scan import parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CHAT = "/v1/chat/completions.pb"
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer, or of one frame."""
RETRIED = frozenset({502, 503, 504})
"""Statuses of a front that cannot reach proxyd for the moment, and of a proxyd that restarts."""


class Failure(Exception):  # noqa: N818 - what went wrong is in its members
    """The answer cannot be had. `code` and `status` are proxyd's; a line that stays broken is `connection`, 0."""

    def __init__(self, message: str, *, code: str = "connection", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Settings:
    """Where proxyd is and how to talk to it. Times are in seconds."""

    url: str
    key: str = ""
    model: str = ""
    max_delay_ms: int | None = None
    """How long the server may hold text back to send fewer packets; None: its default, 100 ms."""
    timeout: float = 60.0
    """Silence after which a line counts as cut; proxyd breaks it every 15 s by default."""
    patience: int = 8
    """Attempts in a row that may bring nothing new, with growing pauses between them (about two minutes in all)."""

    def __post_init__(self) -> None:
        """Refuse a key that HTTP would refuse, which would print it. Raises ValueError."""
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("the key has a character that no header carries: a line break at its end, or one beyond ASCII")

    def address(self) -> tuple[bool, str, int, str]:
        """Split the URL: TLS or not, host, port, path before `/v1`. Raises ValueError for what is no http(s) URL."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{self.url!r} is not an http:// or https:// URL")
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/")
        return tls, parts.hostname, parts.port or (443 if tls else 80), path.removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Request:
    """What to send. A POST is protobuf, whose `.pb` path needs no Content-Type."""

    method: str
    path: str
    body: bytes = b""


class Turn:
    """One exchange, which may take several connections."""

    __slots__ = (
        "_began",
        "_idle",
        "_message",
        "_patience",
        "_reader",
        "_unary",
        "came",
        "finish_reason",
        "pause",
        "reasoning",
        "received",
        "sent",
        "text",
        "tool_calls",
        "trouble",
        "usage",
    )

    def __init__(self, message: chat_pb2.ChatCompletionRequest, settings: Settings) -> None:
        if not message.handle:
            message.handle = os.urandom(12)
        if not message.HasField("delivery") and settings.max_delay_ms is not None and message.stream:
            message.delivery.max_delay_ms = settings.max_delay_ms
        self._message = message
        self._began = False
        self._idle = 0
        self._patience = settings.patience
        self._reader = FrameReader(MAX_ANSWER)
        self._unary = bytearray()
        self.received = 0
        """Frames that have come, keep-alives included."""
        self.sent = self.came = 0
        """Bytes of bodies, up and down."""
        self.trouble: Failure | None = None
        """Why the last attempt was cut short; what is raised when patience ends."""
        self.pause = 0.0
        """Seconds to wait before the next attempt."""
        self.text = ""
        self.reasoning = ""
        self.finish_reason: str | None = None
        self.tool_calls: dict[int, chat_pb2.ToolCall] = {}
        self.usage: chat_pb2.Usage | None = None

    def next_request(self) -> Request | None:
        """Say what to send now: the question, or, once frames have come, for what follows them; None: all is there."""
        self.pause = 0.0
        if self.finish_reason is not None:
            return None
        if self._began and self._message.stream:
            return Request("GET", f"/v1/streams/{name_text(self._message.handle)}?received={self.received}")
        body = self._message.SerializeToString()
        self.sent += len(body)
        return Request("POST", CHAT, body)

    def feed(self, data: bytes) -> Iterator[str]:
        """Take bytes of a successful answer; gives the pieces of text in it, then raises Failure for an error frame behind them."""
        self._began = True
        self.came += len(data)
        if not self._message.stream:
            self._unary += data
            if len(self._unary) > MAX_ANSWER:
                raise Failure("The answer is too long.", code="too_long")
            return
        try:
            frames = [parse(chat_pb2.ChatCompletionChunk, message) for message in self._reader.feed(data)]
        except ProxyError as error:
            raise Failure(f"That is no proxyd stream: {error.message}", code="bad_answer") from None
        for frame in frames:
            if text := self._frame(frame):
                yield text

    def end(self) -> list[str]:
        """The body ended as it should. A whole answer is read now; a stream without a finish was cut further up."""
        if self._message.stream:
            if self.finish_reason is None:
                self.cut()
            return []
        try:
            answer = parse(chat_pb2.ChatCompletion, bytes(self._unary))
        except ProxyError as error:
            raise Failure(f"That is no proxyd answer: {error.message}", code="bad_answer") from None
        self.finish_reason = "stop"
        self.usage = answer.usage
        for choice in answer.choices[:1]:
            self.text, self.reasoning = choice.message.content, choice.message.reasoning
            self.finish_reason = finish_text(choice.finish_reason, choice.finish_reason_text) or "stop"
            self.tool_calls = dict(enumerate(choice.message.tool_calls))
        return [self.text] if self.text else []

    def cut(self, trouble: Failure | None = None) -> None:
        """The line broke, or could not be had, for a reason, which is raised when patience ends."""
        self.trouble = trouble or Failure("The connection broke.")
        self._reader = FrameReader(MAX_ANSWER)  # a frame that came in part comes again, whole
        self._unary.clear()
        self._idle += 1
        if self._idle > self._patience:
            raise self.trouble
        self.pause = 0.0 if self._idle == 1 else min(0.25 * 2**self._idle, 30.0)

    def refused(self, status: int, body: bytes) -> None:
        """Take an answer outside 2xx. Raises Failure, but where another attempt is worth it."""
        if status == 404 and self._began and not self.received:
            self._began = False  # the line broke before the question arrived: ask again, under the same handle
            self.cut()
            return
        trouble = _refusal(status, body)
        if status not in RETRIED:
            raise trouble
        self.cut(trouble)

    def _frame(self, frame: chat_pb2.ChatCompletionChunk) -> str:
        self.received += 1
        self._idle = 0
        if frame.HasField("error"):
            raise Failure(frame.error.message, code=frame.error.code, status=frame.error.status)
        if frame.HasField("usage"):
            self.usage = frame.usage
        if frame.index:
            return ""
        if frame.finish_reason:
            self.finish_reason = finish_text(frame.finish_reason, frame.finish_reason_text)
        for delta in frame.tool_calls:
            call = self.tool_calls.setdefault(delta.index, chat_pb2.ToolCall(id=delta.id, name=delta.name, custom=delta.custom))
            call.arguments += delta.arguments
        self.reasoning += frame.reasoning
        self.text += frame.content
        return frame.content


def _refusal(status: int, body: bytes) -> Failure:
    """What an answer outside 2xx says: proxyd's own words, or those of a front that is not proxyd."""
    try:
        error = parse(chat_pb2.Error, body)
    except ProxyError:
        error = chat_pb2.Error(code="bad_answer")
    return Failure(error.message or f"The server answered {status}.", code=error.code, status=status)


def broken(error: Exception) -> Failure:
    """What an error of the transport says."""
    return Failure(f"The connection broke: {getattr(error, 'strerror', None) or error or type(error).__name__}.")


P = TypeVar("P")


class Answer(Generic[P]):
    """An answer as it comes: iterate over its text, with `async for` where the client is `AsyncClient`; the rest is known after that."""

    __slots__ = ("pieces", "turn")

    def __init__(self, turn: Turn, pieces: P) -> None:
        self.turn = turn
        self.pieces = pieces

    def __iter__(self: Answer[Iterator[str]]) -> Iterator[str]:
        return self.pieces

    def __aiter__(self: Answer[AsyncIterator[str]]) -> AsyncIterator[str]:
        return self.pieces

    @property
    def text(self) -> str:
        """What has come so far."""
        return self.turn.text

    @property
    def reasoning(self) -> str:
        """The reasoning that has come so far."""
        return self.turn.reasoning

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's word for how it ended; None before."""
        return self.turn.finish_reason

    @property
    def usage(self) -> chat_pb2.Usage | None:
        """Token counts, at the end."""
        return self.turn.usage

    @property
    def tool_calls(self) -> list[chat_pb2.ToolCall]:
        """The calls that the model asks for."""
        return [self.turn.tool_calls[index] for index in sorted(self.turn.tool_calls)]

    @property
    def sent(self) -> int:
        """Bytes of bodies that went up."""
        return self.turn.sent

    @property
    def came(self) -> int:
        """Bytes of bodies that came down."""
        return self.turn.came

    @property
    def frames(self) -> int:
        """Frames that have come, keep-alives included."""
        return self.turn.received


class Transcript:
    """A conversation as the client knows it, for the day the server has forgotten it."""

    __slots__ = ("_model", "messages", "name")

    def __init__(self, model: str, system: str) -> None:
        self._model = model
        self.name = os.urandom(12)
        self.messages = [chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, content=system)] if system else []

    def ask(self, question: str, *, whole: bool) -> chat_pb2.ChatCompletionRequest:
        """Make the request of the next turn: the question alone, or, with `whole`, all that came before it too."""
        new = chat_pb2.Message(content=question)
        first = whole or not self.messages or self.messages[-1].role != chat_pb2.ROLE_ASSISTANT
        return chat_pb2.ChatCompletionRequest(
            model=self._model if first else "",
            messages=[*self.messages, new] if first else [new],
            conversation=self.name,
            history=0 if first else len(self.messages),
            stream=True,
        )

    def answered(self, question: str, turn: Turn) -> None:
        """Keep a turn whose answer is whole."""
        answer = chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, content=turn.text, tool_calls=turn.tool_calls.values())
        self.messages += [chat_pb2.Message(content=question), answer]


Prompt = str | chat_pb2.ChatCompletionRequest | list[chat_pb2.Message]
"""What can be asked: a sentence, messages, or a whole request of one's own."""


def request(prompt: Prompt, model: str, *, stream: bool) -> chat_pb2.ChatCompletionRequest:
    """Make the request of a prompt. One that is a request already is copied."""
    if isinstance(prompt, chat_pb2.ChatCompletionRequest):
        message = chat_pb2.ChatCompletionRequest()
        message.CopyFrom(prompt)
        message.stream = stream
        return message
    messages = [chat_pb2.Message(content=prompt)] if isinstance(prompt, str) else prompt
    return chat_pb2.ChatCompletionRequest(model=model, messages=messages, stream=stream)
