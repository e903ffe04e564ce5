"""What protobuf saves: bytes of a turn in each form, and the CPU that a token costs on its way through.

    python bench/protobuf.py            prints two tables
    python bench/protobuf.py --json     the same as JSON

Bytes of bodies are counted; bytes of IP are computed from them (IPv4 with TCP timestamps, TLS 1.3, one packet a write, one
acknowledgement for every second packet), for a connection that is warm. CPU is measured: 100 streams take
turns, event by event, writing to TCP sockets on the loopback that another process empties; only the writer's time counts.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import selectors
import socket
import statistics
import sys
import time
import zlib
from typing import TYPE_CHECKING

from proxyd.wire.connect import end_of_stream, envelope
from proxyd.wire.delivery import Delivery
from proxyd.wire.proto_ask import chat_message
from proxyd.wire.proto_reply import completion
from proxyd.wire.proto_stream import ChunkEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLES = pathlib.Path(__file__).parents[1] / "tests" / "pb_samples"
PACKET = 20 + 32
"""IPv4 and TCP with timestamps."""
RECORD = 5 + 1 + 16
"""TLS 1.3: header, content type, tag."""
SEGMENT = 1500 - PACKET
HEADERS = {"sdk up": 682, "lean up": 133, "sdk down": 153, "lean down": 136}
"""Bytes of HTTP heads: OpenAI's Python SDK, and the least that HTTP/1.1 needs (measured in the study behind the schema)."""

Timed = list[tuple[bytes, float]]


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def stream(name: str, kind: str = "sse") -> Timed:
    """The events of a sample and when they came."""
    events = [block[6:] for block in sample(f"streams/{name}.{kind}").split(b"\n\n") if block]
    times = [json.loads(line)[0] / 1000 for line in sample(f"streams/{name}.deltas.jsonl").splitlines()]
    return list(zip(events, times + times[-1:] * (len(events) - len(times)), strict=True))


# -- forms: events in, writes out


def sse(events: Timed) -> Iterator[bytes]:
    for event, _ in events:
        yield b"data: " + event + b"\n\n"


def gzipped(writes: Iterator[bytes]) -> Iterator[bytes]:
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
    for data in writes:
        yield deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)


def held_sse(events: Timed, window: float) -> Iterator[bytes]:
    """Several events a write, held as the encoder holds text."""
    held, since, first = b"", None, True
    for event, now in events:
        if since is not None and now >= since + window:
            yield held
            held, since = b"", None
        held += b"data: " + event + b"\n\n"
        since = now if since is None else since
        if first and b'"content":""' not in event:
            yield held
            held, since, first = b"", None, False
    yield held


def protobuf(events: Timed, delay: int, frame: Callable[[bytes], bytes] | None = None) -> Iterator[bytes]:
    delivery = Delivery(max_delay_ms=delay)
    encoder = ChunkEncoder(delivery, frame=frame) if frame else ChunkEncoder(delivery)
    for event, now in events:
        if encoder.deadline is not None and encoder.deadline < now:
            yield from encoder.tick(encoder.deadline)
        yield from encoder.feed(event, now)
    yield from encoder.end()
    if frame:
        yield end_of_stream()


FORMS: dict[str, Callable[[str], Iterator[bytes]]] = {
    "SSE with obfuscation": lambda name: sse(stream(name, "obf.sse")),
    "SSE": lambda name: sse(stream(name)),
    "SSE, gzip": lambda name: gzipped(sse(stream(name))),
    "SSE 100 ms": lambda name: held_sse(stream(name), 0.1),
    "SSE 100 ms, gzip": lambda name: gzipped(held_sse(stream(name), 0.1)),
    "protobuf 0 ms": lambda name: protobuf(stream(name), 0),
    "protobuf 100 ms": lambda name: protobuf(stream(name), 100),
    "protobuf 100 ms, Connect": lambda name: protobuf(stream(name), 100, envelope),
    "protobuf 500 ms": lambda name: protobuf(stream(name), 500),
}


# -- bytes


def wire(sizes: list[int], *, chunked: bool) -> tuple[int, int]:
    """IP bytes and packets of writes of these sizes, in one direction."""
    total = packets = 0
    for size in sizes:
        payload = size + (len(f"{size:x}") + 4 if chunked else 0) + RECORD
        count = math.ceil(payload / SEGMENT)
        total, packets = total + payload + count * PACKET, packets + count
    return total, packets


def turn(request: int, writes: list[int], heads: str) -> tuple[int, int]:
    """IP bytes down and up of one turn on a warm connection."""
    down, packets_down = wire([HEADERS[f"{heads} down"] + writes[0], *writes[1:]], chunked=True)
    up, packets_up = wire([HEADERS[f"{heads} up"] + request], chunked=False)
    return down + math.ceil(packets_up / 2) * PACKET, up + math.ceil(packets_down / 2) * PACKET


