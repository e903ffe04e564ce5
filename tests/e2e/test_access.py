"""Who may call, what is refused, and how a refusal reads."""

import asyncio
import contextlib
import gzip
import json
import re
import zlib

import brotli
import pytest

try:
    from compression import zstd
except ImportError:  # before Python 3.14
    from backports import zstd

from tests.e2e.client import Answer, Visit, ask, becomes, chat, request, send
from tests.e2e.conftest import at, rigged
from tests.origin import Ending, completion, whole
from tests.process import KEY, Child, Daemon

SQUEEZE = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstd.compress}
PATH = "/v1/chat/completions"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """Three callers, a route table with slashes, an alias and a pattern, and a small bound for bodies."""
    keys = [
        {"name": "tester", "key": KEY},
        {"name": "narrow", "key": "narrow-key-0123456789", "models": ["small", "org/*"]},
    ]
    config = {
        "models": {"small": "origin", "large": "origin", "org/name:tag": "origin", "hf/*": {"upstream": "origin", "strip_prefix": "hf/"}},
        "aliases": {"gpt-3.5-turbo": "small"},
        "auth": {"keys": keys},
        "limits": {"body": "1MiB", "header_timeout": "1s", "body_timeout": "1s"},
    }
    with rigged(tmp_path_factory.mktemp("access"), lambda origin: {"upstreams": {"origin": at(origin)}, **config}) as found:
        found.origin.on("*", whole(completion("hi")))
        yield found


def refused(answer: Answer, status: int, code: str) -> dict:
    assert (answer.status, answer.error()["code"]) == (status, code), answer
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    return answer.error()


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer"},
        {"authorization": "Basic dGVzdGVyOng="},
        {"authorization": KEY},
        {"authorization": "Bearer " + KEY + "x"},
        {"authorization": "Bearer \xe9\xff"},
        {"x-api-key": "wrong"},
        {"api-key": ""},
        {"authorization": "Bearer " + "k" * 5000},
    ],
    ids=str,
)
async def test_without_a_known_key_it_is_401_and_the_key_is_not_echoed(rig, headers):
    answer = await send(rig.url, request("POST", PATH, json.dumps(chat("small")).encode(), {"authorization": "", **headers}))
    error = refused(answer, 401, "invalid_api_key")
    assert error["type"] == "invalid_request_error"
    assert "wrong" not in answer.body.decode()
    assert "kkkk" not in answer.body.decode()


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key", "api-key"])
async def test_a_key_is_taken_from_any_of_its_three_headers(rig, header):
    value = f"Bearer {KEY}" if header == "Authorization" else KEY
    answer = await send(rig.url, request("POST", PATH, json.dumps(chat("small")).encode(), {"authorization": "", header: value}))
    assert answer.status == 200


async def test_a_bearer_scheme_is_known_in_any_case(rig):
    """RFC 9110 11.1: the scheme is case-insensitive."""
    assert (await ask(rig.url, PATH, chat("small"), authorization=f"bearer {KEY}")).status == 200


async def test_two_different_credentials_are_refused(rig):
    answer = await ask(rig.url, PATH, chat("small"), x_api_key="narrow-key-0123456789")
    assert answer.status in (400, 401)
    answer.error()


@pytest.mark.parametrize(("model", "allowed"), [("small", True), ("org/name:tag", True), ("large", False), ("hf/x/y", False)])
async def test_a_key_may_use_its_own_models_only(rig, model, allowed):
    answer = await ask(rig.url, PATH, chat(model), authorization="Bearer narrow-key-0123456789")
    if allowed:
        assert answer.status == 200
    else:
        assert answer.status in (403, 404)
        assert answer.error()["code"] in ("model_not_allowed", "model_not_found")


async def test_a_caller_sees_its_own_models_only(rig):
    answer = await ask(rig.url, "/v1/models", method="GET", authorization="Bearer narrow-key-0123456789")
    assert "small" in [model["id"] for model in answer.json()["data"]]
    assert "large" not in [model["id"] for model in answer.json()["data"]]
    assert "large" not in (await ask(rig.url, PATH, chat("larg"), authorization="Bearer narrow-key-0123456789")).body.decode()
    hidden = await ask(rig.url, "/v1/models/large", method="GET", authorization="Bearer narrow-key-0123456789")
    assert hidden.status in (403, 404)


