"""The samples of tests/pb_samples, and small tools to read them."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.wire.proto_frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.wire.proto_stream import ChunkEncoder

SAMPLES = pathlib.Path(__file__).parents[1] / "pb_samples"
STREAMS = ("answer-1000", "answer-200", "code-440", "german-184", "hindi-113", "reasoning", "tool-calls")
REQUESTS = ("short", "short-params", "conv-20", "tools", "tools-turn2", "kitchen-sink")


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def sse_data(body: bytes) -> list[bytes]:
    """The data of each event: enough of SSE for whole files."""
    text = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events = []
    for block in text.split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            events.append(b"\n".join(lines))
    return events


def timed(name: str) -> list[tuple[bytes, float]]:
    """The events of a stream and when they came, in seconds."""
    events = sse_data(sample(f"streams/{name}.sse"))
    times = [json.loads(line)[0] / 1000 for line in sample(f"streams/{name}.deltas.jsonl").splitlines()]
    return list(zip(events, times + times[-1:] * (len(events) - len(times)), strict=True))


def run(encoder: ChunkEncoder, events: list[tuple[bytes, float]]) -> list[bytes]:
    """All frames of a stream, as one that asks at each deadline would get them."""
    frames = []
    for event, now in events:
        if encoder.deadline is not None and encoder.deadline < now:
            frames += encoder.tick(encoder.deadline)
        frames += encoder.feed(event, now)
    return frames + encoder.end()


def messages(frames: list[bytes] | bytes) -> list[bytes]:
    return FrameReader().feed(frames if isinstance(frames, bytes) else b"".join(frames))


def without_nulls(item):
    """JSON without the members that the mapping does not keep."""
    if isinstance(item, dict):
        return {
            name: without_nulls(value) for name, value in item.items() if value is not None and value != [] and name != "stream_options"
        }
    return [without_nulls(value) for value in item] if isinstance(item, list) else item


def status_of(act: Callable[..., object], *args: object) -> int:
    """200 if it can be done, else the status of the refusal; any other exception is a failure."""
    try:
        act(*args)
    except ProxyError as error:
        return error.status
    return 200
