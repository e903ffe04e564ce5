"""What the mock upstream says: shared by the mock, which sends it, and the load, which checks every byte count of it.

Shaped like OpenAI's chat completions: the unary answer is about 1 kB, a streamed event about 270 bytes. Each content event
carries its number and the moment it was written (CLOCK_MONOTONIC, the same in all processes of one machine), both at a fixed
width, so that the length of a whole stream is known beforehand and added latency can be read off at the other end.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

HOLD = -1
"""As a rate: the stream says its first event, then nothing until the mock is told to release it."""

MODEL = re.compile(rb'"model"\s*:\s*"mock-(?:(\d+)x(\d+|hold)|unary|third)"')
USAGE_ASKED = re.compile(rb'"include_usage"\s*:\s*true')

_ID = "chatcmpl-Cb1aQ0o8Xr2MvT6yLk9pWnHs"
_NAME = "gpt-5.4-2026-03-05"
_USAGE = {
    "prompt_tokens": 87,
    "completion_tokens": 128,
    "total_tokens": 215,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
_TEXT = (
    "A lighthouse marks the edge of the land for those who cannot see it. Its light is a name: so many flashes in so many "
    "seconds, written on the chart, so that whoever reads the sea at night reads where he is. "
)


def _event(delta: dict[str, str | None], finish: str | None, usage: object = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    document = {
        "id": _ID,
        "object": "chat.completion.chunk",
        "created": 1795104001,
        "model": _NAME,
        "service_tier": "default",
        "system_fingerprint": None,
        "choices": [choice] if usage is None else [],
        "usage": usage,
        "obfuscation": "Zq81LmX",
    }
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


UNARY = json.dumps(
    {
        "id": _ID,
        "object": "chat.completion",
        "created": 1795104001,
        "model": _NAME,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT * 2, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            },
        ],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": None,
    },
    indent=2,
).encode()

FIRST = _event({"role": "assistant", "content": "", "refusal": None}, None)
CONTENT_HEAD, CONTENT_TAIL = _event({"content": " @"}, None).split(b"@")
STAMP = re.compile(rb'"content":\s*" (\d{6}) (\d{16})"')
"""Number and nanoseconds of a content event. Proxies that write their own JSON keep the text, if not the spaces."""
STAMP_WIDTH = 6 + 1 + 16
FINISH = _event({}, "stop")
REPORT = _event({}, None, _USAGE)
DONE = b"data: [DONE]\n\n"


def content(number: int, now_ns: int) -> bytes:
    """Make the content event `number` (from 0), stamped `now_ns`."""
    return b"%b%06d %016d%b" % (CONTENT_HEAD, number, now_ns, CONTENT_TAIL)


@dataclass(frozen=True, slots=True)
class Script:
    """One stream: `events` content events at `rate` a second (0: at once; HOLD: when released), each its own write."""

    events: int
    rate: int

    @property
    def model(self) -> str:
        """The model name that asks the mock for this; the only field that every proxy hands on."""
        return f"mock-{self.events}x{'hold' if self.rate == HOLD else self.rate}"

    @property
    def length(self) -> int:
        """Bytes of the whole body, for a client that did not ask for the usage event."""
        return len(FIRST) + self.events * (len(CONTENT_HEAD) + STAMP_WIDTH + len(CONTENT_TAIL)) + len(FINISH) + len(DONE)

    @property
    def blanks(self) -> int:
        """Events in the whole body: the role, the content, the finish, and `[DONE]`."""
        return self.events + 3


def read_model(body: bytes) -> Script | None:
    """Read out of a request which stream it wants; None for the unary answer. Raises ValueError for any other model."""
    found = MODEL.search(body)
    if found is None:
        raise ValueError(f"no model of the mock in {body[:200]!r}")
    if found[1] is None:
        return None
    return Script(int(found[1]), HOLD if found[2] == b"hold" else int(found[2]))


def request_body(model: str, *, stream: bool) -> bytes:
    """Make a chat request of an ordinary size (about 700 bytes), as the SDKs write it."""
    system = "You are a patient keeper of lighthouses. " * 6
    document: dict[str, object] = {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": "What does a lighthouse say to a ship that is too far away to see the land? " * 3},
        ],
        "model": model,
        "max_tokens": 512,
        "temperature": 0.2,
    }
    if stream:
        document["stream"] = True
    return json.dumps(document).encode()
