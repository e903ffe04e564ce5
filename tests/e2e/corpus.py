"""The wire corpus as an upstream would serve it, and what a client and the ledger must then see."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.origin import LAST_CHUNK, Ending, Step, chunked_body, head
from tests.wire import corpus

ENDPOINTS = ("/chat/completions", "/completions", "/embeddings")
_LINE_END = rb"(?>\r\n|\n|\r)"
_BLANK = re.compile(_LINE_END + rb"{2,}")
_USAGE_KEYS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class Case(corpus.Case):
    """One case, as it is served here."""

    @property
    def endpoint(self) -> str:
        """The path at proxyd under which a client asks for this."""
        path = self.context["endpoint"].partition("?")[0]
        return "/v1" + next(end for end in ENDPOINTS if path.endswith(end))

    @property
    def status(self) -> int:
        return self.context["response"]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return self.context["response"]["headers"]

    @property
    def streamed(self) -> bool:
        return bool(self.context["request"].get("stream"))

    @property
    def encoded(self) -> bool:
        return "content-encoding" in self.headers

    @property
    def usage(self) -> dict[str, int | None]:
        """What the ledger must hold where the upstream reported anything."""
        return {key: self.facts[key] for key in _USAGE_KEYS}

    @property
    def reported(self) -> bool:
        return self.facts["prompt_tokens"] is not None or self.facts["completion_tokens"] is not None

    @property
    def error_first(self) -> bool:
        """Nothing but an error came, although the status said 200."""
        return self.status < 400 and self.facts["had_error"] and not self.facts["text_by_choice"]

    def request(self, model: str) -> dict:
        """A whole request that leads to this answer: the sidecar names only what matters."""
        own = {key: value for key, value in self.context["request"].items() if key in ("stream", "stream_options", "n")}
        if self.endpoint == "/v1/chat/completions":
            own["messages"] = [{"role": "user", "content": "Say something."}]
        elif self.endpoint == "/v1/completions":
            own["prompt"] = "Say something"
        else:
            own["input"] = "something"
        return {"model": model, **own}

    def script(self, piece: int) -> list[Step]:
        """Serve the case in chunks of `piece` bytes, and end or break as its sidecar says."""
        if "content-length" in self.headers:
            return [head(self.status, self.headers) + self.body, Ending.KEEP if self.clean else Ending.CLOSE]
        return [*chunked_body(self.body, piece, self.headers, self.status), *([LAST_CHUNK] if self.clean else [Ending.CLOSE])]

    def broken_at(self) -> int:
        """An offset in the middle of the data of some event, past half of the stream, before any terminal event."""
        events = list(_BLANK.finditer(self.body))
        start = events[(len(events) - 1) // 2].end()
        data = self.body.index(b"{", start)
        return data + 5

    def broken(self, at: int, piece: int) -> list[Step]:
        """Serve the first `at` bytes, then break the connection."""
        return [*chunked_body(self.body[:at], piece, self.headers, self.status), Ending.CLOSE]


def whole_events(data: bytes) -> bytes:
    """The data without a last event that is not closed by an empty line."""
    ends = [match.end() for match in _BLANK.finditer(data)]
    return data[: ends[-1]] if ends else b""


def cases() -> list[Case]:
    """Every case of an endpoint that is served here."""
    found = map(corpus.load, corpus.CASES)
    return [
        Case(case.name, case.body, case.facts, case.context)
        for case in found
        if case.context["endpoint"].partition("?")[0].endswith(ENDPOINTS)
    ]
