"""What an ask puts into the model: the texts to count, and the tokens that are known or guessed without counting.

Formulas: OpenAI's cookbook, "How to count tokens with tiktoken" (chat messages: as its API reported for its examples;
tools: within its constants), and the vision guide's tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from proxyd.model import Endpoint
from proxyd.wire.dialects import decode

if TYPE_CHECKING:
    from proxyd.model import Ask

_PER_MESSAGE, _PER_NAME, _ANSWER_PRIMER = 3, 1, 3

# Per function: its start by family, then parameters and their enums; once for all functions, the end.
_FUNCTION_STARTS = (("gpt-4o", 7), ("gpt-4.", 7), ("gpt-4", 10), ("gpt-3", 10))
_FUNCTION_START, _FUNCTIONS_END = 7, 12
_PARAMETERS, _PARAMETER, _ENUM, _ENUM_ITEM = 3, 3, -3, 3

# (low detail, anything else as four tiles of 512 px, which is what 1024 by 1024 has), by the start of the model's name.
_IMAGES = (
    ("gpt-4o-mini", (2833, 2833 + 4 * 5667)),
    ("gpt-4.1-mini", (1659, 1659)),
    ("gpt-4.1-nano", (2519, 2519)),
    ("o4-mini", (1761, 1761)),
    ("gpt-5-mini", (1659, 1659)),
    ("gpt-5-nano", (2519, 2519)),
    ("gpt-5", (70, 70 + 4 * 140)),
    ("o1", (75, 75 + 4 * 150)),
    ("o3", (75, 75 + 4 * 150)),
)
_IMAGE = (85, 85 + 4 * 170)

BYTES_PER_TOKEN = 2
"""What `estimate` takes for a token: English prose has 4 to 5, Chinese about 4, dense code and digits little more than 2."""

_AUDIO_BYTES_PER_TOKEN = {"wav": 4800, "mp3": 1600}  # a token is a tenth of a second; 24 kHz of 16 bits, 128 kbit/s
_FILE_BYTES_PER_TOKEN = 16


@dataclass(slots=True)
class Parts:
    """A prompt taken apart."""

    texts: list[str] = field(default_factory=list)
    """To be counted, each by itself."""
    tokens: int = 0
    """To be added."""
    guessed: bool = False
    """`tokens` holds estimates, or something was left out."""

    def text(self, value: object) -> None:
        """Add a text, if it is one."""
        if isinstance(value, str):
            if value:
                self.texts.append(value)
        elif value is not None:
            self.guess(value)

    def guess(self, value: object) -> None:
        """Add something that is not text, but that the model will read as its JSON, more or less."""
        self.guessed = True
        try:
            self.texts.append(msgspec.json.encode(value).decode())
        except (ValueError, TypeError, RecursionError):
            self.texts.append(repr(type(value)))


def ask_parts(ask: Ask, model: str) -> Parts:
    """Take an ask apart. Never raises: what cannot be read is guessed by its length."""
    parts = Parts()
    if ask.endpoint is Endpoint.CHAT:
        _chat(parts, ask, model.rpartition("/")[2].removeprefix("ft:").lower())
    else:
        _input(parts, _member(parts, ask, "prompt" if ask.endpoint is Endpoint.COMPLETIONS else "input"))
        parts.text(_member(parts, ask, "suffix"))
    return parts


def estimate(ask: Ask, model: str) -> int:
    """Guess the tokens of a prompt without a tokenizer, rather too high than too low; at least 1. What limits reserve by."""
    parts = ask_parts(ask, model)
    size = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in parts.texts)
    return max(1, parts.tokens + -(-size // BYTES_PER_TOKEN))


def _member(parts: Parts, ask: Ask, name: str) -> object:
    """Decode a member of the ask; one that no parser takes is guessed by its length."""
    raw = bytes(ask.fields.get(name, b"null"))
    value = decode(raw)
    if value is None and raw != b"null":
        parts.guessed = True
        parts.texts.append(raw.decode("utf-8", "replace"))
    return value


# ---------------------------------------------------------------------- completions, embeddings


def _input(parts: Parts, value: object) -> None:
    """A string, strings, tokens, or lists of tokens: as both endpoints take them."""
    if not isinstance(value, list):
        parts.text(value)
        return
    for item in value:
        if isinstance(item, int):
            parts.tokens += 1
        elif isinstance(item, list) and all(isinstance(token, int) for token in item):
            parts.tokens += len(item)
        else:
            parts.text(item)


# ---------------------------------------------------------------------- chat


def _chat(parts: Parts, ask: Ask, model: str) -> None:
    messages = _member(parts, ask, "messages")
    parts.tokens += _ANSWER_PRIMER
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            _message(parts, message, model)
    functions = []
    tools = _member(parts, ask, "tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            functions.append(function)
        else:
            parts.guess(tool)
    legacy = _member(parts, ask, "functions")
    functions += [function for function in (legacy if isinstance(legacy, list) else ()) if isinstance(function, dict)]
    for function in functions:
        _function(parts, function, model)
    if functions:
        parts.tokens += _FUNCTIONS_END
    form = _member(parts, ask, "response_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        parts.guess(form.get("json_schema"))
    if model.startswith("gpt-oss"):
        parts.guessed = True  # its harmony framing is another one


def _message(parts: Parts, message: dict[str, Any], model: str) -> None:
    parts.tokens += _PER_MESSAGE
    parts.text(message.get("role"))
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict):
            _part(parts, part, model)
        else:
            parts.text(part)
    if isinstance(message.get("name"), str):
        parts.text(message["name"])
        parts.tokens += _PER_NAME
    parts.text(message.get("refusal"))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        parts.guessed = True  # the framing of calls in a history is not public
        what = call.get("function") or call.get("custom") if isinstance(call, dict) else None
        if isinstance(what, dict):
            parts.tokens += _PER_MESSAGE
            for member in ("name", "arguments", "input"):
                parts.text(what.get(member))


def _part(parts: Parts, part: dict[str, Any], model: str) -> None:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        parts.text(part.get(kind))
        return
    parts.guessed = True
    if kind == "image_url":
        image = part.get("image_url")
        low = isinstance(image, dict) and image.get("detail") == "low"
        sizes = next((sizes for start, sizes in _IMAGES if model.startswith(start)), _IMAGE)
        parts.tokens += sizes[0 if low else 1]
    elif kind == "input_audio":
        audio = part.get("input_audio")
        if isinstance(audio, dict):
            per_token = _AUDIO_BYTES_PER_TOKEN.get(str(audio.get("format")), _AUDIO_BYTES_PER_TOKEN["mp3"])
            parts.tokens += _decoded_size(audio.get("data")) // per_token + 1
    elif kind == "file":
        file = part.get("file")
        if isinstance(file, dict):
            parts.tokens += _decoded_size(file.get("file_data")) // _FILE_BYTES_PER_TOKEN + 1
    else:
        parts.guess(part)


def _decoded_size(base64: object) -> int:
    return len(base64) * 3 // 4 if isinstance(base64, str) else 0


def _function(parts: Parts, function: dict[str, Any], model: str) -> None:
    """A function as the cookbook counts it: its lines of text, and constants for what the template puts around."""
    starts = (tokens for start, tokens in _FUNCTION_STARTS if model.startswith(start))
    parts.tokens += next(starts, _FUNCTION_START)
    parts.text(f"{_words(function, 'name')}:{_words(function, 'description').removesuffix('.')}")
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or not properties:
        return
    parts.tokens += _PARAMETERS
    for name, parameter in properties.items():
        parts.tokens += _PARAMETER
        if not isinstance(parameter, dict):
            parts.guess(parameter)
            continue
        choices = parameter.get("enum")
        if isinstance(choices, list):
            parts.tokens += _ENUM + _ENUM_ITEM * len(choices)
            for choice in choices:
                parts.text(choice)
        if any(member in parameter for member in ("properties", "items", "anyOf")):
            parts.guess({member: parameter[member] for member in ("properties", "items", "anyOf") if member in parameter})
        line = f"{name}:{_words(parameter, 'type')}:{_words(parameter, 'description').removesuffix('.')}"
        parts.text(line)


def _words(of: dict[str, Any], member: str) -> str:
    value = of.get(member)
    return value if isinstance(value, str) else ""
