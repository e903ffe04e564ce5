"""Whole answers: OpenAI's `chat.completion` as protobuf and back; and the parts that streams share: usage, logprobs, finish.

Not kept: null members, `annotations: []`, `object`. At DETAIL_COMPACT also what the schema says it leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2
from proxyd.wire.proto import message_json
from proxyd.wire.proto_message import Members, Misfit, Way, as_text, fill_message, open_list, open_object, plain
from proxyd.wire.proto_scan import parse
from proxyd.wire.proto_text import merge, single, write, write_list
from proxyd.wire.usage import count_of, usage_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.wire.delivery import Delivery

FINISH = {"stop": 1, "length": 2, "tool_calls": 3, "content_filter": 4, "function_call": 5}
FINISH_OTHER = 6
_FINISH_NAMES = {number: name for name, number in FINISH.items()}
REASONING = ("reasoning_content", "reasoning", "reasoning_details")
"""Members that hold reasoning, in the dialects there are."""
_PROMPT_DETAILS = {"cached_tokens": "cached_tokens", "audio_tokens": "prompt_audio_tokens"}
_COMPLETION_DETAILS = {
    "reasoning_tokens": "reasoning_tokens",
    "audio_tokens": "completion_audio_tokens",
    "accepted_prediction_tokens": "accepted_prediction_tokens",
    "rejected_prediction_tokens": "rejected_prediction_tokens",
}
_ABOUT = ("id", "model", "system_fingerprint", "service_tier")


def completion(body: bytes, delivery: Delivery, *, handle: bytes = b"") -> bytes:
    """Write an upstream's whole JSON answer as a `ChatCompletion`.

    `handle` is a name that the server chose (a client's own is not repeated).
    Raises ProxyError `upstream_bad_response` if the body is not a completion.
    """
    message = chat_pb2.ChatCompletion(handle=handle)
    try:
        body.decode()  # values are kept as they are, so what is not UTF-8 has to be found here
        members = open_object(body)
        for entry in open_list(members.pop("choices", b"")):
            _choice(message.choices.add(), entry, delivery)
        report = plain(members.pop("usage", b"null"))
    except (Misfit, UnicodeDecodeError):
        raise ProxyError("upstream_bad_response", "The upstream's answer is not a chat completion.") from None
    fill_usage(message.usage, report, full=bool(delivery.full))
    if not message.usage.ByteSize():
        message.ClearField("usage")
    if delivery.full:
        _about(message, members)
        members.pop("object", None)
        if members:
            message.extra_json = as_text(write(members))
    return message.SerializeToString()


def _about(message: chat_pb2.ChatCompletion, members: Members) -> None:
    """Take what describes the answer; what does not fit stays among the members."""
    for name in _ABOUT:
        text = _readable(members.get(name, b"null"))
        if isinstance(text, str) and text:
            setattr(message, name, text)
            del members[name]
    created = _readable(members.get("created", b"null"))
    if type(created) is int and 0 < created < 2**63:
        message.created = created
        del members["created"]


def _readable(raw: bytes) -> Any:
    """A value; None for one that is JSON and cannot be read, as 1e999."""
    try:
        return plain(raw)
    except Misfit:
        return None


def _choice(choice: chat_pb2.Choice, entry: Members, delivery: Delivery) -> None:
    rest = dict(entry)
    position = plain(rest.get("index", b"0"))
    if type(position) is int and 0 <= position < 2**32:
        choice.index = position
        rest.pop("index", None)
    said = open_object(rest.pop("message", b"{}"))
    if said.get("annotations") == b"[]":
        del said["annotations"]
    for name in REASONING if delivery.omit_reasoning else () if delivery.full else REASONING[2:]:
        said.pop(name, None)
    fill_message(choice.message, said, Way(binary=True), default_role="assistant")
    reason = plain(rest.get("finish_reason", b"null"))
    if isinstance(reason, str) and reason:
        choice.finish_reason, choice.finish_reason_text = finish(reason)  # type: ignore[assignment]  # the stubs want the enum's class
        del rest["finish_reason"]
    probabilities = plain(rest.get("logprobs", b"null"))
    if isinstance(probabilities, dict):
        fill_logprobs(choice.logprobs, probabilities.get("content"))
        fill_logprobs(choice.refusal_logprobs, probabilities.get("refusal"))
        if not delivery.full or logprobs_json(choice.logprobs, choice.refusal_logprobs) == probabilities:
            rest.pop("logprobs")
    if delivery.full and rest:
        choice.extra_json = as_text(write(rest))


def finish(reason: str) -> tuple[int, str]:
    """Give the number of a finish_reason, and the upstream's own word where it has none."""
    number = FINISH.get(reason, FINISH_OTHER)
    return number, reason if number == FINISH_OTHER else ""


def finish_text(number: int, text: str) -> str | None:
    """Give the word of a finish_reason; None where there is none yet."""
    return (_FINISH_NAMES.get(number) or text or "other") if number else None


def fill_usage(usage: chat_pb2.Usage, report: Any, *, full: bool) -> None:
    """Put a usage object of any dialect into protobuf; none is left empty. With `full`, so that it can be rebuilt."""
    read = usage_of(report)
    if read is None:
        return
    _put(usage, "prompt_tokens", read.prompt_tokens)
    _put(usage, "completion_tokens", read.completion_tokens)
    _put(usage, "cached_tokens", read.cached_tokens)
    _put(usage, "reasoning_tokens", read.reasoning_tokens)
    if read.total_tokens != usage.prompt_tokens + usage.completion_tokens:
        _put(usage, "total_tokens", read.total_tokens)
    for place, names in (("prompt_tokens_details", _PROMPT_DETAILS), ("completion_tokens_details", _COMPLETION_DETAILS)):
        details = report.get(place)
        if isinstance(details, dict):
            for name, field in names.items():
                _put(usage, field, count_of(details.get(name)))
    if full and usage_json(usage) != report:
        plain_usage = usage_json(chat_pb2.Usage(extra_json="{}"), usage)
        usage.extra_json = orjson.dumps({name: value for name, value in report.items() if plain_usage.get(name, ...) != value}).decode()


def _put(usage: chat_pb2.Usage, field: str, count: int | None) -> None:
    if count is not None and count < 2**32:
        setattr(usage, field, count)


def usage_json(usage: chat_pb2.Usage, counts: chat_pb2.Usage | None = None) -> dict[str, Any]:
    """Rebuild a usage object: exactly OpenAI's members, or, where `extra_json` is set, the totals and what it has."""
    counts = counts or usage
    members: dict[str, Any] = {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.total_tokens or counts.prompt_tokens + counts.completion_tokens,
    }
    if usage.extra_json:
        members |= plain(usage.extra_json.encode())
        return members
    members["prompt_tokens_details"] = {name: getattr(usage, field) for name, field in _PROMPT_DETAILS.items()}
    members["completion_tokens_details"] = {name: getattr(usage, field) for name, field in _COMPLETION_DETAILS.items()}
    return members


def fill_logprobs(into: Any, entries: Any) -> None:
    """Put OpenAI's list of token log probabilities into protobuf; entries of another shape are skipped."""
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            continue
        one = into.add(token=entry["token"])
        number = entry.get("logprob")
        if isinstance(number, (int, float)) and abs(number) < 3e38:
            one.logprob = number
        raw = entry.get("bytes")
        if isinstance(raw, list) and all(type(byte) is int and 0 <= byte < 256 for byte in raw) and bytes(raw) != entry["token"].encode():
            one.raw = bytes(raw)
        top = entry.get("top_logprobs")
        if isinstance(top, list):
            fill_logprobs(one.top_logprobs, [{**item, "top_logprobs": None} for item in top if isinstance(item, dict)])


def logprobs_json(content: Iterable[chat_pb2.TokenLogprob], refused: Iterable[chat_pb2.TokenLogprob]) -> dict[str, Any]:
    """Rebuild a `logprobs` object."""
    return {"content": _logprobs(content) or None, "refusal": _logprobs(refused) or None}


def _logprobs(entries: Iterable[chat_pb2.TokenLogprob]) -> list[dict[str, Any]]:
    return [_logprob(one) | {"top_logprobs": [_logprob(top) for top in one.top_logprobs]} for one in entries]


def _logprob(one: chat_pb2.TokenLogprob) -> dict[str, Any]:
    return {"token": one.token, "logprob": single(one.logprob), "bytes": list(one.raw or one.token.encode())}


def completion_json(data: bytes) -> bytes:
    """Write a `ChatCompletion` as OpenAI's JSON: for clients, tests, and a JSON caller who joins a protobuf exchange.

    Raises ProxyError `invalid_request` if it is not one, or made of token ids.
    """
    message = parse(chat_pb2.ChatCompletion, data)
    members = {name: orjson.dumps(text) for name in _ABOUT if (text := getattr(message, name))}
    members["object"] = b'"chat.completion"'
    if message.created:
        members["created"] = b"%d" % message.created
    members["choices"] = write_list(_choice_json(choice) for choice in message.choices)
    if message.HasField("usage"):
        members["usage"] = orjson.dumps(usage_json(message.usage))
    merge(members, message.extra_json, "")
    return write(members)


def _choice_json(choice: chat_pb2.Choice) -> bytes:
    if choice.tokens:
        raise ProxyError("invalid_request", "The answer is made of token ids, and there is no vocabulary to read them.")
    members = {
        "index": b"%d" % choice.index,
        "message": message_json(choice.message, "assistant"),
        "finish_reason": orjson.dumps(finish_text(choice.finish_reason, choice.finish_reason_text)),
    }
    if choice.logprobs or choice.refusal_logprobs:
        members["logprobs"] = orjson.dumps(logprobs_json(choice.logprobs, choice.refusal_logprobs))
    extra = dict(members)
    if choice.extra_json:
        kept = open_object(choice.extra_json.encode())
        extra |= kept  # logprobs that float32 cannot hold stand here as well, and win
    return write(extra)
