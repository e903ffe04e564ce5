"""The embedded upstream: says the last user message back, as an OpenAI model would send it, at about 50 tokens a second.

It needs no network, key or file: for a first look, for clients under development, for tests. It pushes the same bytes into
the same sink as a connection does, so everything behind it is proxyd as it always is.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import struct
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxyd.clock import Clock
    from proxyd.config.schema import Upstream
    from proxyd.upstream.connection import Call, Sink

TOKEN_SECONDS = 0.02
"""One token each; 50 tokens/s is the pace of a mid-sized hosted model."""
_TOKEN = re.compile(r"\s?\w{1,6}|\s?[^\w\s]|\s")
_DIMENSIONS = 256
CHOICES, INPUTS, DIMENSIONS = 128, 2048, 4096
"""The most that one request gets, as at OpenAI: the answer is made here, on the event loop."""
_NEEDS = {Endpoint.CHAT: "`messages`", Endpoint.COMPLETIONS: "a `prompt`", Endpoint.EMBEDDINGS: "an `input`"}
_HEADERS = {"stream": b"text/event-stream; charset=utf-8", "json": b"application/json"}


class EchoUpstream:
    """An upstream of kind `echo`."""

    def __init__(self, spec: Upstream, clock: Clock) -> None:
        self.spec = spec
        self._clock = clock

    async def call(
        self,
        endpoint: Endpoint,
        model: str,
        headers: Iterable[tuple[bytes, bytes]],  # noqa: ARG002 - the shape of every upstream
        body: bytes,
        sink: Sink,
        *,
        fresh: bool = False,  # noqa: ARG002
    ) -> Call:
        """Begin to answer; the first bytes are pushed on the loop's next turn."""
        ask: dict[str, Any] = orjson.loads(body)
        stamp = self._clock.now_us()
        run = _Run(sink)
        try:
            if endpoint is Endpoint.EMBEDDINGS:
                run.start(200, "json", iter([_embeddings(ask, model)]), paced=False)
            else:
                answer = _Answer(ask, model, endpoint, stamp)
                run.start(200, "stream" if answer.stream else "json", answer.pieces(), paced=answer.stream)
        except (TypeError, ValueError, AttributeError, KeyError):
            message = f"echo cannot read this request: it needs {_NEEDS[endpoint]} and numbers as OpenAI has them."
            run.start(400, "json", iter([_refusal(message)]), paced=False)
        return run

    async def probe(self, path: str | None) -> int:  # noqa: ARG002 - the shape of every upstream
        """It is always there."""
        return 200

    def close(self) -> None:
        """Nothing to close."""


class _Run:
    """One answer on its way: a timer that pushes the next piece."""

    reused = False

    def __init__(self, sink: Sink) -> None:
        self._sink: Sink | None = sink
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._paused = False

    def start(self, status: int, kind: str, pieces: Iterator[bytes], *, paced: bool) -> None:
        """Push the head, then each piece, then the end."""
        self._pieces = pieces
        self._paced = paced
        self._timer = self._loop.call_soon(self._begin, status, kind)

    def _begin(self, status: int, kind: str) -> None:
        if self._sink is not None:
            self._sink.head(status, [(b"content-type", _HEADERS[kind])])
            self._push()

    def _push(self) -> None:
        self._timer = None
        if self._sink is None or self._paused:
            return
        piece = next(self._pieces, None)
        if piece is None:
            sink, self._sink = self._sink, None
            sink.end(None)
            return
        self._sink.body(piece)
        self._timer = self._loop.call_later(TOKEN_SECONDS, self._push) if self._paced else self._loop.call_soon(self._push)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._timer is None and self._sink is not None:
            self._timer = self._loop.call_soon(self._push)

    def close(self) -> None:
        self._sink = None
        if self._timer is not None:
            self._timer.cancel()


