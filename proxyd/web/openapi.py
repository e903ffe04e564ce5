"""The OpenAPI document of the clients' port and the page that shows it, both made from the one table of endpoints.

Every row of the table is in the document. What DETAILS does not know is told by what the table says of it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from typing import TYPE_CHECKING, Any

import proxyd
from proxyd.errors import TABLE
from proxyd.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxyd.web.app import Row

Json = dict[str, Any]

OPEN = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""What needs no key."""
_NAMES = {"/v1/models/": "model", "/v1/streams/": "id", "/v1/conversations/": "id"}
"""What the rest of a path is called, by its beginning."""
_ARGUMENTS = {
    "/v1/models/": "May hold slashes.",
    "/v1/streams/": "The X-Request-Id, or the Idempotency-Key it was begun with.",
    "/v1/conversations/": "The `conversation_id`.",
}
_ID = {"name": "X-Request-Id", "description": "proxyd's own id of the exchange: what its log, its ledger and resuming know it by"}


def _object(about: str, required: Iterable[str] = (), **members: Json) -> Json:
    found: Json = {"type": "object", "description": about, "properties": members, "additionalProperties": True}
    return {**found, "required": list(required)} if required else found


def _text(about: str, **more: object) -> Json:
    return {"type": "string", "description": about, **more}


def _flag(about: str) -> Json:
    return {"type": "boolean", "description": about}


def _whole(about: str, **more: object) -> Json:
    return {"type": "integer", "description": about, **more}


def _list(about: str, items: Json) -> Json:
    return {"type": "array", "description": about, "items": items}


_MODEL = _text("A name of the route table: see GET /v1/models.", examples=["fast"])
_STREAM = _flag("Answer as server-sent events, as they are made.")
_OPTIONS = _object("For streams.", include_usage=_flag("End the stream with an event that tells the tokens used."))
_MESSAGE = _object(
    "One message.",
    ["role"],
    role=_text("Who says it.", enum=["system", "developer", "user", "assistant", "tool"]),
    content={"description": "What is said: text, or a list of parts.", "anyOf": [{"type": "string"}, _list("Parts.", {"type": "object"})]},
)
_USAGE = _object(
    "Tokens, as the upstream reported them.",
    prompt_tokens=_whole("Of the question."),
    completion_tokens=_whole("Of the answer."),
    total_tokens=_whole("Of both."),
)

SCHEMAS: dict[str, Json] = {
    "ChatRequest": _object(
        "OpenAI's chat completion. Members that are not listed here are passed on as they are.",
        ["messages"],
        model=_MODEL,
        messages=_list("The conversation so far.", _MESSAGE),
        stream=_STREAM,
        stream_options=_OPTIONS,
        max_completion_tokens=_whole("The longest answer, in tokens.", minimum=1),
        temperature={"type": "number", "description": "0 for the likeliest words, more for others."},
        n=_whole("Answers to the same question.", minimum=1),
        tools=_list("Functions that the model may call.", {"type": "object"}),
    ),
    "CompletionRequest": _object(
        "OpenAI's text completion. Members that are not listed here are passed on as they are.",
        ["prompt"],
        model=_MODEL,
        prompt={
            "description": "The text to go on with, or a list of texts.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {}}],
        },
        stream=_STREAM,
        stream_options=_OPTIONS,
        max_tokens=_whole("The longest answer, in tokens.", minimum=1),
    ),
    "EmbeddingRequest": _object(
        "OpenAI's embeddings. Members that are not listed here are passed on as they are.",
        ["input"],
        model=_MODEL,
        input={"description": "A text, or a list of texts.", "anyOf": [{"type": "string"}, {"type": "array", "items": {}}]},
        encoding_format=_text("How a vector is written.", enum=["float", "base64"]),
    ),
    "ModelRequest": _object("The upstream's own request. Members are passed on as they are.", model=_MODEL),
    "Answer": _object(
        "What the upstream answered, byte for byte.", id=_text("Its id there."), model=_text("The model there."), usage=_USAGE
    ),
    "Model": _object("A model.", ["id"], id=_text("Its name."), created=_whole("Seconds since the epoch."), owned_by=_text("proxyd.")),
    "ModelList": _object("The models that the caller may use.", data=_list("Each one.", {"$ref": "#/components/schemas/Model"})),
    "Status": _object("How proxyd is.", ["status"], status=_text("In a word."), reasons=_list("Why not, if not.", {"type": "string"})),
    "Stopped": _object("A stream that was stopped.", id=_text("Its request id."), stopped=_flag("It is.")),
    "Error": _object(
        "What went wrong, as OpenAI shapes it.",
        ["error"],
        error=_object(
            "The error.",
            ["message", "type", "param", "code"],
            message=_text("For people."),
            type=_text("A class of errors.", examples=sorted({verdict.type for verdict in TABLE.values()})),
            param={"type": ["string", "null"], "description": "The member of the request that it is about."},
            code={
                "type": ["string", "null"],
                "description": "For programs. proxyd's own codes are the examples.",
                "examples": sorted(TABLE),
            },
        ),
    ),
}