async def test_the_caller_is_in_the_ledger(rig):
    await ask(rig.url, PATH, chat("org/name:tag"), authorization="Bearer narrow-key-0123456789")
    assert rig.daemon.settled("org/name:tag")[-1]["caller"] == "narrow"


# Models


async def test_an_unknown_model_is_404_and_the_nearest_one_is_named(rig):
    error = refused(await ask(rig.url, PATH, chat("smal")), 404, "model_not_found")
    assert "small" in error["message"]
    assert error["param"] == "model"


async def test_models_are_listed_as_openai_does(rig):
    answer = await ask(rig.url, "/v1/models", method="GET")
    document = answer.json()
    assert (answer.status, document["object"]) == (200, "list")
    assert [model["id"] for model in document["data"]] == ["small", "large", "org/name:tag", "gpt-3.5-turbo"]
    assert all(model["object"] == "model" and isinstance(model["created"], int) and model["owned_by"] for model in document["data"])


@pytest.mark.parametrize("path", ["small", "gpt-3.5-turbo", "org/name:tag", "org%2Fname%3Atag", "org%2Fname:tag"])
async def test_one_model_is_found_with_slashes_raw_or_encoded(rig, path):
    answer = await ask(rig.url, "/v1/models/" + path, method="GET")
    assert (answer.status, answer.json()["object"]) == (200, "model")
    assert answer.json()["id"] == path.replace("%2F", "/").replace("%3A", ":")


async def test_a_model_that_is_not_there_is_404(rig):
    refused(await ask(rig.url, "/v1/models/nope", method="GET"), 404, "model_not_found")


async def test_the_model_list_needs_a_key(rig):
    refused(await send(rig.url, request("GET", "/v1/models", headers={"authorization": ""})), 401, "invalid_api_key")


# Health


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_needs_no_key(rig, path):
    answer = await send(rig.url, request("GET", path, headers={"authorization": ""}))
    assert answer.status == 200
    assert answer.json()["status"]
    assert "127.0.0.1" not in answer.body.decode()


# Paths and methods


async def test_an_unknown_path_is_404(rig):
    refused(await ask(rig.url, "/v1/nothing", chat("small")), 404, "not_found")
    refused(await ask(rig.url, "/", method="GET"), 404, "not_found")
    refused(await ask(rig.url, "/v1/models/", method="GET"), 404, "not_found")  # the name of no model


@pytest.mark.parametrize("path", [PATH + "/", "/v1" + PATH, "/chat/completions", "/v1/chat/completion"])
async def test_a_path_that_is_nearly_right_is_told_the_right_one(rig, path):
    assert f"Did you mean {PATH}?" in refused(await ask(rig.url, path, chat("small")), 404, "not_found")["message"]
    assert "Did you mean" not in refused(await ask(rig.url, path, method="DELETE"), 404, "not_found")["message"]


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/responses", "/v1/images/generations", "/v1/messages"])
async def test_what_is_not_built_is_not_taken_for_another_path(rig, path):
    assert "Did you mean" not in refused(await ask(rig.url, path, {}), 404, "not_found")["message"]


async def test_a_wrong_method_is_405_and_the_right_one_is_named(rig):
    answer = await ask(rig.url, PATH, method="GET")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert (await ask(rig.url, "/health", b"{}")).headers["allow"] == "GET, HEAD"


async def test_the_head_method_has_no_body(rig):
    visit = await Visit.open(rig.url)
    await visit.say(request("HEAD", "/health") + request("GET", "/health"))
    first = await visit.head()
    assert first.status == 200
    visit._left = 0
    assert (await visit.head()).status == 200
    assert (await visit.rest()).json()["status"]
    await visit.leave()


# Bodies

