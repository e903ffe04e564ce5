"""What a thin link costs through the whole daemon: the bytes of one turn in each form, and CPU per token.

    python -m bench.thin                the two tables, about two and a half minutes
    python -m bench.thin --json         the same as JSON
    python -m bench.thin --turn         the bytes alone, some seconds

The turn is the tenth of a conversation; its answer has 209 tokens, which an upstream sends at the pace of a recording, 50 a
second. Bytes of bodies and heads are what left and reached a plain socket; IP bytes are computed from them (one packet a
write, as `bench/protobuf.py` says). CPU is that of the daemon's process out of /proc, over a window in which all streams run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import answers, children, proc
from bench.load import KEY
from bench.protobuf import sample, stream, wire
from proxyd.wire._pb import chat_pb2
from proxyd.wire.connect import envelope
from proxyd.wire.proto import name_bytes
from proxyd.wire.proto_ask import chat_message

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """
listen: 127.0.0.1:{port}
ops: {{listen: off}}
storage: {{url: "sqlite:///{directory}/thin.db"}}
upstreams:
  mock: {{kind: openai, base_url: "http://127.0.0.1:{mock}/v1", max_connections: 10000}}
  recording: {{kind: openai, base_url: "http://127.0.0.1:{recording}/v1"}}
models: {{"mock-*": mock, "*": recording}}
auth: {{keys: [{{name: bench, key: {key}}}]}}
"""
STREAMS, RATE, SECONDS = 100, 50, 6
SDK = {
    "Accept": "application/json",
    "User-Agent": "OpenAI/Python 3.2.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "3.2.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.7",
    "x-stainless-async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
    "Accept-Encoding": "gzip, deflate, br",
    "Content-Type": "application/json",
}


@dataclass
class Ask:
    """One way to ask for the turn."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def raw(self) -> bytes:
        lines = {"Host": "llm.example.com", "Authorization": f"Bearer {KEY}", "Content-Length": str(len(self.body)), **self.headers}
        return (
            "\r\n".join([f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""]).encode() + self.body
        )


@dataclass
class Got:
    """What came: the head's size, and each chunk's. An unstreamed body is one."""

    status: int = 0
    head: int = 0
    chunks: list[int] = field(default_factory=list)


async def fetch(port: int, ask: Ask) -> Got:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(ask.raw())
    head = await reader.readuntil(b"\r\n\r\n")
    got = Got(int(head.split()[1]), len(head))
    if b"chunked" in head.lower():
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
            got.chunks.append(size)
        await reader.readline()
    else:
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        got.chunks.append(length)
    writer.close()
    return got


# -- the recording, as an upstream


async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests with answer-200: whole, or event by event at its own pace; with obfuscation for the model of that name."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            asked = json.loads(await reader.readexactly(size))
            if not asked.get("stream"):
                body = sample("streams/answer-200.unary.json")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
            began, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
            for event, moment in stream("answer-200", "obf.sse" if asked["model"] == "obfuscated" else "sse"):
                await asyncio.sleep(began + moment - loop.time())
                line = b"data: " + event + b"\n\n"
                writer.write(b"%x\r\n%b\r\n" % (len(line), line))
            writer.write(b"0\r\n\r\n")
    writer.close()


# -- one turn


def conversation() -> tuple[list[dict], dict]:
    """The messages of nine turns, and the tenth question."""
    messages = json.loads(sample("requests/conv-20.json"))["messages"][: 1 + 2 * 9 + 1]
    return messages[:-1], messages[-1]


async def asks(port: int) -> dict[str, Ask]:
    """Every form of the turn; those that need a conversation have one of their own, so that they may run at once."""
    history, question = conversation()

    def whole(model: str) -> bytes:
        return json.dumps({"messages": [*history, question], "model": model, "stream": True}, ensure_ascii=False).encode()

    chat, pb = "/v1/chat/completions", "/v1/chat/completions.pb"
    found = {
        "SSE with obfuscation": Ask(chat, whole("obfuscated"), SDK),
        "SSE": Ask(chat, whole("plain"), SDK),
        "SSE, gzip": Ask(chat, whole("plain"), {**SDK, "Delivery": "compress"}),
        "SSE 100 ms, gzip": Ask(chat, whole("plain"), {**SDK, "Delivery": "max-delay-ms=100, compress"}),
        "protobuf 100 ms, history sent": Ask(pb, chat_message(whole("plain")).SerializeToString()),
    }
    forms = {"protobuf 0 ms": 0, "protobuf 100 ms": None, "protobuf 100 ms, Connect": None, "protobuf 500 ms": 500, "protobuf, unary": None}
    for name, delay in forms.items():
        message = chat_pb2.ChatCompletionRequest(
            conversation=await remembered(port, history),
            messages=[chat_pb2.Message(content=question["content"])],
            stream=not name.endswith("unary"),
            handle=os.urandom(8),
        )
        if delay is not None:
            message.delivery.max_delay_ms = delay
        body = message.SerializeToString()
        if name.endswith("Connect"):
            found[name] = Ask("/proxyd.v1.ChatService/StreamChatCompletion", envelope(body), {"Content-Type": "application/connect+proto"})
        else:
            found[name] = Ask(pb, body)
    return found


