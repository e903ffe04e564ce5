"""What the meter costs per event, on this machine: `python bench/meter.py`.

Chunks of one event each, as upstreams send them, unless the line says otherwise. CPU time, best of five runs.

Measured (CPython 3.11, two shared cores; orjson alone 0.76 us): an ordinary chat event of 316 bytes 1.7 us, ten of them in
one chunk 1.3 each, with reasoning 2.2, with usage on each 4.7, in two pieces 6.9, with CRLF 5.3; a delta of Responses 6.8; a
line of Ollama 4.6; and 1.3 us a byte when a large event comes byte by byte, be it 100 KB or 1 MB.
"""

from __future__ import annotations

import pathlib
import time

import msgspec
import orjson

from proxyd.model import Format
from proxyd.wire.meter import Meter

HEAD = b'data: {"id":"chatcmpl-Cb1aQ0o8Xr2MvT6yLk9pWnHs","object":"chat.completion.chunk","created":1795104001,'
HEAD += b'"model":"gpt-5.4-2026-03-05","service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":{'
TAIL = b'},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"Zq81LmX"}\n\n'
CONTENT = HEAD + b'"content":"Lighthouses"' + TAIL
REASONING = HEAD + b'"content":null,"reasoning":"Lighthouses"' + TAIL
COUNTED = CONTENT.replace(b'"usage":null', b'"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}')
RESPONSES = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":6,"item_id":"msg_1",'
    b'"output_index":1,"content_index":0,"delta":"Quartz","logprobs":[],"obfuscation":"xY3kQ8"}\n\n'
)
OLLAMA = b'{"model":"qwen3:8b","created_at":"2026-11-21T10:17:22.5Z","message":{"role":"assistant","content":"Mud"},"done":false}\n'
EVENTS = 20_000


def best(run, events: int) -> float:
    """Microseconds per event."""
    times = []
    for _ in range(5):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times) / events * 1e6


def parse(decode):
    """A run that only parses the payload of the chat event."""

    def run() -> None:
        payload = CONTENT[6:-2]
        for _ in range(EVENTS):
            decode(payload)

    return run


def feed(chunk: bytes, format_: Format = Format.SSE, *, pieces: int = 1, events: int = 1):
    """A run that feeds `EVENTS` events, `events` in a chunk or each in `pieces` chunks."""

    def run() -> None:
        meter = Meter(format_)
        meter.feed(b": hello\n\n" if format_ is Format.SSE else b"\n")
        step = len(chunk) // pieces + 1
        parts = [chunk[i : i + step] for i in range(0, len(chunk), step)] if pieces > 1 else [chunk * events]
        for _ in range(EVENTS // events):
            for part in parts:
                meter.feed(part)
        meter.end(clean=True)
        assert meter.produced()

    return run


def bytewise(size: int):
    """One event of `size` bytes, one byte at a time."""

    def run() -> None:
        meter = Meter(Format.SSE)
        event = CONTENT.replace(b"Lighthouses", b"x" * size)
        for i in range(len(event)):
            meter.feed(event[i : i + 1])
        assert meter.events == 1

    return run


def main() -> None:
    print(f"chat event, {len(CONTENT)} bytes")
    print(f"  orjson.loads alone       {best(parse(orjson.loads), EVENTS):6.2f} us")
    print(f"  msgspec untyped alone    {best(parse(msgspec.json.Decoder().decode), EVENTS):6.2f} us")
    for name, run in (
        ("meter, one a chunk", feed(CONTENT)),
        ("meter, ten a chunk", feed(CONTENT, events=10)),
        ("meter, each in 2 pieces", feed(CONTENT, pieces=2)),
        ("meter, CRLF", feed(CONTENT.replace(b"\n", b"\r\n"))),
        ("meter, reasoning", feed(REASONING)),
        ("meter, usage on each", feed(COUNTED)),
        ("meter, Responses delta", feed(RESPONSES)),
        ("meter, Ollama line", feed(OLLAMA, Format.NDJSON)),
    ):
        print(f"  {name:24} {best(run, EVENTS):6.2f} us")
    for size in (100_000, 1_000_000):
        print(f"  {size:>9} B event by byte {best(bytewise(size), size):6.2f} us a byte")
    corpus = pathlib.Path(__file__).parents[1] / "tests" / "corpus"
    print(f"corpus: {sum(path.stat().st_size for path in corpus.glob('*.body'))} bytes in {len(list(corpus.glob('*.body')))} bodies")


if __name__ == "__main__":
    main()
