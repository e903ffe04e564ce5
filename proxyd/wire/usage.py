"""Token counts and errors, out of the decoded JSON of every dialect that upstreams speak."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from proxyd.model import Usage

# What a report says, by whichever names. In each row the first name that holds a number is taken.
_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_COMPLETION_DETAILS = ("completion_tokens_details", "output_tokens_details")
# Anthropic's `input_tokens` leaves out what the cache wrote and read (its SDK's docstring of Usage).
_CACHE_WRITTEN, _CACHE_READ = "cache_creation_input_tokens", "cache_read_input_tokens"

MAX_COUNT = 2**53
"""Larger counts are nonsense, and would not survive JSON or SQLite: they read as unknown."""

MAX_WORDS = 2000
"""Characters kept of each part of an upstream's error."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error that an upstream put into its answer, as text. For the ledger and the log, never for headers."""

    message: str = ""
    code: str = ""
    type: str = ""


def count_of(value: object) -> int | None:
    """A JSON number as a count: floats such as 13.0 become ints; everything that cannot be a count is None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= MAX_COUNT else None


def usage_of(report: object) -> Usage | None:
    """A usage object in OpenAI's, Anthropic's or an images endpoint's names; None if it is no report.

    No report is: anything but an object, one without token counts (`{"type": "duration"}`), and one that is all zero,
    as Ollama puts on every chunk of /v1/completions. Counts are taken raw; an absent total is the sum of its parts.
    """
    if not isinstance(report, dict):
        return None
    prompt = _first(report, _PROMPT)
    if "prompt_tokens" not in report and prompt is not None and (_CACHE_READ in report or _CACHE_WRITTEN in report):
        prompt += (count_of(report.get(_CACHE_WRITTEN)) or 0) + (count_of(report.get(_CACHE_READ)) or 0)
    cached = _detail(report, _PROMPT_DETAILS, "cached_tokens")
    if cached is None:
        cached = _first(report, ("prompt_cache_hit_tokens", "cached_tokens", _CACHE_READ))
    reasoning = _detail(report, _COMPLETION_DETAILS, "reasoning_tokens")
    if reasoning is None:
        reasoning = _detail(report, ("output_tokens_details",), "thinking_tokens")
    written = count_of(report.get(_CACHE_WRITTEN))
    if written is None:
        written = _detail(report, _PROMPT_DETAILS, "cache_write_tokens")  # OpenRouter
    usage = Usage(
        prompt,
        _first(report, _COMPLETION),
        count_of(report.get("total_tokens")),
        cached,
        reasoning,
        written,
        _detail(report, _PROMPT_DETAILS, "audio_tokens"),
        _detail(report, _COMPLETION_DETAILS, "audio_tokens"),
    )
    return reported(usage)


def reported(usage: Usage) -> Usage | None:
    """`usage` with its total filled in, or None if it counts nothing."""
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    if not (prompt or completion or total or usage.cached_tokens or usage.reasoning_tokens):
        return None
    if total is None and prompt is not None and completion is not None:
        return replace(usage, total_tokens=prompt + completion)
    return usage


def ollama_usage(doc: dict[str, object]) -> Usage | None:
    """Ollama's native counts, members of the last line; absent ones are unknown, not 0 (they are `omitempty`)."""
    return reported(Usage(count_of(doc.get("prompt_eval_count")), count_of(doc.get("eval_count"))))


def tgi_usage(details: dict[str, object]) -> Usage | None:
    """The counts in the `details` of TGI's own API."""
    return reported(Usage(count_of(details.get("input_length")), count_of(details.get("generated_tokens"))))


def timings_usage(timings: dict[str, object]) -> Usage | None:
    """What llama.cpp's `timings` tell. For use only where no usage object was seen at all."""
    cached, fresh = count_of(timings.get("cache_n")), count_of(timings.get("prompt_n"))
    prompt = None if fresh is None else fresh + (cached or 0)
    return reported(Usage(prompt, count_of(timings.get("predicted_n")), None, cached))


def fault_of(doc: object, name: bytes = b"") -> Fault | None:
    """The error that a document carries in any dialect, or None. `name` is the type of the event that it came in.

    A truthy `error` (object or string; null is normal in ordinary chunks), `object: "error"` (older vLLM, FastChat),
    `type: "error"` (Anthropic, Responses), `event: error`, `response.failed`, and Gemini's array `[{"error": …}]`.
    """
    if isinstance(doc, list):
        doc = doc[0] if doc else None
        if not (isinstance(doc, dict) and doc.get("error")):
            doc = None
    if not isinstance(doc, dict):
        return Fault() if name == b"error" else None
    error = doc.get("error")
    if doc.get("type") == "response.failed":
        response = doc.get("response")
        return _fault(error or (response.get("error") if isinstance(response, dict) else None) or {}, {})
    if error:
        return _fault(error, doc)
    if name == b"error" or doc.get("object") == "error" or doc.get("type") == "error":
        return _fault(doc, {})
    return None


def _fault(error: object, around: dict[str, object]) -> Fault:
    if isinstance(error, dict):
        return Fault(_words(error.get("message")), _words(error.get("code")), _words(error.get("type")))
    message = error if isinstance(error, str) else around.get("message")
    return Fault(_words(message), _words(around.get("code")), _words(around.get("error_type")))


def _words(value: object) -> str:
    """A member of an error as bounded text that any file or database can hold."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    try:
        return str(value)[:MAX_WORDS].encode("utf-8", "replace").decode()
    except ValueError:  # an integer of more digits than Python prints
        return ""


def _first(report: dict[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        found = count_of(report.get(name))
        if found is not None:
            return found
    return None


def _detail(report: dict[str, object], places: tuple[str, ...], name: str) -> int | None:
    for place in places:
        details = report.get(place)
        if isinstance(details, dict):
            found = count_of(details.get(name))
            if found is not None:
                return found
    return None