BAD = {
    "nothing": (b"", "invalid_json"),
    "half": (b'{"model":', "invalid_json"),
    "not-utf8": (b'{"model":"small","messages":[{"role":"user","content":"\xff"}]}', "invalid_json"),
    "a-list": (b"[]", "invalid_request"),
    "no-model": (b'{"messages":[]}', "invalid_request"),
    "empty-model": (b'{"model":"","messages":[]}', "invalid_request"),
    "number-model": (b'{"model":7,"messages":[]}', "invalid_request"),
    "long-model": (b'{"model":"' + b"x" * 300 + b'","messages":[]}', "invalid_request"),
    "newline-model": (b'{"model":"a\\nb","messages":[]}', "invalid_request"),
    "stream-word": (b'{"model":"small","stream":"yes","messages":[]}', "invalid_request"),
    "deep": (b'{"model":"small","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_body_that_cannot_be_understood_is_400(rig, name):
    body, code = BAD[name]
    answer = await ask(rig.url, PATH, body)
    assert answer.status == 400, answer
    assert answer.error()["code"] in ((code,) if code else ("invalid_json", "invalid_request"))


async def test_duplicate_members_cannot_route_one_way_and_run_another(rig):
    body = b'{"model":"small","messages":[],"model":"large"}'
    answer = await ask(rig.url, PATH, body)
    if answer.status == 200:
        sent = rig.origin.requests[-1]
        assert sent.body.count(b'"model"') == 1
        assert rig.daemon.rows()[-1]["model"] == sent.model
    else:
        assert answer.status == 400


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB])
async def test_a_body_over_the_bound_is_413(rig, size):
    head = {"content-length": str(size)}
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, b"", head))
    refused(await visit.rest(), 413, "body_too_large")
    await visit.leave()


async def test_a_chunked_body_is_taken_and_bounded_like_any_other(rig):
    body = json.dumps(chat("small")).encode()
    head = {"content-length": "", "transfer-encoding": "chunked"}
    framed = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert (await send(rig.url, request("POST", PATH, framed, head))).status == 200
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, b"100001\r\n" + b"x" * (MIB + 1), head))
    refused(await visit.rest(), 413, "body_too_large")
    await visit.leave()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_compressed_body_is_read_and_its_size_bounded_while_decoding(rig, coding):
    """Codex compresses its requests; a bomb of a kilobyte must not become a gigabyte."""
    body = SQUEEZE[coding](json.dumps(chat("small")).encode())
    answer = await ask(rig.url, PATH, body, content_encoding=coding)
    assert answer.status == 200
    assert rig.origin.requests[-1].header("content-encoding") is None
    bomb = SQUEEZE[coding](b'{"model":"small","x":"' + b"a" * 64 * MIB + b'"}')
    refused(await ask(rig.url, PATH, bomb, content_encoding=coding), 413, "body_too_large")
    for broken in (body[:-5], body + b"more"):
        refused(await ask(rig.url, PATH, broken, content_encoding=coding), 400, "invalid_request")