_KEY_ONCE: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "1 to 255 printable characters. The same request under the same key runs once, is billed once, and can be resumed.",
    "schema": {"type": "string", "maxLength": 255},
}
_RECEIVED: Json = {
    "name": "received",
    "in": "query",
    "description": "How many events have arrived: what follows them is sent.",
    "schema": {"type": "integer", "minimum": 0, "default": 0},
}
_INCLUDE_USAGE: Json = {
    "name": "include_usage",
    "in": "query",
    "description": "Whether server-sent events have the one that tells the tokens used; absent: as the stream was begun.",
    "schema": {"type": "boolean"},
}
_BY: Json = {
    "name": "by",
    "in": "query",
    "description": "A line for each model, day (UTC) or conversation.",
    "schema": {"type": "string", "enum": ["model", "day", "conversation"], "default": "model"},
}
_SINCE: Json = {
    "name": "since",
    "in": "query",
    "description": "90m, 24h, 7d or 2w before now, a day (UTC) as 2026-11-01, or all.",
    "schema": {"type": "string", "default": "30d"},
}

_CHAT = ("ChatCompletionRequest", "ChatCompletion", "ChatCompletionChunk")
_EMBEDDINGS = ("CreateEmbeddingsRequest", "CreateEmbeddingsResponse")
"""Messages of protos/proxyd/v1/chat.proto: request, whole answer, one frame of a streamed answer."""

DETAILS: dict[tuple[str, str], Json] = {
    ("POST", "/v1/chat/completions"): {"request": "ChatRequest", "answer": "Answer", "streams": True, "messages": _CHAT},
    ("POST", "/v1/chat/completions.pb"): {"messages": _CHAT, "streams": True},
    ("POST", "/v1/completions"): {"request": "CompletionRequest", "answer": "Answer", "streams": True},
    ("POST", "/v1/embeddings"): {"request": "EmbeddingRequest", "answer": "Answer", "messages": _EMBEDDINGS},
    ("POST", "/v1/embeddings.pb"): {"messages": _EMBEDDINGS},
    ("POST", "/v1/conversations"): {"parameters": [_KEY_ONCE]},
    ("GET", "/v1/models"): {"answer": "ModelList", "messages": ("", "ListModelsResponse")},
    ("GET", "/v1/models.pb"): {"messages": ("", "ListModelsResponse")},
    ("GET", "/v1/models/"): {"answer": "Model", "messages": ("", "Model")},
    ("GET", "/v1/streams/"): {"parameters": [_RECEIVED, _INCLUDE_USAGE], "streams": True, "messages": ("", "Error", "ChatCompletionChunk")},
    ("DELETE", "/v1/streams/"): {"answer": "Stopped", "messages": ("", "DeleteChatCompletionResponse")},
    ("GET", "/v1/usage"): {"parameters": [_BY, _SINCE]},
    ("GET", "/health"): {"answer": "Status"},
    ("GET", "/ready"): {"answer": "Status", "also": {"503": "it may not; `reasons` says why"}},
    ("GET", "/docs"): {"media": "text/html"},
}
"""What the table of endpoints does not tell of a row: names of SCHEMAS, more parameters, whether the answer may be a stream."""