def turns() -> list[dict[str, object]]:
    """Turn 10 of a conversation: the answer is answer-200, the history is half of conv-20."""
    document = json.loads(sample("requests/conv-20.json"))
    document["messages"] = document["messages"][: 1 + 2 * 9 + 1]
    history = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    stateful = len(sample("requests/conv-20.stateful.pb"))
    asked = {
        "SSE with obfuscation": (len(history), "sdk"),
        "SSE, gzip": (len(history), "sdk"),
        "SSE 100 ms, gzip": (len(history), "sdk"),
        "protobuf 0 ms": (stateful, "lean"),
        "protobuf 100 ms, Connect": (stateful, "lean"),
        "protobuf 100 ms": (stateful, "lean"),
        "protobuf 500 ms": (stateful, "lean"),
    }
    rows = []
    for name, (request, heads) in asked.items():
        writes = [len(data) for data in FORMS[name]("answer-200")]
        down, up = turn(request, writes, heads)
        rows.append(
            {"form": name, "request": request, "body": sum(writes), "writes": len(writes), "down": down, "up": up, "both": down + up}
        )
    unary = completion(sample("streams/answer-200.unary.json"), Delivery())
    down, up = turn(stateful, [len(unary)], "lean")
    rows.append(
        {"form": "protobuf, unary", "request": stateful, "body": len(unary), "writes": 1, "down": down, "up": up, "both": down + up}
    )
    full = len(chat_message(history).SerializeToString())
    writes = [len(data) for data in FORMS["protobuf 100 ms"]("answer-200")]
    down, up = turn(full, writes, "lean")
    rows.insert(
        3,
        {
            "form": "protobuf 100 ms, history sent",
            "request": full,
            "body": sum(writes),
            "writes": len(writes),
            "down": down,
            "up": up,
            "both": down + up,
        },
    )
    return rows


# -- CPU


STREAMS = 100


def drained() -> list[socket.socket]:
    """TCP connections on the loopback that a child process reads empty."""
    server = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
    pairs = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in range(STREAMS)]
    server.close()
    if os.fork() == 0:
        selector = selectors.DefaultSelector()
        for near, far in pairs:
            near.close()
            selector.register(far, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                if not os.read(key.fd, 1 << 16):
                    selector.unregister(key.fd)
        os._exit(0)
    for near, far in pairs:
        far.close()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return [near for near, _ in pairs]


def cpu(form: Callable[[Timed], Iterator[bytes]], events: Timed) -> float:
    """Microseconds of this process per token: events in, bytes out.

    The streams take turns, event by event, as they do in a server: each write is a packet of its own.
    """
    lines = drained()
    begin = time.process_time()
    live = [(form(events), line) for line in lines]
    while live:
        still = []
        for writer, line in live:
            data = next(writer, None)
            if data is not None:
                line.sendall(data)
                still.append((writer, line))
        live = still
    spent = time.process_time() - begin
    for line in lines:
        line.close()
    os.wait()
    return spent / len(events) / STREAMS * 1e6


def costs() -> dict[str, float]:
    events = stream("answer-1000")[:400]
    forms: dict[str, Callable[[Timed], Iterator[bytes]]] = {
        "SSE": sse,
        "SSE, gzip": lambda timed: gzipped(sse(timed)),
        "protobuf 0 ms": lambda timed: protobuf(timed, 0),
        "protobuf 100 ms": lambda timed: protobuf(timed, 100),
    }
    measured = {name: statistics.median(cpu(form, events) for _ in range(3)) for name, form in forms.items()}
    for name, delay in (("encoding alone, 0 ms", 0), ("encoding alone, 100 ms", 100)):
        runs = []
        for _ in range(15):
            begin = time.process_time()
            for _data in protobuf(events, delay):
                pass
            runs.append((time.process_time() - begin) / len(events) * 1e6)
        measured[name] = statistics.median(runs)
    return measured


def main() -> None:
    rows, measured = turns(), costs()
    if "--json" in sys.argv:
        print(json.dumps({"turn": rows, "cpu_us_per_token": measured}, indent=1))
        return
    print(f"{'turn 10, 209 tokens, bytes':34}{'request':>8}{'answer':>8}{'writes':>8}{'IP down':>9}{'IP up':>8}{'both':>9}")
    for row in rows:
        print(f"{row['form']:34}{row['request']:>8,}{row['body']:>8,}{row['writes']:>8}{row['down']:>9,}{row['up']:>8,}{row['both']:>9,}")
    print("\nCPU per token, µs, answer-1000")
    for name, cost in measured.items():
        print(f"{name:34}{cost:>8.2f}")


if __name__ == "__main__":
    main()