async def test_a_form_is_not_json(rig):
    """Also a guard against forms of other sites: a browser sends these without asking first."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
        refused(await ask(rig.url, PATH, b'{"model":"small"}', content_type=kind), 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["", "application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"])
async def test_json_is_known_by_any_of_its_names(rig, kind):
    assert (await ask(rig.url, PATH, chat("small"), content_type=kind)).status == 200


async def test_a_client_that_waits_for_leave_to_send_its_body_is_told_to(rig):
    body = json.dumps(chat("small")).encode()
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, b"", {"content-length": str(len(body)), "expect": "100-continue"}))
    line = await visit._reader.readuntil(b"\r\n\r\n")
    assert line.startswith(b"HTTP/1.1 100")
    await visit.say(body)
    assert (await visit.rest()).status == 200
    assert rig.origin.requests[-1].header("expect") is None
    await visit.leave()


# Hostile HTTP

SMUGGLING = {
    "both-lengths": request("POST", PATH, b"0\r\n\r\n", {"transfer-encoding": "chunked"}),
    "two-content-lengths": request("POST", PATH, b"{}").replace(b"content-length: 2", b"content-length: 2\r\ncontent-length: 3"),
    "obs-fold": request("POST", PATH, b"{}", {"x-a": "b\r\n c"}),
    "bare-lf": request("POST", PATH, b"{}", {"x-a": "b\nx-c: d"}),
    "bare-cr": request("POST", PATH, b"{}", {"x-a": "b\rx-c: d"}),
    "nul": request("POST", PATH, b"{}", {"x-a": "b\x00c"}),
    "space-before-colon": request("POST", PATH, b"{}", {"x-a ": "b"}),
    "bad-length": request("POST", PATH, b"{}", {"content-length": "+2"}),
    "bad-chunk": request("POST", PATH, b"zz\r\n{}\r\n0\r\n\r\n", {"content-length": "", "transfer-encoding": "chunked"}),
    "odd-coding": request("POST", PATH, b"2\r\n{}\r\n0\r\n\r\n", {"content-length": "", "transfer-encoding": "xchunked"}),
    "no-host": request("POST", PATH, b"{}", {"host": ""}),
    "two-hosts": request("POST", PATH, b"{}").replace(b"host: localhost", b"host: localhost\r\nhost: other"),
    "not-http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "huge-header": request("POST", PATH, b"{}", {"x-a": "b" * 100_000}),
    "many-headers": request("POST", PATH, b"{}", {f"x-{n}": "b" * 100 for n in range(5000)}),
    "long-target": request("POST", PATH + "?" + "q" * 100_000, b"{}"),
}


@pytest.mark.parametrize("name", SMUGGLING)
async def test_an_ambiguous_or_oversized_request_is_refused_and_the_connection_closed(rig, name):
    """RFC 9112 11.2: what two readers could read in two ways reaches nobody."""
    count = len(rig.origin.requests)
    visit = await Visit.open(rig.url)
    try:
        await visit.say(SMUGGLING[name])
        answer = await visit.rest()
        assert answer.status in (400, 413, 414, 431), answer
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.error()["type"] == "invalid_request_error"
        await visit.closed_by_peer()
    except (ConnectionError, EOFError):
        assert name in ("not-http", "huge-header", "many-headers", "long-target")  # closing without a word is right, too
    finally:
        await visit.leave()
    assert len(rig.origin.requests) == count
    assert (await ask(rig.url, PATH, chat("small"))).status == 200


@pytest.mark.parametrize("sent", [b"POST /v1/chat", request("POST", PATH, b'{"mod', {"content-length": "500"})], ids=["head", "body"])
async def test_a_client_that_never_finishes_its_request_is_told_so_and_let_go(rig, sent):
    """Slowloris: a head or a body that does not come is waited for, but not for ever."""
    visit = await Visit.open(rig.url)
    await visit.say(sent)
    answer = await visit.rest()
    assert (answer.status, answer.error()["code"], answer.headers["connection"]) == (408, "request_timeout", "close")
    await visit.closed_by_peer()
    await visit.leave()


async def test_who_was_answered_before_its_body_came_gets_no_second_answer(rig):
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, b"{", {"authorization": "", "content-length": "500"}))
    assert (await visit.rest()).status == 401
    more = bytearray()

    async def listen() -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await visit._reader.read(65536):
                more.extend(piece)

    listening = asyncio.create_task(listen())
    while not listening.done():
        with contextlib.suppress(ConnectionError):
            await visit.say(b" ")
        await asyncio.sleep(0.1)
    assert more == b""
    await visit.leave()


async def test_a_kept_connection_that_asks_no_more_ends_without_a_word(rig):
    visit = await Visit.open(rig.url)
    await visit.say(request("GET", "/health"))
    assert (await visit.rest()).status == 200
    visit.answer, visit._left = None, None
    with pytest.raises(asyncio.IncompleteReadError) as ended:
        await visit.head()
    assert ended.value.partial == b""
    await visit.leave()


@pytest.mark.parametrize(
    "own", [{"x-long": "a" * 9000}, {f"x-{number}": "a" for number in range(200)}, {"authorization": f"Bearer {'a' * 20000}"}]
)
async def test_a_head_that_is_too_long_is_told_so(rig, own):
    """A token of some issuers is longer than that: who sends it must not search the fault in HTTP."""
    answer = await send(rig.url, request("GET", "/v1/models", headers=own))
    assert (answer.status, answer.error()["code"]) == (431, "headers_too_large")


async def test_beyond_its_connections_an_address_is_told_so(launch, origin):
    daemon = launch(upstreams={"origin": at(origin)}, models={"*": "origin"}, limits={"connections_per_address": 2})
    visits = [await Visit.open(daemon.url) for _ in range(3)]
    await visits[2].say(request("GET", "/v1/models"))  # which nobody reads: that must not cost it the answer
    answer = await visits[2].rest()
    assert (answer.status, answer.error()["code"], answer.headers["retry-after"]) == (429, "too_many_connections", "1")
    assert answer.headers["x-request-id"].startswith("req_")
    await visits[0].leave()
    await becomes(lambda: any("too many connections" in line for line in daemon.child.lines))
    for visit in visits[1:]:
        await visit.leave()
    assert (await ask(daemon.url, "/health", method="GET")).status == 200


async def test_two_requests_in_one_packet_get_two_answers_in_order(rig):
    visit = await Visit.open(rig.url)
    await visit.say(request("GET", "/v1/models/small") + request("GET", "/v1/models/large"))
    assert (await visit.rest()).json()["id"] == "small"
    visit.answer = None
    assert (await visit.rest()).json()["id"] == "large"
    await visit.leave()


# The operator's port


async def test_the_ops_port_answers_no_clients_and_checks_host(rig):
    ops = rig.daemon.ops
    assert (await ask(ops, "/health", method="GET")).status == 200
    assert (await ask(ops, PATH, chat("small"))).status == 404
    for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert (await ask(ops, "/health", method="GET", host=name)).status in (400, 403, 421)
    port = ops.rpartition(":")[2]
    assert (await ask(ops, "/health", method="GET", host=f"localhost:{port}")).status == 200
    assert (await ask(ops, "/health", method="GET", host=f"127.0.0.1:{port}")).status == 200


# Starting

UPSTREAM = {"upstreams": {"e": {"kind": "echo"}}, "models": {"echo": "e"}, "listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}}
REFUSED = {
    "production-without-keys": {"environment": "production"},
    "production-with-a-short-key": {"environment": "production", "auth": {"keys": [{"name": "a", "key": "short"}]}},
    "staging-without-keys": {"environment": "staging"},
    "open-to-all": {"listen": "0.0.0.0:0", "environment": "development"},
    "open-to-all-v6": {"listen": "[::]:0", "environment": "development"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsafe_configuration_does_not_start(tmp_path, name):
    daemon = Daemon(tmp_path, {**UPSTREAM, **REFUSED[name]})
    child = Child(["serve", "-c", str(daemon.file)], tmp_path)
    try:
        assert child.wait() == 1
        assert "Traceback" not in child.log
        assert child.log.strip()
        assert "short" not in child.log.replace("shorter", "")
    finally:
        child.end()


def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path):
    daemon = Daemon(tmp_path, "upstreams:\n  e: {kind: echo}\nmodels:\n  echo: e\nlisten: 127.0.0.1:0\nlimit: {}\n")
    child = Child(["serve", "-c", str(daemon.file)], tmp_path)
    try:
        assert child.wait() == 1
        assert re.search(r"config\.yaml:6:1: .*limits", child.log), child.log
    finally:
        child.end()


async def test_development_prints_a_key_of_its_own_that_works(tmp_path):
    daemon = Daemon(tmp_path, {**UPSTREAM, "environment": "development"}).start()
    try:
        assert daemon.child is not None
        key = daemon.child.expect(re.compile(r"\bdev_[A-Za-z0-9]{16,}"))[0]
        assert (await ask(daemon.url, PATH, chat("echo"), authorization=f"Bearer {key}")).status == 200
        refused(await ask(daemon.url, PATH, chat("echo"), authorization="Bearer dev_wrong"), 401, "invalid_api_key")
        daemon.stop()
    finally:
        daemon.child.end()


async def test_auth_none_lets_everybody_in(tmp_path):
    daemon = Daemon(tmp_path, {**UPSTREAM, "environment": "development", "auth": "none"}).start()
    try:
        assert (await ask(daemon.url, PATH, chat("echo"), authorization="")).status == 200
        daemon.stop()
    finally:
        assert daemon.child is not None
        daemon.child.end()


def test_a_port_that_is_taken_is_told(tmp_path, rig):
    port = rig.url.rpartition(":")[2]
    daemon = Daemon(tmp_path, {**UPSTREAM, "listen": f"127.0.0.1:{port}"})
    child = Child(["serve", "-c", str(daemon.file)], tmp_path)
    try:
        assert child.wait() == 1
        assert port in child.log
        assert "Traceback" not in child.log
    finally:
        child.end()


async def test_secrets_are_in_no_log(launch, origin):
    """Neither keys nor prompts nor answers, also when everything goes wrong."""
    daemon = launch(
        upstreams={"origin": {"kind": "openai", "base_url": origin.url, "api_key": "upstream-secret-77"}}, models={"*": "origin"}
    )
    origin.on("bad", [Ending.CLOSE])
    origin.on("auth", whole(b'{"error":{"message":"Incorrect API key provided: upstream-secret-77"}}', status=401))
    origin.on("fine", whole(completion("the planted answer")))
    for model in ("bad", "auth", "fine"):
        body = {"model": model, "messages": [{"role": "user", "content": "the planted prompt"}]}
        await ask(daemon.url, PATH, body)
        await ask(daemon.url, PATH, body, authorization="Bearer planted-wrong-key")
    daemon.stop()
    assert daemon.log
    for secret in ("upstream-secret-77", KEY, "planted"):
        assert secret not in daemon.log