class _Answer:
    """What is said to one chat or completions request."""

    def __init__(self, ask: dict[str, Any], model: str, endpoint: Endpoint, stamp: int) -> None:
        self.chat = endpoint is Endpoint.CHAT
        self.stream = bool(ask.get("stream"))
        self.usage_wanted = bool((ask.get("stream_options") or {}).get("include_usage"))
        self.choices = _number(ask, "n", CHOICES) or 1
        said = _last_message(ask["messages"]) if self.chat else _prompt(ask["prompt"])
        limit = _number(ask, "max_completion_tokens") or _number(ask, "max_tokens")
        tokens = _TOKEN.findall(said)
        self.tokens = tokens[:limit]
        self.finish = "stop" if len(self.tokens) == len(tokens) else "length"
        prompt = sum(len(_TOKEN.findall(_text(m.get("content")))) + 4 for m in ask["messages"]) if self.chat else len(tokens)
        completion = len(self.tokens) * self.choices
        self.usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        self.base = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-echo{stamp:x}",
            "object": ("chat.completion.chunk" if self.stream else "chat.completion") if self.chat else "text_completion",
            "created": stamp // 1_000_000,
            "model": model,
            "system_fingerprint": "fp_echo",
        }

    def pieces(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        if not self.stream:
            yield orjson.dumps(self.base | {"choices": [self._whole(i) for i in range(self.choices)], "usage": self.usage})
            return
        if self.chat:
            yield self._event({"delta": {"role": "assistant", "content": "", "refusal": None}}, None)
        for token in self.tokens:
            yield self._event({"delta": {"content": token}} if self.chat else {"text": token}, None)
        end = self._event({"delta": {}} if self.chat else {"text": ""}, self.finish)
        if self.usage_wanted:
            end += _sse(self.base | {"choices": [], "usage": self.usage})
        yield end + b"data: [DONE]\n\n"

    def _whole(self, index: int) -> dict[str, Any]:
        text = "".join(self.tokens)
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": self.finish}

    def _event(self, said: dict[str, Any], finish: str | None) -> bytes:
        usage: dict[str, Any] = {"usage": None} if self.usage_wanted else {}
        return b"".join(
            _sse(self.base | {"choices": [{"index": i, **said, "logprobs": None, "finish_reason": finish}]} | usage)
            for i in range(self.choices)
        )


def _number(ask: dict[str, Any], name: str, most: int = 2**31) -> int | None:
    """A member that is a number from 1 on, or not there. Raises ValueError."""
    number = ask.get(name)
    if number is None or (type(number) is int and 0 <= number <= most):
        return number or None
    raise ValueError(name)


def _sse(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _text(content: str | list[Any] | None) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""


def _last_message(messages: list[dict[str, Any]]) -> str:
    users = [m for m in messages if m.get("role") == "user"]
    return _text((users or messages)[-1].get("content")) if messages else ""


def _prompt(prompt: str | list[Any]) -> str:
    if isinstance(prompt, str):
        return prompt
    return " ".join(item if isinstance(item, str) else str(item) for item in prompt)


def _embeddings(ask: dict[str, Any], model: str) -> bytes:
    """Vectors that are the same for the same text, of length one, and mean nothing."""
    given = ask["input"]
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(inputs) > INPUTS:
        raise ValueError("input")
    dimensions = _number(ask, "dimensions", DIMENSIONS) or _DIMENSIONS
    data = []
    for index, item in enumerate(inputs):
        vector = _vector(item if isinstance(item, str) else str(item), dimensions)
        packed = struct.pack(f"<{len(vector)}f", *vector)
        value: Any = base64.b64encode(packed).decode() if ask.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    tokens = sum(len(_TOKEN.findall(item)) if isinstance(item, str) else len(item) for item in inputs)
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def _vector(text: str, dimensions: int) -> list[float]:
    raw = hashlib.shake_256(text.encode()).digest(dimensions)
    values = [byte - 127.5 for byte in raw]
    length = sum(v * v for v in values) ** 0.5
    return [v / length for v in values]


def _refusal(message: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
