"""What one answer says, as it grows: model, usage, finish reasons, text. `dialects` fills it, `meter` asks it."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from proxyd.model import Reading
from proxyd.wire.usage import timings_usage, usage_of

if TYPE_CHECKING:
    from proxyd.model import Usage
    from proxyd.wire.usage import Fault

MAX_CHOICES = 1024
"""Choices beyond this many are not told apart: nobody asks for so many, and memory stays bounded."""


MAX_TIER = 32
"""Characters of a service tier; what is longer is none."""


class Choice:
    """One alternative answer. Text is kept in buffers, since a list of one-token strings costs 60 bytes a token."""

    __slots__ = ("billed", "finish", "text")

    def __init__(self) -> None:
        self.text = io.StringIO()
        """The visible text."""
        self.billed: io.StringIO | None = None
        """What else is generated and paid for: reasoning, refusal, names and arguments of tool calls."""
        self.finish: str | None = None
        """The last finish reason that was not empty, raw."""


class Answer:
    """The facts of one answer. `embeds`: its endpoint makes vectors, so that 0 completion tokens are a fact.

    `text_limit` bounds the characters kept; what finds no room is counted in `text_lost`.
    """

    __slots__ = (
        "anthropic",
        "chat",
        "choices",
        "closed",
        "embeds",
        "fault",
        "finishes",
        "model",
        "own_ending",
        "room",
        "service_tier",
        "terminal",
        "text_lost",
        "timings",
        "usage",
    )

    def __init__(self, *, embeds: bool = False, text_limit: int = 4 << 20) -> None:
        self.model: str | None = None
        self.service_tier: str | None = None
        """What the answer was served as, as was last said."""
        self.fault: Fault | None = None
        """The first in-band error."""
        self.terminal = False
        """The document that makes the answer whole was seen."""
        self.closed = False
        """[DONE] came, and means the end: no client reads what follows."""
        self.text_lost = 0
        self.embeds = embeds
        self.room = text_limit
        self.choices: dict[int, Choice] = {}
        self.chat = False
        """Chat or completions: whole at [DONE], or when each choice has its finish reason."""
        self.finishes = False
        """This endpoint knows finish reasons."""
        self.own_ending = False
        """A protocol with a terminal event of its own, where [DONE] proves nothing."""
        self.usage: Usage | None = None
        self.timings: dict[str, Any] | None = None
        self.anthropic: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """A chat or completions answer each of whose choices has its finish reason."""
        return self.chat and bool(self.choices) and all(choice.finish for choice in self.choices.values())

    def reading(self) -> Reading:
        """The facts so far, without `had_error` and `complete`, which the transport decides too."""
        usage = self.usage
        if usage is None and self.timings is not None:
            usage = timings_usage(self.timings)
        if usage is not None and self.embeds and usage.completion_tokens is None:
            prompt, total = usage.prompt_tokens, usage.total_tokens
            usage = replace(usage, completion_tokens=0, total_tokens=prompt if total is None else total)
        return Reading(
            model=self.model,
            usage=usage,
            finish_reasons={index: choice.finish for index, choice in sorted(self.choices.items())} if self.finishes else {},
            service_tier=self.service_tier,
        )

    def texts(self) -> dict[int, str]:
        """The visible text of each choice: no reasoning, refusal, tool arguments or audio."""
        return {index: _whole(choice.text.getvalue()) for index, choice in sorted(self.choices.items())}

    def produced(self) -> str:
        """All that was generated and is billed, of all choices: reasoning, refusals and tool calls, then the text."""
        parts: list[str] = []
        for _, choice in sorted(self.choices.items()):
            if choice.billed is not None:
                parts.append(choice.billed.getvalue())
            parts.append(choice.text.getvalue())
        return _whole("".join(parts))

    # ------------------------------------------------------------------ for the dialects

    def choice(self, index: object = 0, *, finishes: bool = True) -> Choice:
        """The choice of that index, now seen. Indices that are none, and those past MAX_CHOICES, fall on the first."""
        if finishes:
            self.finishes = True
        key = index if isinstance(index, int) and 0 <= index < MAX_CHOICES else 0
        choice = self.choices.get(key)
        if choice is None:
            choice = self.choices[key] = Choice()
        return choice

    def write(self, choice: Choice, text: object) -> None:
        """Visible text follows."""
        if isinstance(text, str) and text:
            choice.text.write(self._fit(text))

    def bill(self, choice: Choice, text: object) -> None:
        """Something that is not visible text, but generated, follows. Arguments given as objects count as their JSON."""
        if isinstance(text, (dict, list)):
            text = _compact(text)
        if isinstance(text, str) and text:
            if choice.billed is None:
                choice.billed = io.StringIO()
            choice.billed.write(self._fit(text))

    def bill_calls(self, choice: Choice, calls: object) -> None:
        """Tool calls or fragments of them follow, as chat writes them."""
        for call in calls if isinstance(calls, list) else ():
            if not isinstance(call, dict):
                continue
            for member, arguments in (("function", "arguments"), ("custom", "input")):
                what = call.get(member)
                if isinstance(what, dict):
                    self.bill(choice, what.get("name"))
                    self.bill(choice, what.get(arguments))

    def finish(self, choice: Choice, reason: object) -> None:
        """A finish reason, if it is one: null and the empty string never overwrite."""
        if isinstance(reason, str) and reason:
            choice.finish = _whole(reason)

    def name_model(self, name: object) -> None:
        """A model name, if it is one and the first."""
        if self.model is None and isinstance(name, str) and name:
            self.model = _whole(name)

    def serve(self, tier: object) -> None:
        """A service tier, if it is one; the last one counts, as the first may be what was asked for."""
        if isinstance(tier, str) and 0 < len(tier) <= MAX_TIER and tier.isascii():
            self.service_tier = tier

    def blame(self, fault: Fault | None) -> None:
        """An in-band error, if it is one, the first, and told to anybody."""
        if self.fault is None and not self.closed:
            self.fault = fault

    def report(self, usage: Usage | None) -> None:
        """A usage report: it replaces earlier ones, never adds; None is none."""
        if usage is not None:
            self.usage = usage

    def merge_anthropic(self, report: object) -> None:
        """A usage object of Anthropic's stream: it amends earlier ones, member by member."""
        if isinstance(report, dict):
            self.serve(report.get("service_tier"))
            self.anthropic.update({key: value for key, value in report.items() if value is not None and len(key) < 64})
            self.report(usage_of(self.anthropic))

    def _fit(self, text: str) -> str:
        room = self.room
        if len(text) <= room:
            self.room = room - len(text)
            return text
        self.room = 0
        self.text_lost += len(text) - room
        return text[:room]


def _whole(text: str) -> str:
    """Text that UTF-8 can hold: surrogate halves that arrived in two events are joined, lone ones replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _compact(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError, RecursionError):  # lone surrogates, integers past 64 bits, deep nesting
        return ""
