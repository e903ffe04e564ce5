"""How each upstream writes its answers: decoded JSON in, facts of an Answer out. Nothing here raises on any input.

One function per protocol; a document is told by its shape, since routers change the protocol behind a model at will.
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from proxyd.wire.chunk import Chunk, decode_chunk, decode_named, decode_whole, read_chunk
from proxyd.wire.sse import BOM
from proxyd.wire.usage import Fault, fault_of, ollama_usage, tgi_usage, usage_of

if TYPE_CHECKING:
    from proxyd.wire.answer import Answer, Choice

Doc = dict[str, Any]

_DONE = b"[DONE]"
_LENIENT_LIMIT = 1 << 20
_LARGE = 1 << 16

# The members that anything here reads. In a large body the others (vectors, images) are skipped, not decoded.
_MEMBERS = frozenset(
    (
        *("service_tier", "model", "usage", "choices", "error", "object", "type", "code", "error_type", "x_groq", "timings"),
        *("message", "response", "thinking", "done", "done_reason", "prompt_eval_count", "eval_count"),
        *("output", "status", "incomplete_details", "content", "stop_reason", "text", "generated_text", "details"),
    )
)


class Mark(enum.IntEnum):
    """What a document means for the relay of its bytes."""

    ORDINARY = 0
    USAGE_ONLY = 1
    """The usage of a chat stream and nothing else: the event that `include_usage` adds."""
    TERMINAL = 2
    """With it the answer is over, whatever the transport does then."""


_ORDINARY = Mark.ORDINARY  # looking a member up costs more than reading a delta does
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_event(answer: Answer, payload: bytes | bytearray, name: bytes = b"") -> Mark:
    """Take in one event of SSE or one line of NDJSON. `name` is the event's type. What does not parse is skipped."""
    if answer.own_ending:
        return _read_other(answer, payload, name)
    try:
        if answer.model is None:
            named = decode_named(payload)
            answer.name_model(named.model)
            answer.serve(named.service_tier)
            chunk: Chunk = named
        else:
            chunk = decode_chunk(payload)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return _read_other(answer, payload, name)
    if not chunk.choices or name == b"error":
        return _read_other(answer, payload, name)
    read_chunk(answer, chunk)
    return _ORDINARY


def is_end(payload: bytes | bytearray) -> bool:
    """Whether it is the event that ends a stream: whatever the event is called, as the SDKs have it."""
    return len(payload) < 64 and payload.strip() == _DONE


def _read_other(answer: Answer, payload: bytes | bytearray, name: bytes) -> Mark:
    """Take in whatever is not an ordinary chunk."""
    if is_end(payload):
        if not answer.own_ending:
            answer.terminal = answer.closed = True
        return Mark.TERMINAL
    doc = decode(payload)
    answer.blame(fault_of(doc, name))
    return read_document(answer, doc) if isinstance(doc, dict) else _ORDINARY


def read_error_field(answer: Answer, value: bytes | bytearray) -> None:
    """Take in the value of the non-standard SSE field `error:`."""
    doc = decode(value)
    error = doc if isinstance(doc, dict) and doc else bytes(value[:4096]).decode("utf-8", "replace")
    answer.blame(fault_of({"error": error}) or Fault())


def read_body(answer: Answer, body: bytes | bytearray) -> bool:
    """Take in a whole unstreamed body. False if it is not a JSON object or array: then nothing was read."""
    if body.startswith(BOM):  # noqa: FURB188 - it would copy every bytearray; clients pass over it
        body = body[len(BOM) :]
    if len(body) <= _LARGE:
        try:
            whole = decode_whole(body)
        except (ValueError, RecursionError):  # not an ordinary one
            whole = None
        if whole is not None and whole.choices:
            answer.name_model(whole.model)
            answer.serve(whole.service_tier)
            read_chunk(answer, whole)
            return True
    doc = _decode_large(body) if len(body) > _LARGE else decode(body)
    if not isinstance(doc, (dict, list)):
        return False
    answer.blame(fault_of(doc))
    if isinstance(doc, list) and doc:
        doc = doc[0]  # Gemini's errors, TGI's /generate behind some routers
    if isinstance(doc, dict):
        read_document(answer, doc)
    return True


def decode(payload: bytes | bytearray) -> object:
    """JSON as leniently as the clients read it (Python's own parser: NaN, lone surrogates; U+FFFD for bad UTF-8).

    None for what is no JSON, for nesting past the parsers' own depth, and for broken text past 1 MiB.
    """
    try:
        return orjson.loads(payload)
    except ValueError:
        if len(payload) > _LENIENT_LIMIT or payload.lstrip()[:1] not in (b"{", b"[", b'"'):
            return None
    try:
        return json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def read_document(answer: Answer, doc: Doc) -> Mark:
    """Take in one JSON object, whichever protocol it is of."""
    answer.name_model(doc.get("model"))
    kind = doc.get("type")
    choices = doc.get("choices")
    if isinstance(choices, list):
        return _choices(answer, doc, choices)
    if isinstance(kind, str) and kind.startswith("response."):
        return _responses_event(answer, doc, kind)
    reader = _BY_TYPE.get(kind, _plain) if isinstance(kind, str) else _plain
    if reader is _plain:
        if doc.get("object") == "response":
            reader = _response
        elif "done" in doc or "prompt_eval_count" in doc:
            reader = _ollama
        elif isinstance(doc.get("token"), dict) or "generated_text" in doc:
            reader = _tgi
    return reader(answer, doc)


