"""The client against a scripted server: text as it comes, and whatever happens to the line, the whole answer once."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest

from proxyd.client import AsyncClient, Client, Failure, Settings
from proxyd.client.turn import Turn, request
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto import name_text
from proxyd.wire.proto_frames import delimited

FRAMES = [delimited(pb.ChatCompletionChunk(content=text).SerializeToString()) for text in ("One ", "two ", "three ", "four")] + [
    delimited(b""),
    delimited(pb.ChatCompletionChunk(finish_reason=1, usage=pb.Usage(prompt_tokens=3, completion_tokens=4)).SerializeToString()),
]
TEXT = "One two three four"
STREAM = "application/protobuf; delimited=true"


@dataclass
class Step:
    """How one request is answered; `cut` breaks the line behind so many bytes of the body, -1 before there is an answer."""

    body: bytes = b""
    status: int = 200
    cut: int | None = None


@dataclass
class Script:
    steps: list[Step]
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def questions(self) -> list[pb.ChatCompletionRequest]:
        return [pb.ChatCompletionRequest.FromString(body) for line, _, body in self.requests if line.startswith("POST")]


class Scripted(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, script: Script) -> None:
        self.script = script
        super().__init__(("127.0.0.1", 0), Connection)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Connection(socketserver.StreamRequestHandler):
    server: Scripted

    def handle(self) -> None:
        while (line := self.rfile.readline().decode()) and self.answer(line):
            pass

    def answer(self, line: str) -> bool:
        headers = {}
        while header := self.rfile.readline().decode().strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        script = self.server.script
        script.requests.append((line.strip(), headers, body))
        step = script.steps[min(len(script.requests), len(script.steps)) - 1]
        if step.cut == -1:
            return self.hang_up()
        kind = STREAM if step.status == 200 else "application/protobuf"
        self.wfile.write(f"HTTP/1.1 {step.status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for byte in step.body[: step.cut]:
            self.wfile.write(b"1\r\n%c\r\n" % byte)
        if step.cut is not None:
            return self.hang_up()
        self.wfile.write(b"0\r\n\r\n")
        return True

    def hang_up(self) -> bool:
        self.connection.shutdown(socket.SHUT_RDWR)
        return False


def talk(kind: str, script: Script, act: str, *arguments: str, slept: list[float] | None = None) -> tuple[list[str], object]:
    """What a client of either kind gets: the pieces, and the turn behind them."""
    told = [] if slept is None else slept
    with Scripted(script) as server:
        settings = Settings(server.url, "pxd_key", "m", timeout=20)
        try:
            if kind == "blocking":
                with Client(settings, sleep=told.append) as client:
                    answer = getattr(client, act)(*arguments)
                    return list(answer), answer.turn
            return asyncio.run(talk_async(settings, act, arguments, told))
        finally:
            server.shutdown()


async def talk_async(settings: Settings, act: str, arguments: tuple[str, ...], told: list[float]) -> tuple[list[str], object]:
    async def sleep(seconds: float) -> None:
        told.append(seconds)

    async with AsyncClient(settings, sleep=sleep) as client:
        answer = await client.ask(*arguments) if act == "ask" else getattr(client, act)(*arguments)
        return [text async for text in answer], answer.turn


BOTH = pytest.mark.parametrize("kind", ["blocking", "async"])


@BOTH
def test_text_comes_in_pieces_and_then_the_finish_and_usage(kind: str) -> None:
    script = Script([Step(b"".join(FRAMES))])
    pieces, turn = talk(kind, script, "stream", "Count")
    assert pieces == ["One ", "two ", "three ", "four"]
    assert (turn.text, turn.finish_reason, turn.usage.completion_tokens) == (TEXT, "stop", 4)
    line, headers, _ = script.requests[0]
    assert line == "POST /v1/chat/completions.pb HTTP/1.1"
    assert headers.keys() <= {"host", "authorization", "content-length", "connection"}
    assert headers["authorization"] == "Bearer pxd_key"
    question = script.questions()[0]
    assert (question.model, question.stream, question.messages[0].content, len(question.handle)) == ("m", True, "Count", 12)


@BOTH
def test_wherever_the_line_is_cut_the_answer_becomes_whole(kind: str) -> None:
    whole = b"".join(FRAMES)
    ends = [len(b"".join(FRAMES[:count])) for count in range(len(FRAMES) + 1)]
    for cut in range(0, len(whole), 5):
        received = max(count for count, end in enumerate(ends) if end <= cut)
        script = Script([Step(whole, cut=cut), Step(b"".join(FRAMES[received:]))])
        pieces, turn = talk(kind, script, "stream", "Count")
        assert "".join(pieces) == turn.text == TEXT
        if cut:
            path = urlsplit(script.requests[1][0].split()[1])
            assert path.path == "/v1/streams/" + name_text(script.questions()[0].handle)
            assert parse_qs(path.query) == {"received": [str(received)]}
        else:
            assert script.questions()[0] == script.questions()[1]  # nothing came: the same question, under the same handle


@BOTH
def test_a_body_that_ends_without_a_finish_was_cut_further_up(kind: str) -> None:
    script = Script([Step(FRAMES[0]), Step(b""), Step(b"".join(FRAMES[1:]))])
    pieces, _ = talk(kind, script, "stream", "Count")
    assert "".join(pieces) == TEXT
    assert [line.split()[0] for line, _, _ in script.requests] == ["POST", "GET", "GET"]


@BOTH
def test_a_front_that_ends_every_body_at_once_is_given_time(kind: str) -> None:
    slept: list[float] = []
    script = Script([Step(FRAMES[0]), Step(b""), Step(b""), Step(b"".join(FRAMES[1:]))])
    pieces, _ = talk(kind, script, "stream", "Count", slept=slept)
    assert "".join(pieces) == TEXT
    assert slept == [1.0, 2.0]


def test_text_that_comes_in_one_packet_with_an_error_is_given_before_it() -> None:
    turn, told = Turn(request("Count", "m", stream=True), Settings("http://localhost")), []
    error = delimited(pb.ChatCompletionChunk(error=pb.Error(message="It broke off.", code="upstream_cut")).SerializeToString())
    with pytest.raises(Failure, match="broke off"):
        told.extend(turn.feed(b"".join([*FRAMES[:2], error])))
    assert told == ["One ", "two "]


@BOTH
def test_a_question_that_never_arrived_is_asked_again_under_its_handle(kind: str) -> None:
    script = Script([Step(cut=-1), Step(b"".join(FRAMES))])
    assert "".join(talk(kind, script, "stream", "Count")[0]) == TEXT
    assert script.questions()[0] == script.questions()[1]


@BOTH
def test_a_front_without_its_server_is_waited_for(kind: str) -> None:
    script = Script([Step(b"<html>", 502), Step(FRAMES[0], cut=len(FRAMES[0])), Step(b"", 503), Step(b"".join(FRAMES[1:]))])
    assert "".join(talk(kind, script, "stream", "Count")[0]) == TEXT


@BOTH
def test_patience_ends(kind: str) -> None:
    script = Script([Step(cut=-1)])
    with pytest.raises(Failure) as failed:
        talk(kind, script, "stream", "Count")
    assert (failed.value.code, len(script.requests) >= 8) == ("connection", True)
    body = pb.Error(message="proxyd is shutting down.", code="draining").SerializeToString()
    with pytest.raises(Failure, match="shutting down") as failed:
        talk(kind, Script([Step(body, 503)]), "stream", "Count")
    assert (failed.value.code, failed.value.status) == ("draining", 503)


@BOTH
def test_a_refusal_says_what_the_server_said(kind: str) -> None:
    body = pb.Error(message="No such model.", code="model_not_found").SerializeToString()
    with pytest.raises(Failure, match="No such model") as failed:
        talk(kind, Script([Step(body, 404)]), "stream", "Count")
    assert (failed.value.code, failed.value.status) == ("model_not_found", 404)
    with pytest.raises(Failure) as failed:
        talk(kind, Script([Step(b"\xff<html>", 418)]), "ask", "Count")
    assert (failed.value.code, failed.value.status) == ("bad_answer", 418)


@BOTH
def test_an_error_in_the_stream_is_raised_behind_the_text(kind: str) -> None:
    error = delimited(pb.ChatCompletionChunk(error=pb.Error(message="Broken.", code="upstream_cut", status=502)).SerializeToString())
    with pytest.raises(Failure) as failed:
        talk(kind, Script([Step(FRAMES[0] + error)]), "stream", "Count")
    assert (failed.value.code, failed.value.status) == ("upstream_cut", 502)


@BOTH
@pytest.mark.parametrize("junk", [b"\xff" * 12, b"\x05\xff\xff\xff\xff\xff", b"data: {}\n\n" * 20])
def test_what_is_no_stream_is_a_failure(kind: str, junk: bytes) -> None:
    with pytest.raises(Failure) as failed:
        talk(kind, Script([Step(junk)]), "stream", "Count")
    assert failed.value.code in {"bad_answer", "connection"}


@BOTH
def test_a_whole_answer_is_one_message_and_asked_for_again_after_a_cut(kind: str) -> None:
    choice = pb.Choice(message=pb.Message(content=TEXT), finish_reason=2)
    body = pb.ChatCompletion(choices=[choice], usage=pb.Usage(prompt_tokens=1, completion_tokens=2)).SerializeToString()
    script = Script([Step(body, cut=7), Step(body)])
    pieces, turn = talk(kind, script, "ask", "Count")
    assert (pieces, turn.finish_reason, turn.usage.prompt_tokens) == ([TEXT], "length", 1)
    assert script.questions()[0] == script.questions()[1]
    assert script.questions()[0].stream is False


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


def chat_turns(kind: str, script: Script, *questions: str) -> None:
    with Scripted(script) as server:
        settings = Settings(server.url, model="m", timeout=20)
        if kind == "blocking":
            chat = Client(settings, sleep=lambda _: None).chat("Be brief.")
            for question in questions:
                assert "".join(chat.send(question)) == TEXT
            chat._client.close()
        else:

            async def run() -> None:
                async with AsyncClient(settings, sleep=no_sleep) as client:
                    chat = client.chat("Be brief.")
                    for question in questions:
                        assert "".join([text async for text in chat.send(question)]) == TEXT

            asyncio.run(run())
        server.shutdown()


@BOTH
def test_a_conversation_sends_one_sentence_a_turn(kind: str) -> None:
    script = Script([Step(b"".join(FRAMES))])
    chat_turns(kind, script, "One?", "Two?", "Three?")
    first, second, third = script.questions()
    assert [message.content for message in first.messages] == ["Be brief.", "One?"]
    assert [message.content for message in second.messages] == ["Two?"]
    assert (first.history, second.history, third.history) == (0, 3, 5)
    assert first.conversation == second.conversation == third.conversation
    assert second.model == ""
    assert len(script.requests[2][2]) <= 120


@BOTH
def test_a_conversation_that_the_server_forgot_is_sent_again_whole(kind: str) -> None:
    gone = Step(pb.Error(message="Gone.", code="conversation_not_found").SerializeToString(), 404)
    script = Script([Step(b"".join(FRAMES)), gone, Step(b"".join(FRAMES))])
    chat_turns(kind, script, "One?", "Two?")
    again = script.questions()[2]
    assert [message.content for message in again.messages] == ["Be brief.", "One?", TEXT, "Two?"]
    assert (again.history, again.model) == (0, "m")


@BOTH
def test_tool_calls_and_reasoning_are_put_together(kind: str) -> None:
    frames = [
        pb.ChatCompletionChunk(reasoning="Hm."),
        pb.ChatCompletionChunk(
            tool_calls=[pb.ToolCallDelta(id="c", name="f", arguments='{"a"'), pb.ToolCallDelta(index=1, id="d", name="g")]
        ),
        pb.ChatCompletionChunk(tool_calls=[pb.ToolCallDelta(arguments=":1}")], finish_reason=3),
    ]
    script = Script([Step(b"".join(delimited(frame.SerializeToString()) for frame in frames))])
    _, turn = talk(kind, script, "stream", "Call")
    assert (turn.reasoning, turn.finish_reason) == ("Hm.", "tool_calls")
    assert [(call.id, call.name, call.arguments) for call in turn.tool_calls.values()] == [("c", "f", '{"a":1}'), ("d", "g", "")]


def test_an_address_is_checked_at_once() -> None:
    assert Settings("https://e.org/v1/").address() == (True, "e.org", 443, "")
    assert Settings("http://[::1]:8080/llm").address() == (False, "::1", 8080, "/llm")
    for bad in ("localhost:8080", "ftp://e.org", "http://"):
        with pytest.raises(ValueError, match="URL"):
            Client(bad)


def test_ones_own_request_is_sent_as_it_is_and_left_as_it_was() -> None:
    own = pb.ChatCompletionRequest(model="x", messages=[pb.Message(content="a")], temperature=0.5)
    script = Script([Step(b"".join(FRAMES))])
    with Scripted(script) as server:
        client = Client(server.url)
        assert "".join(client.stream(own)) == TEXT
        client.close()
        server.shutdown()
    assert (script.questions()[0].temperature, own.stream, own.handle) == (0.5, False, b"")


async def test_a_client_that_is_closed_while_an_answer_comes_does_not_begin_anew() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(FRAMES[0]), FRAMES[0]))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with AsyncClient(Settings(f"http://{host}:{port}", model="m")) as client:
        pieces = aiter(client.stream("Count"))
        assert await anext(pieces) == "One "
        going_on = asyncio.create_task(anext(pieces))
        await asyncio.sleep(0)
    with pytest.raises(Failure, match="was closed"):
        await asyncio.wait_for(going_on, 10)
    assert client._session is None
    server.close()


async def test_a_client_that_is_closed_between_two_attempts_opens_nothing_anew() -> None:
    script = Script([Step(b"", status=503), Step(b"", status=503), Step(b"".join(FRAMES))])

    async def closing(_seconds: float) -> None:
        await client.close()

    with Scripted(script) as server:
        client = AsyncClient(Settings(server.url, model="m"), sleep=closing)
        with pytest.raises(Failure, match="was closed"):
            [text async for text in client.stream("Count")]
        assert client._session is None
        assert [text async for text in client.stream("Again")] == ["One ", "two ", "three ", "four"]
        await client.close()
        server.shutdown()
