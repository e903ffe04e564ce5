"""The clients' port: one table of endpoints, and the way from a request to the one that serves it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote

from proxyd.errors import ProxyError
from proxyd.flow import handler
from proxyd.model import Endpoint
from proxyd.rules import cors
from proxyd.web import conversations, models, openapi, rpc, streams, usage
from proxyd.web.document import tell
from proxyd.web.downstream import Downstream
from proxyd.web.protobuf import Protobuf, Write, as_chat, as_embeddings, as_models, as_nothing
from proxyd.wire.negotiate import answer, negotiate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from proxyd.flow.runtime import Runtime
    from proxyd.web.connection import Sent

# RFC 9110 7.2 and 4.2: a host name, an IPv4 address or a bracketed IPv6 one, and perhaps a port. aiohttp lets spaces through.
_HOST = re.compile(r"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")

SUGGEST_LENGTH = 96
"""Characters of a path for which another one is suggested: a wrong path must not cost more than a right one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One endpoint: a method and a path (a path that ends in `/` takes the rest as its argument)."""

    method: str
    path: str
    serve: Callable[[Runtime, Downstream, str], Awaitable[None] | None] | Endpoint
    """A relayed Endpoint, or a function of (runtime, client's side, argument) that answers by itself."""
    about: str
    write: Callable[[Mapping[str, str]], Write] | None = None
    """It speaks protobuf, too (a path that ends in `.pb` by default): what writes its whole answers, for a query."""

    @property
    def protobuf(self) -> bool:
        """It speaks protobuf, too."""
        return self.write is not None


def health(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Say that the process is alive and how its configuration is; what is wrong with it is for the operator alone."""
    reloaded = runtime.reloaded
    message = "in effect" if reloaded is None or reloaded.ok else "not taken: the file has mistakes, and the earlier one stays"
    tell(down, {"status": "ok", "config": loading(runtime, message)})


def loading(runtime: Runtime, message: str) -> dict[str, object]:
    """How the configuration came to be what it is."""
    reloaded = runtime.reloaded
    last = None if reloaded is None else {"at": moment(reloaded.at_us), "ok": reloaded.ok, "message": message}
    return {"loaded_at": moment(runtime.loaded_at), "last_reload": last}


def moment(at_us: int) -> str:
    """A wall time as RFC 3339 writes it, in whole seconds."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ready(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Say whether traffic may come: the ledger can be written, required models have upstreams, and no shutdown is under way."""
    answer_ready(down, runtime.unready(names=False))


def answer_ready(down: Downstream, reasons: list[str]) -> None:
    """Answer by what speaks against it."""
    document = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
    tell(down, document, status=503 if reasons else 200)


def described(_runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Describe these endpoints to programs."""
    tell(down, openapi.document(ENDPOINTS), (b"Cache-Control", b"no-cache"))


def docs(_runtime: Runtime, down: Downstream, _argument: str) -> None:
    """Show these endpoints to people, in one page that needs nothing from elsewhere."""
    text, policy = openapi.page()
    headers = [(b"Content-Type", b"text/html; charset=utf-8"), (b"Content-Security-Policy", policy), (b"Cache-Control", b"no-cache")]
    down.reply(200, [*headers, (b"X-Content-Type-Options", b"nosniff"), (b"Referrer-Policy", b"no-referrer")], text)


ENDPOINTS: tuple[Row, ...] = (
    Row("POST", "/v1/chat/completions", Endpoint.CHAT, "chat, streamed or not", as_chat),
    Row("POST", "/v1/chat/completions.pb", Endpoint.CHAT, "the same, protobuf in and out", as_chat),
    Row("POST", "/v1/completions", Endpoint.COMPLETIONS, "text completion, streamed or not"),
    Row("POST", "/v1/embeddings", Endpoint.EMBEDDINGS, "vectors", as_embeddings),
    Row("POST", "/v1/embeddings.pb", Endpoint.EMBEDDINGS, "the same, protobuf in and out", as_embeddings),
    Row("GET", "/v1/models", models.listed, "the models that the caller may use", as_models),
    Row("GET", "/v1/models.pb", models.listed, "the same, in protobuf", as_models),
    Row("GET", "/v1/models/", models.one, "one model", as_models),
    Row("GET", "/v1/streams/", streams.resume, "go on with a resumable stream behind its first `received` events", as_nothing),
    Row("DELETE", "/v1/streams/", streams.stop, "stop a resumable stream", as_nothing),
    Row("POST", "/v1/conversations", conversations.begin, "begin a conversation that is remembered here"),
    Row("GET", "/v1/conversations", conversations.listed, "the caller's conversations, the last used first"),
    Row("GET", "/v1/conversations/", conversations.one, "a conversation and its messages; `ID/export` or `export` as a file"),
    Row("DELETE", "/v1/conversations/", conversations.delete, "forget a conversation"),
    *(Row(method, path, serve, (serve.__doc__ or "").split("\n")[0]) for method, path, serve in rpc.METHODS),
    Row("GET", "/v1/usage", usage.used, "what the caller has used, and what it cost"),
    Row("GET", "/health", health, "alive; no key needed"),
    Row("GET", "/ready", ready, "may take traffic; no key needed"),
    Row("GET", "/docs", docs, "these endpoints, for people; no key needed"),
    Row("GET", "/openapi.json", described, "these endpoints, for programs; no key needed"),
)


class App:
    """Serves the clients' port."""

    shares = True
    """Web pages may be let in, where the file says so."""
    elsewhere = "proxyd's endpoints begin with /v1/; /docs shows them all."
    """What is said to who asks for a path that is not there."""

    def __init__(self, runtime: Runtime, endpoints: tuple[Row, ...] = ENDPOINTS) -> None:
        self._runtime = runtime
        self._exact = {(row.method, row.path): row for row in endpoints if not row.path.endswith("/")}
        self._below = [row for row in endpoints if row.path.endswith("/")]

    def new_id(self) -> str:
        """Make a request id."""
        return self._runtime.new_id()

    async def __call__(self, request: web.BaseRequest) -> Sent:
        """Serve one request. Raises nothing but cancellation: the client left."""
        down = Downstream(request, self._runtime.new_id(), self._runtime.clock)
        if self._runtime.stopping:
            down.last()
        try:
            self._sound(request, down)
            if self.shares and (config := self._runtime.snapshot.config.cors) is not None:
                down.shared = cors.shared(config, request.headers.get("Origin"))
                if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                    self._preflight(request, down)
                    return down.sent()
            row, argument = self._find("GET" if request.method == "HEAD" else request.method, request.rel_url.raw_path)
            self._agree(row, down)
            if isinstance(row.serve, Endpoint):
                await handler.handle(self._runtime, row.serve, down)
            else:
                waiting = row.serve(self._runtime, down, argument)
                if waiting is not None:
                    await waiting
        except ProxyError as error:
            if down.committed:
                down.abort()  # half a list: a broken answer must look broken
            else:
                down.refuse(error)
        except Exception:
            down.spoiled(ProxyError("internal", "proxyd failed to serve this request; its log says why."))
            raise  # whoever called logs it, and says it where nothing has been said yet
        finally:
            down.close()
        if self._runtime.stopping:
            down.last()
        return down.sent()

    def _preflight(self, request: web.BaseRequest, down: Downstream) -> None:
        """Tell a browser what its page may ask; no key comes with this question. Nothing is told to other pages."""
        headers: cors.Headers = []
        if any(name == b"Access-Control-Allow-Origin" for name, _ in down.shared):
            path = request.rel_url.raw_path
            headers = cors.preflight(self._methods(path), request.headers.get("Access-Control-Request-Headers"))
        down.reply(204, headers, b"")

    def _methods(self, path: str) -> list[str]:
        exact = [row.method for row in self._exact.values() if row.path == path]
        return exact + [row.method for row in self._below if path.startswith(row.path) and len(path) > len(row.path)]

    def _agree(self, row: Row, down: Downstream) -> None:
        """Agree on the forms of request and answer. Raises ProxyError unsupported_media_type, not_acceptable."""
        named_pb, speaks = row.path.endswith(".pb"), row.protobuf
        if not isinstance(row.serve, Endpoint):
            if speaks and answer(down.accept, speaks_protobuf=True, otherwise=named_pb):
                down.encoder = self._protobuf(row, down)
            return
        if named_pb or (speaks and "protobuf" in (down.kind or "")):
            down.encoder = self._protobuf(row, down)  # a refusal to agree, too, is said in the form that came
        forms = negotiate(down.kind, down.accept, speaks_protobuf=speaks, named_pb=named_pb)
        down.binary = forms.asked
        if not forms.answered:
            down.encoder = None
        elif down.encoder is None:
            down.encoder = self._protobuf(row, down)

    def _protobuf(self, row: Row, down: Downstream) -> Protobuf:
        assert row.write is not None  # noqa: S101 - asked of rows that speak it
        return Protobuf(row.write(down.query), self._runtime.clock)

    def _sound(self, request: web.BaseRequest, down: Downstream) -> None:
        """Check the request; behind one that is not sound no other is read on its connection."""
        try:
            self.check(request)
        except ProxyError:
            down.last()
            raise

    def check(self, request: web.BaseRequest) -> None:
        """Refuse what the parser lets through (found by differential tests against nginx and HAProxy)."""
        if request.version not in {(1, 0), (1, 1)}:
            raise ProxyError("unsupported_http_version", "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        if not _HOST.fullmatch(request.headers.get("Host", "")):
            raise ProxyError("invalid_request", "The Host header is not a host name.")

    def _find(self, method: str, path: str) -> tuple[Row, str]:
        if (row := self._exact.get((method, path))) is not None:
            return row, ""
        for row in self._below:
            if path.startswith(row.path) and len(path) > len(row.path) and method == row.method:
                return row, unquote(path[len(row.path) :])
        allowed = self._methods(path)
        if allowed:
            allowed += ["HEAD"] if "GET" in allowed else []
            raise ProxyError("method_not_allowed", f"{path} takes {', '.join(allowed)}, not {method}.", allow=allowed)
        raise ProxyError("not_found", f"There is nothing at this path.{self._meant(method, path)} {self.elsewhere}")

    def _meant(self, method: str, path: str) -> str:
        """Guess which path was meant: `/v1` left out or said twice, a slash at its end, a letter that is wrong."""
        paths = {_tail(known): known for how, known in self._exact if how == method}
        near = difflib.get_close_matches(_tail(path), paths, n=1, cutoff=0.8) if len(path) <= SUGGEST_LENGTH else []
        return f" Did you mean {paths[near[0]]}?" if near else ""


def _tail(path: str) -> str:
    """What tells one path from another."""
    return path.rpartition("/v1/")[2].strip("/")