def _plain(answer: Answer, doc: Doc) -> Mark:
    """Embeddings, moderations, images; and a transcription, which has text but no notion of a finish."""
    if isinstance(doc.get("text"), str):
        answer.write(answer.choice(finishes=False), doc["text"])
    answer.report(usage_of(doc.get("usage")))
    return _ORDINARY


# ---------------------------------------------------------------------- chat and completions


def _choices(answer: Answer, doc: Doc, choices: list[object]) -> Mark:
    """A chunk or a whole body of chat or completions, with everything that gateways put into one."""
    answer.chat = answer.finishes = True
    x_groq, timings = doc.get("x_groq"), doc.get("timings")
    answer.serve(doc.get("service_tier"))
    if isinstance(x_groq, dict):
        answer.report(usage_of(x_groq.get("usage")))
    for place, got in enumerate(choices):
        if not isinstance(got, dict):
            continue
        index = got.get("index")
        choice = answer.choice(place if index is None else index)
        answer.finish(choice, got.get("finish_reason"))
        answer.report(usage_of(got.get("usage")))  # Moonshot
        for member in ("delta", "message"):
            message = got.get(member)
            if isinstance(message, dict):
                _message(answer, choice, message)
        answer.write(choice, got.get("text"))
    report = usage_of(doc.get("usage"))
    answer.report(report)
    if isinstance(timings, dict):
        answer.timings = timings
    bare = not choices and isinstance(doc.get("usage"), dict)
    laden = any(doc.get(member) for member in ("error", "moderation", "prompt_filter_results"))
    return Mark.USAGE_ONLY if bare and not laden else _ORDINARY


def _message(answer: Answer, choice: Choice, message: Doc) -> None:
    content = message.get("content")
    if isinstance(content, list):
        _parts(answer, choice, content)
    else:
        answer.write(choice, content)
    if len(message) == 2 and "role" in message and "content" in message:
        return  # most are no more than this
    # Some gateways write the same reasoning under both names: it counts once.
    answer.bill(choice, _text_of(message.get("reasoning_content")) or _text_of(message.get("reasoning")))
    answer.bill(choice, _text_of(message.get("thinking")))
    answer.bill(choice, _text_of(message.get("refusal")))
    answer.bill_calls(choice, message.get("tool_calls"))
    answer.bill_calls(choice, [{"function": message.get("function_call")}])


def _parts(answer: Answer, choice: Choice, parts: list[object]) -> None:
    """Content in parts: Responses, Anthropic, and chat of the vendors that write it so (Mistral's thinking)."""
    for part in parts:
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if kind in ("text", "output_text"):
            answer.write(choice, part.get("text"))
        elif kind in ("thinking", "reasoning_text", "summary_text"):
            thinking = part.get("thinking", part.get("text"))
            for piece in thinking if isinstance(thinking, list) else [thinking]:
                answer.bill(choice, _text_of(piece.get("text") if isinstance(piece, dict) else piece))
        elif kind == "refusal":
            answer.bill(choice, _text_of(part.get("refusal")))
        elif kind in ("tool_use", "server_tool_use"):
            answer.bill(choice, part.get("name"))
            answer.bill(choice, part.get("input") or None)


# ---------------------------------------------------------------------- OpenAI's Responses


def _responses_event(answer: Answer, doc: Doc, kind: str) -> Mark:
    """The text appears up to five times in such a stream: the deltas count."""
    answer.own_ending = True
    choice = answer.choice()
    if kind.endswith(".delta"):
        if kind == "response.output_text.delta":
            answer.write(choice, doc.get("delta"))
        elif not kind.startswith("response.audio"):  # reasoning, refusal, arguments and inputs of calls, code
            answer.bill(choice, _text_of(doc.get("delta")))
    elif kind == "response.output_item.added":
        item = doc.get("item")
        if isinstance(item, dict):
            answer.bill(choice, _text_of(item.get("name")))
    response = doc.get("response")
    if isinstance(response, dict):
        answer.name_model(response.get("model"))
        answer.report(usage_of(response.get("usage")))
    if kind not in ("response.completed", "response.incomplete", "response.failed"):
        return _ORDINARY
    answer.terminal = True
    if isinstance(response, dict):
        _response(answer, {**response, "status": kind.removeprefix("response.")})
    return Mark.TERMINAL


