"""What differs between kinds of upstream: where an endpoint lives, how the credential travels, what may be asked.

A table, one row a kind; sources are the providers' own documents (see each row).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from proxyd.config.schema import Kind
from proxyd.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyd.config.schema import Upstream

_TAIL = {Endpoint.CHAT: "/chat/completions", Endpoint.COMPLETIONS: "/completions", Endpoint.EMBEDDINGS: "/embeddings"}


@dataclass(frozen=True, slots=True)
class Traits:
    """A row of the table."""

    base_url: str | None
    """Where it is when the configuration does not say."""
    path: Callable[[Upstream, str, Endpoint, str], str]
    """(spec, path of the base URL, endpoint, model) → request target."""
    credential: Callable[[str], tuple[bytes, bytes]]
    """API key → the header that carries it."""
    include_usage: bool
    """Streams may be asked for their usage event."""
    rename_max_tokens: bool = False
    """It reads `max_tokens` only, and takes `max_completion_tokens` for no limit at all."""


def traits(spec: Upstream) -> Traits:
    """The row for an upstream."""
    return _TABLE[spec.kind]


def base_url(spec: Upstream) -> str:
    """Where the upstream is, without a slash at the end. Empty for kinds that are nowhere (echo)."""
    return (spec.base_url or _TABLE[spec.kind].base_url or "").rstrip("/")


def may_ask_usage(spec: Upstream) -> bool:
    """Whether `stream_options.include_usage` may be added: the configuration's word, else the kind's."""
    if spec.include_usage is not None:
        return spec.include_usage
    # Dated Azure APIs before 2024-09-01-preview refuse the field.
    if spec.kind is Kind.AZURE and spec.api_version is not None:
        return spec.api_version >= "2024-09-01"
    return _TABLE[spec.kind].include_usage


def _bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + key.encode()


def _api_key(key: str) -> tuple[bytes, bytes]:
    return b"api-key", key.encode()


def _openai_path(_spec: Upstream, base: str, endpoint: Endpoint, _model: str) -> str:
    return base + _TAIL[endpoint]


def _ollama_path(_spec: Upstream, base: str, endpoint: Endpoint, _model: str) -> str:
    """Ollama's OpenAI-compatible side is under /v1; people write its base URL with and without it."""
    return (base if base.endswith("/v1") else base + "/v1") + _TAIL[endpoint]


def _azure_path(spec: Upstream, base: str, endpoint: Endpoint, model: str) -> str:
    """Dated APIs name the deployment in the path and need `api-version`; the v1 API is OpenAI's own."""
    if spec.api_version is None:
        root = base if base.endswith("/openai/v1") else base + "/openai/v1"
        return root + _TAIL[endpoint]
    root = base if base.endswith("/openai") else base + "/openai"
    return f"{root}/deployments/{quote(model, safe='')}{_TAIL[endpoint]}?api-version={quote(spec.api_version, safe='')}"


_TABLE: dict[Kind, Traits] = {
    # anything that speaks like OpenAI: vLLM, llama.cpp, TGI, LM Studio, Groq, Mistral, …
    Kind.OPENAI: Traits(None, _openai_path, _bearer, include_usage=True),
    # learn.microsoft.com, "Azure OpenAI REST API reference"; the key travels in `api-key`
    Kind.AZURE: Traits(None, _azure_path, _api_key, include_usage=True),
    # ollama/ollama docs/openai.md; reads max_tokens only (openai/openai.go)
    Kind.OLLAMA: Traits("http://127.0.0.1:11434", _ollama_path, _bearer, include_usage=True, rename_max_tokens=True),
    # huggingface/hub-docs inference-providers: chat completions by router, model `org/name[:provider]`
    Kind.HUGGINGFACE: Traits("https://router.huggingface.co/v1", _openai_path, _bearer, include_usage=True),
    # embedded: proxyd answers itself
    Kind.ECHO: Traits("", _openai_path, _bearer, include_usage=True),
}


def base_path(url: str) -> str:
    """The path of a base URL, without a slash at the end."""
    return urlsplit(url).path.rstrip("/")


def models_path(spec: Upstream) -> str:
    """Where the upstream lists its models, as a request target. Not for kinds that are nowhere (echo)."""
    base = base_path(base_url(spec))
    if spec.kind is Kind.AZURE:
        root = base.removesuffix("/v1").removesuffix("/openai") + "/openai"
        return f"{root}/v1/models" if spec.api_version is None else f"{root}/models?api-version={quote(spec.api_version, safe='')}"
    return (base if spec.kind is not Kind.OLLAMA or base.endswith("/v1") else base + "/v1") + "/models"
