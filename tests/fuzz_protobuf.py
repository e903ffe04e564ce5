"""Made-up and mutated protobuf through the whole daemon: bodies in all their protocols and codings, and answers that become frames."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from typing import TYPE_CHECKING

from google.protobuf import json_format

from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.connect import END, TRAILERS, EnvelopeReader, envelope, from_text
from proxyd.wire.proto_frames import FrameReader
from tests.e2e.client import Answer, Visit, request
from tests.fuzz import TOKENS, WORKERS, Fuzz, mutate
from tests.origin import DONE, completion, delta, stream, usage_event, whole

if TYPE_CHECKING:
    from random import Random

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from tests.origin import Request

KIND = "application/protobuf"
WORDS = ("fine", "", "user", "{}", '{"x": 1}', "[", '{"model": "fine"}', "ä\n\0", "9" * 30, "image/png", "high", "a" * 300)
NUMBERS = (0, 1, 2, 3, 100, 2**31 - 1, -1)
_PLAIN = ("/v1/chat/completions", "/v1/chat/completions.pb", "/v1/embeddings", "/v1/completions", "/v1/models.pb")
_CHAT = "/proxyd.v1.ChatService/"
_METHODS = {
    _CHAT + "CreateChatCompletion": pb.ChatCompletionRequest,
    _CHAT + "StreamChatCompletion": pb.ChatCompletionRequest,
    _CHAT + "ResumeChatCompletion": pb.ResumeChatCompletionRequest,
    _CHAT + "DeleteChatCompletion": pb.DeleteChatCompletionRequest,
    "/proxyd.v1.EmbeddingService/CreateEmbeddings": pb.CreateEmbeddingsRequest,
    "/proxyd.v1.ModelService/ListModels": pb.ListModelsRequest,
}
_KINDS = ("proto", "json", "connect+proto", "connect+json", "grpc-web", "grpc-web+proto", "grpc-web-text")
_EVENTS = [delta("Hel"), delta("lo"), delta("", finish="stop"), usage_event(4, 3), DONE]


def filled(kind: type[Message], chance: Random, depth: int = 0) -> Message:
    """A message with some of its fields set to something that a field of its type can hold."""
    message = kind()
    _fill(message, message.DESCRIPTOR, chance, depth)
    return message


def _fill(message: Message, descriptor: Descriptor, chance: Random, depth: int) -> None:
    for field in descriptor.fields:
        if chance.random() > (0.35 if depth == 0 else 0.3) or (field.message_type and depth > 3):
            continue
        times = chance.randrange(1, 3) if field.is_repeated else 1
        for _ in range(times):
            if field.message_type and field.message_type.GetOptions().map_entry:
                continue
            if field.message_type:
                inner = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
                inner.SetInParent()
                _fill(inner, field.message_type, chance, depth + 1)
                continue
            value = _value(field.cpp_type, field.type, chance)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def _value(cpp: int, type_: int, chance: Random) -> object:
    if cpp == 9:
        return chance.randbytes(chance.choice((0, 7, 8, 16, 17, 40))) if type_ == 12 else chance.choice(WORDS)
    if cpp in (5, 6):
        return chance.choice((0.0, 0.7, -1.0, 1e30, float("inf"), float("nan")))
    if cpp == 7:
        return chance.random() < 0.5
    if cpp == 8:
        return chance.randrange(4)
    return chance.choice(NUMBERS[:-1]) if cpp in (3, 4) else chance.choice(NUMBERS)


class ProtobufFuzz:
    """Uses the daemon and the findings of a `Fuzz`."""

    def __init__(self, fuzz: Fuzz, chance: Random) -> None:
        self._fuzz = fuzz
        self._chance = chance
        self.refused = self.reused = 0

    async def requests(self, count: int) -> None:
        """Bodies of clients. The upstream answers whatever it is asked for."""
        self._fuzz.origin.on("*", _answering)
        self._fuzz.origin.on("fine", _answering)
        await asyncio.gather(*(self._client(count // WORKERS) for _ in range(WORKERS)))

    async def answers(self, count: int) -> None:
        """Mutated answers of upstreams, for clients that take frames."""
        await asyncio.gather(*(self._worker(number, count // WORKERS) for number in range(WORKERS)))

    # Requests

    async def _client(self, count: int) -> None:
        visit: Visit | None = None
        for _ in range(count):
            path, headers, body = self._request()
            if visit is None:
                visit = await Visit.open(self._fuzz.daemon.url)
            else:
                self.reused += 1
            visit.answer = None
            try:
                await visit.say(request("POST", path, body, headers))
                answer = await visit.rest()
            except (ConnectionError, EOFError, TimeoutError, AssertionError, ValueError) as error:
                self._wrong(path, headers, body, f"no answer: {error!r}")
                visit = None
                continue
            self._fuzz.findings.requests += 1
            self._check(path, headers, body, answer)
            if answer.headers.get("connection") == "close" or not answer.whole:
                await visit.leave()
                visit = None
        if visit is not None:
            await visit.leave()

    def _request(self) -> tuple[str, dict[str, str], bytes]:
        chance = self._chance
        headers: dict[str, str] = {}
        if chance.random() < 0.5:
            path = chance.choice(_PLAIN[:3]) if chance.random() < 0.9 else chance.choice(_PLAIN)
            body = filled(pb.CreateEmbeddingsRequest if "embed" in path else pb.ChatCompletionRequest, chance).SerializeToString()
            headers["content-type"] = KIND
            if chance.random() < 0.2:
                headers["accept"] = chance.choice(("application/json", "text/event-stream", KIND, "*/*"))
            body = self._spoilt(body)
        else:
            path = chance.choice(list(_METHODS))
            kind = chance.choice(_KINDS)
            headers["content-type"] = f"application/{kind}"
            message = filled(_METHODS[path], chance)
            body = _json(message) if kind.endswith("json") else message.SerializeToString()
            body = self._spoilt(body)
            if "connect" in kind or "web" in kind:
                packed = chance.random() < 0.2
                body = self._spoilt(
                    envelope(gzip.compress(body) if packed else body, packed or chance.choice((0, 0, 0, 0, 1, 2, 128, 255)))
                )
            if kind == "grpc-web-text":
                body = self._spoilt(base64.b64encode(body))
        coding = chance.choice((None, None, None, "gzip", "deflate", "br", "zstd", "x"))
        if coding in ("gzip", "deflate"):
            body = self._spoilt(gzip.compress(body) if coding == "gzip" else zlib.compress(body))
        if coding is not None:
            headers["content-encoding"] = coding
        if chance.random() < 0.1:
            headers["accept-encoding"] = "gzip, br"
        return path, headers, body

    def _spoilt(self, data: bytes) -> bytes:
        chance = self._chance
        if chance.random() < 0.6:
            return data
        if chance.random() < 0.2:  # what protobuf's own readers trip over
            place = chance.randrange(len(data) + 1)
            return (
                data[:place]
                + chance.choice((b"\xff" * 10, b"\x80" * 11, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0c", b"\0"))
                + data[place:]
            )
        return mutate(data, chance.choice(TOKENS), chance)

    def _check(self, path: str, headers: dict[str, str], body: bytes, answer: Answer) -> None:
        statuses = self._fuzz.findings.statuses
        statuses[str(answer.status)] = statuses.get(str(answer.status), 0) + 1
        self.refused += answer.status >= 400
        if answer.status == 500 or answer.status not in range(200, 600) or not answer.whole:
            self._wrong(path, headers, body, f"{answer.status} {answer.body[:200]!r}")
            return
        try:
            self._readable(answer)
        except Exception as error:
            self._wrong(path, headers, body, f"{answer.status} {answer.headers} {answer.body[:200]!r} cannot be read: {error!r}")

    def _readable(self, answer: Answer) -> None:
        """Whatever comes is what its Content-Type says."""
        kind, body = answer.headers.get("content-type", ""), answer.body
        if answer.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        elif "content-encoding" in answer.headers:
            return
        if kind == KIND and answer.status >= 400:
            assert pb.Error.FromString(body).code
        elif kind == f"{KIND}; delimited=true":
            reader = FrameReader()
            for message in reader.feed(body):
                pb.ChatCompletionChunk.FromString(message)
            assert not reader.broken
        elif "connect+" in kind or "grpc-web" in kind:
            reader = EnvelopeReader()
            *_, (flags, last) = reader.feed(from_text(body) if "text" in kind else body)
            assert flags in (END, TRAILERS)
            assert not reader.broken
            assert b"internal" not in last
        elif kind.startswith("application/json"):
            json.loads(body)

    # Answers

    async def _worker(self, number: int, count: int) -> None:
        for turn in range(count):
            model = f"w{number}-pb-{turn}"
            case = self._chance.choice(self._fuzz.cases)
            if turn % 4 == 3:  # a good answer now and then, so that the breaker stays closed
                self._fuzz.origin.on(model, _answering)
            else:
                self._fuzz.origin.on(model, self._fuzz.script(case)[1])
            full, delay = self._chance.random() < 0.5, self._chance.choice((0, 20))
            delivery = pb.Delivery(max_delay_ms=delay, detail=2 if full else 1, pad_to=self._chance.choice((0, 0, 16)))
            asked = pb.ChatCompletionRequest(model=model, messages=[pb.Message(content="hi")], stream=case.streamed, delivery=delivery)
            visit = await Visit.open(self._fuzz.daemon.url)
            headers = {"content-type": KIND}
            try:
                await visit.say(request("POST", _PLAIN[0], asked.SerializeToString(), headers))
                answer = await visit.rest()
            except Exception as error:
                self._wrong(model, headers, case.name.encode(), f"no answer: {error!r}")
                continue
            finally:
                await visit.leave()
            row = await self._fuzz.row(model, case)
            self._fuzz.origin.forget(model)
            self._fuzz.findings.answers += 1
            self._check_frames(model, case.name, answer, row)

    def _check_frames(self, model: str, name: str, answer: Answer, row: dict) -> None:
        statuses = self._fuzz.findings.statuses
        statuses[str(answer.status)] = statuses.get(str(answer.status), 0) + 1
        told = f"{name}: {answer.status} {answer.body[-200:]!r} {row['state']} {row['error']}"
        try:
            frames = FrameReader()
            if "delimited" in answer.headers["content-type"]:
                found = [pb.ChatCompletionChunk.FromString(message) for message in frames.feed(answer.body)]
                broken = not answer.whole or any(frame.HasField("error") for frame in found)
                sound = not frames.broken and broken == (row["state"] != "done")
            elif answer.status >= 400:
                sound = bool(pb.Error.FromString(answer.body).code) and answer.whole and row["state"] != "done"
            else:
                pb.ChatCompletion.FromString(answer.body)
                sound = answer.whole and row["state"] == "done"
        except Exception as error:
            sound, told = False, f"{told}: {error!r}"
        if not sound or (answer.status == 500 and b"internal" in answer.body):
            self._wrong(model, {}, b"", told)

    def _wrong(self, path: str, headers: dict[str, str], body: bytes, what: str) -> None:
        self._fuzz.findings.wrong.append(f"{path} {headers} {body[:300].hex()}: {what}")


def _answering(asked: Request) -> list:
    """A sound answer to whatever is asked."""
    return stream(*_EVENTS) if asked.json().get("stream") is True else whole(completion("hi"))


def _json(message: Message) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode()