def _response(answer: Answer, doc: Doc) -> Mark:
    """A response object: a whole body, or the one inside the terminal event (then only what no delta said is taken)."""
    choice = answer.choice()
    silent = not choice.text.tell() and choice.billed is None
    status, why = doc.get("status"), doc.get("incomplete_details")
    if status == "incomplete" and isinstance(why, dict) and why.get("reason"):
        status = why.get("reason")
    answer.finish(choice, status)
    answer.serve(doc.get("service_tier"))
    answer.report(usage_of(doc.get("usage")))
    output = doc.get("output")
    for item in output if silent and isinstance(output, list) else ():
        if not isinstance(item, dict):
            continue
        for member in ("summary", "content"):
            if isinstance(item.get(member), list):
                _parts(answer, choice, item[member])
        for member in ("name", "arguments", "input"):
            answer.bill(choice, _text_of(item.get(member)))
    return _ORDINARY


# ---------------------------------------------------------------------- Anthropic's Messages


def _anthropic(answer: Answer, doc: Doc) -> Mark:
    answer.own_ending = True
    choice = answer.choice()
    kind = doc["type"]
    if kind == "message_stop":
        answer.terminal = True
        return Mark.TERMINAL
    message = doc.get("message") if kind == "message_start" else doc
    if isinstance(message, dict):
        answer.name_model(message.get("model"))
        answer.merge_anthropic(message.get("usage"))
        answer.finish(choice, message.get("stop_reason"))
        if isinstance(message.get("content"), list):
            _parts(answer, choice, message["content"])
    if isinstance(doc.get("content_block"), dict):
        _parts(answer, choice, [doc["content_block"]])
    delta = doc.get("delta")
    if isinstance(delta, dict):
        answer.finish(choice, delta.get("stop_reason"))
        if kind == "content_block_delta":
            answer.write(choice, delta.get("text"))
            answer.bill(choice, _text_of(delta.get("thinking")))
            answer.bill(choice, _text_of(delta.get("partial_json")))
    return _ORDINARY


# ---------------------------------------------------------------------- Ollama, TGI, audio, images


def _ollama(answer: Answer, doc: Doc) -> Mark:
    """A line of /api/chat or /api/generate, or the body of /api/embed."""
    if "eval_count" in doc or "prompt_eval_count" in doc:
        answer.report(ollama_usage(doc))
    if "done" not in doc:
        return _ORDINARY
    answer.own_ending = True
    choice = answer.choice()
    answer.write(choice, doc.get("response"))
    answer.bill(choice, _text_of(doc.get("thinking")))
    message = doc.get("message")
    if isinstance(message, dict):
        _message(answer, choice, message)
    answer.finish(choice, doc.get("done_reason"))
    if doc["done"] is not True:
        return _ORDINARY
    answer.terminal = True
    return Mark.TERMINAL


def _tgi(answer: Answer, doc: Doc) -> Mark:
    """TGI's own API: an event of /generate_stream, or the body of /generate."""
    answer.own_ending = True
    choice = answer.choice()
    token, text, details = doc.get("token"), doc.get("generated_text"), doc.get("details")
    if not isinstance(token, dict):
        answer.write(choice, text)
    elif token.get("special") is not True:
        answer.write(choice, token.get("text"))
    if isinstance(details, dict):
        answer.finish(choice, details.get("finish_reason"))
        answer.report(tgi_usage(details))
    if text is None and not isinstance(details, dict):
        return _ORDINARY
    answer.terminal = True
    return Mark.TERMINAL


def _audio(answer: Answer, doc: Doc) -> Mark:
    """Events of streamed transcription and speech. The text of a transcription comes in deltas, and again at the end."""
    answer.own_ending = True
    kind = doc["type"]
    answer.report(usage_of(doc.get("usage")))
    if kind.startswith("transcript."):
        choice = answer.choice(finishes=False)
        if kind.endswith(".delta"):
            answer.write(choice, doc.get("delta"))
        elif not choice.text.tell():
            answer.write(choice, doc.get("text"))
    if not kind.endswith(".done"):
        return _ORDINARY
    answer.terminal = True
    return Mark.TERMINAL


def _image(answer: Answer, doc: Doc) -> Mark:
    """A streamed image is done; another may follow, so nothing is terminal here."""
    answer.own_ending = answer.terminal = True
    answer.report(usage_of(doc.get("usage")))
    return _ORDINARY


_BY_TYPE = {
    **dict.fromkeys(("message", "message_start", "message_delta", "message_stop"), _anthropic),
    **dict.fromkeys(("content_block_start", "content_block_delta", "content_block_stop"), _anthropic),
    **dict.fromkeys(("transcript.text.delta", "transcript.text.done", "speech.audio.done"), _audio),
    **dict.fromkeys(("image_generation.completed", "image_edit.completed"), _image),
}


def _text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _decode_large(body: bytes | bytearray) -> object:
    """A large body with only the members that matter decoded: vectors and images are skipped at a gigabyte a second."""
    try:
        members = _decode_members(body)
    except (ValueError, RecursionError):
        return decode(body)
    doc = {}
    for name, value in members.items():
        if name in _MEMBERS:
            doc[name] = decode(bytes(value))
    return doc