def document(rows: Iterable[Row]) -> Json:
    """Make the OpenAPI 3.1 document of a table of endpoints."""
    paths: dict[str, Json] = {}
    for row in rows:
        paths.setdefault(_path(row), {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "proxyd",
            "version": proxyd.__version__,
            "summary": "The LLM gateway you run like nginx",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
    }


def page() -> tuple[bytes, bytes]:
    """The page that shows the document, and the Content-Security-Policy that lets it do just that and nothing else."""
    text = importlib.resources.files("proxyd.web").joinpath("docs.html").read_bytes()
    script, style = (_digest(text, tag) for tag in (b"script", b"style"))
    rules = (
        *("default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        *(f"script-src '{script}'", f"style-src '{style}'"),
    )
    return text, "; ".join(rules).encode()


def _digest(text: bytes, tag: bytes) -> str:
    """The one inline element of that name, as a policy names it (CSP 3, 6.7.3.3)."""
    found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), text, re.DOTALL)
    (only,) = found
    return "sha256-" + base64.b64encode(hashlib.sha256(only).digest()).decode()


def _path(row: Row) -> str:
    return f"{row.path}{{{_argument(row)}}}" if row.path.endswith("/") else row.path


def _argument(row: Row) -> str:
    return _NAMES.get(row.path, "name")


def _operation(row: Row) -> Json:
    details = DETAILS.get((row.method, row.path), {})
    relayed = isinstance(row.serve, Endpoint)
    parameters = list(details.get("parameters", []))
    if row.path.endswith("/"):
        about = _ARGUMENTS.get(row.path, "")
        schema = {"type": "string"}
        parameters.insert(0, {"name": _argument(row), "in": "path", "required": True, "description": about, "schema": schema})
    if relayed:
        parameters.append(_KEY_ONCE)
    found: Json = {
        "operationId": "_".join([row.method.lower(), *re.findall(r"[A-Za-z0-9]+", _path(row))]),
        "summary": row.about,
        "tags": [_tag(row.path)],
        **({"parameters": parameters} if parameters else {}),
        "responses": _responses(row, details),
    }
    if content := _request(row, details):
        found["requestBody"] = {"required": True, "content": content}
    if row.path in OPEN:
        found["security"] = []
    return found


def _request(row: Row, details: Json) -> Json:
    """What may be sent, by its media type; empty where nothing is."""
    name = details.get("request", "ModelRequest" if isinstance(row.serve, Endpoint) and not row.path.endswith(".pb") else None)
    content: Json = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}} if name else {}
    if isinstance(row.serve, Endpoint) and row.protobuf:
        content["application/protobuf"] = _message(details.get("messages", ("a message",))[0])
    return content


def _message(name: str) -> Json:
    return {"schema": {"type": "string", "format": "binary", "description": f"proxyd.v1.{name} (protos/proxyd/v1/chat.proto)"}}


def _responses(row: Row, details: Json) -> Json:
    name, media = details.get("answer"), details.get("media", "application/json")
    content: Json = {} if row.path.endswith(".pb") else {media: {"schema": {"$ref": f"#/components/schemas/{name}"}} if name else {}}
    if details.get("streams") and not row.path.endswith(".pb"):
        content["text/event-stream"] = {"schema": _text("Events `data: {…}`, and `data: [DONE]` at the end of a whole answer only.")}
    if row.protobuf:
        _, *messages = details.get("messages", ("", "a message"))
        content["application/protobuf"] = _message(messages[0])
        if messages[1:]:
            content["application/protobuf; delimited=true"] = _message(messages[1])
    header = {_ID["name"]: {"description": _ID["description"], "schema": {"type": "string"}}}
    error = {"$ref": "#/components/schemas/Error"}
    found = {"200": {"description": row.about, "headers": header, "content": content}}
    for status, about in details.get("also", {}).items():
        found[status] = {"description": about, "content": content}
    return {**found, "default": {"description": "an error", "headers": header, "content": {"application/json": {"schema": error}}}}


def _tag(path: str) -> str:
    """What a path is about: its first word behind the version."""
    return (
        next((part.removesuffix(".pb") for part in path.split("/") if part and not re.fullmatch(r"v\d+", part)), path)
        if path not in OPEN
        else "proxyd"
    )