async def remembered(port: int, history: list[dict]) -> bytes:
    """Begin a conversation; its name, in as few bytes as a client would choose."""
    body = json.dumps({"model": "plain", "messages": history}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(Ask("/v1/conversations", body, {"Content-Type": "application/json", "Connection": "close"}).raw())
    answer = await reader.read()
    writer.close()
    return name_bytes(json.loads(answer.partition(b"\r\n\r\n")[2])["conversation_id"][2:])


async def turns(port: int) -> list[dict[str, object]]:
    wanted = await asks(port)
    got = await asyncio.gather(*(fetch(port, ask) for ask in wanted.values()))
    rows = []
    for (name, ask), answer in zip(wanted.items(), got, strict=True):
        if answer.status != 200:
            raise children.Trouble(f"{name} was answered with {answer.status}")
        # the last chunk and the end of the body share a write; so do the head and the first chunk
        sizes = [answer.head + answer.chunks[0], *answer.chunks[1:]]
        down, packets_down = wire(sizes, chunked=len(answer.chunks) > 1)
        up, packets_up = wire([len(ask.raw())], chunked=False)
        down, up = down + -(-packets_up // 2) * 52, up + -(-packets_down // 2) * 52
        rows.append(
            {
                "form": name,
                "request": len(ask.body),
                "body": sum(answer.chunks),
                "writes": len(answer.chunks),
                "down": down,
                "up": up,
                "both": down + up,
            }
        )
    return rows


# -- CPU


async def crowd(port: int, pid: int, headers: dict[str, str], body: bytes, path: str) -> float:
    """Microseconds of the daemon per token, while STREAMS streams run."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(Ask(path, body, headers).raw())
        while await reader.read(1 << 16):
            if not open_:
                break
        writer.transport.abort()

    open_ = True
    running = [asyncio.ensure_future(one()) for _ in range(STREAMS)]
    await asyncio.sleep(2.0)
    before = proc.cost([pid]).cpu
    await asyncio.sleep(SECONDS)
    spent = proc.cost([pid]).cpu - before
    open_ = False
    await asyncio.gather(*running)
    return spent / (STREAMS * RATE * SECONDS) * 1e6


async def costs(port: int, pid: int, rounds: int) -> dict[str, float]:
    model = answers.Script(RATE * (SECONDS + 8), RATE).model
    text = answers.request_body(model, stream=True)
    message = chat_message(text)
    forms: dict[str, tuple[dict[str, str], bytes, str]] = {}
    forms["SSE"] = ({"Content-Type": "application/json"}, text, "/v1/chat/completions")
    forms["SSE, gzip"] = ({**forms["SSE"][0], "Accept-Encoding": "gzip", "Delivery": "compress"}, text, "/v1/chat/completions")
    forms["SSE 100 ms"] = ({**forms["SSE"][0], "Delivery": "max-delay-ms=100"}, text, "/v1/chat/completions")
    for delay in (0, 100):
        message.delivery.max_delay_ms = delay
        forms[f"protobuf {delay} ms"] = ({}, message.SerializeToString(), "/v1/chat/completions.pb")
    await crowd(port, pid, *forms["SSE"])  # what only the first streams pay for is not theirs: vocabularies, prices
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            found[name].append(await crowd(port, pid, *form))
    pairs = [framed / plain for framed, plain in zip(found["protobuf 100 ms"], found["SSE"], strict=True)]
    costs = {name: statistics.median(runs) for name, runs in found.items()}
    return {**costs, "protobuf 100 ms / SSE, pair by pair": statistics.median(pairs)}


# -- all of it


@contextlib.contextmanager
def daemon(directory: Path, mock: int, recording: int) -> Iterator[tuple[int, int]]:
    """Run proxyd; its port and its process."""
    port, log = children.free_port(), directory / "proxyd.log"
    file = directory / "thin.yaml"
    file.write_text(CONFIG.format(port=port, directory=directory, mock=mock, recording=recording, key=KEY))
    process = children.spawn([sys.executable, "-m", "proxyd", "serve", "-c", str(file)], log, children.environment())
    try:
        children.wait_healthy(port, "/health", log)
        yield port, process.pid
    finally:
        children.stop(process)


async def measure(args: argparse.Namespace) -> tuple[list[dict[str, object]], dict[str, float]]:
    server = await asyncio.start_server(play, "127.0.0.1", 0)
    recording = server.sockets[0].getsockname()[1]
    with (
        tempfile.TemporaryDirectory(prefix="proxyd-bench-") as folder,
        children.mock(sys.executable, Path(folder)) as mock,
        daemon(Path(folder), mock, recording) as (port, pid),
    ):
        rows = await turns(port)
        return rows, {} if args.turn else await costs(port, pid, args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--turn", action="store_true", help="the bytes of a turn alone")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement of CPU; the median counts")
    args = parser.parse_args()
    rows, measured = asyncio.run(measure(args))
    if args.json:
        print(json.dumps({"turn": rows, "cpu_us_per_token": measured}, indent=1))
        return
    print(f"{'turn 10, 209 tokens, bytes':34}{'request':>8}{'answer':>8}{'writes':>8}{'IP down':>9}{'IP up':>8}{'both':>9}")
    for row in rows:
        print(f"{row['form']:34}{row['request']:>8,}{row['body']:>8,}{row['writes']:>8}{row['down']:>9,}{row['up']:>8,}{row['both']:>9,}")
    if measured:
        print(f"\nCPU of the daemon per token, µs; {STREAMS} streams of {RATE} tokens a second")
        for name, cost in measured.items():
            print(f"{name:38}{cost:>8.2f}")


if __name__ == "__main__":
    main()
