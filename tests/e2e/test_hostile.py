"""Hostile input at the clients' port and the operator's: refused in OpenAI's shape or closed, and nothing of it goes on.

The payloads follow what request smuggling is known to work with: two readers of one message must never differ.
"""

import asyncio
import json
import re
import socket

import pytest

from tests.e2e.client import Visit, ask, chat, request, send
from tests.e2e.conftest import at, rigged
from tests.origin import completion, whole
from tests.process import KEY

PATH = "/v1/chat/completions"
MIB = 1024 * 1024
HIDDEN = request("POST", PATH, json.dumps(chat("hidden")).encode())
CHAT = json.dumps(chat("small")).encode()


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """Two callers, short deadlines, and an origin that counts what reaches it."""
    config = {
        "models": {"*": {"upstream": "origin", "retry": {"attempts": 1}}},
        "auth": {"keys": [{"name": "tester", "key": KEY}, {"name": "other", "key": "other-key-0123456789"}]},
        "limits": {"body": "4MiB", "header_timeout": "1s", "body_timeout": "1s"},
    }
    with rigged(tmp_path_factory.mktemp("hostile"), lambda origin: {"upstreams": {"origin": at(origin)}, **config}) as found:
        found.origin.on("*", whole(completion("hi")))
        yield found


def chunked(*lines: bytes, more: bytes = b"") -> bytes:
    """A chunked chat whose chunks are written by hand, and perhaps a hidden request behind them."""
    return request("POST", PATH, b"".join(lines), {"content-length": "", "transfer-encoding": "chunked"}) + more


def header(line: bytes) -> bytes:
    """A chat with a line put into its head as it is."""
    head, _, body = request("POST", PATH, CHAT).partition(b"\r\n\r\n")
    return head + b"\r\n" + line + b"\r\n\r\n" + body


def first(line: bytes) -> bytes:
    """A chat with another request line."""
    return line + b"\r\n" + request("POST", PATH, CHAT).partition(b"\r\n")[2]


SIZE = b"%x" % len(CHAT)
ONE = SIZE + b"\r\n" + CHAT + b"\r\n"
SMUGGLED = {
    "te-then-cl": header(b"transfer-encoding: chunked"),
    "te-chunked-twice": header(b"transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
    "te-identity": header(b"transfer-encoding: identity"),
    "te-gzip": request("POST", PATH, ONE + b"0\r\n\r\n", {"content-length": "", "transfer-encoding": "gzip"}),
    "te-chunked-gzip": request("POST", PATH, ONE + b"0\r\n\r\n", {"content-length": "", "transfer-encoding": "chunked, gzip"}),
    "te-quoted": request("POST", PATH, ONE + b"0\r\n\r\n", {"content-length": "", "transfer-encoding": '"chunked"'}),
    "te-tab-before": request("POST", PATH, ONE + b"0\r\n\r\n", {"content-length": "", "transfer-encoding": "\x0bchunked"}),
    "te-kelvin": request("POST", PATH, ONE + b"0\r\n\r\n", {"content-length": "", "transfer-encoding": "chun\xe2\x84\xaaed"}),
    "te-space-name": header(b"transfer-encoding : chunked"),
    "cl-twice-equal-list": header(b"content-length: %d, %d" % (len(CHAT), len(CHAT))),
    "cl-plus": request("POST", PATH, CHAT, {"content-length": f"+{len(CHAT)}"}),
    "cl-hex": request("POST", PATH, CHAT, {"content-length": hex(len(CHAT))}),
    "cl-underscore": request("POST", PATH, CHAT, {"content-length": "1_0"}),
    "cl-huge": request("POST", PATH, CHAT, {"content-length": "9" * 40}),
    "cl-space": request("POST", PATH, CHAT, {"content-length": "1 0"}),
    "cl-other": header(b"content-length: 3"),
    "chunk-plus": chunked(b"+" + ONE, b"0\r\n\r\n"),
    "chunk-0x": chunked(b"0x" + ONE, b"0\r\n\r\n"),
    "chunk-minus": chunked(b"-1\r\n", ONE, b"0\r\n\r\n"),
    "chunk-underscore": chunked(b"1_0\r\n", ONE, b"0\r\n\r\n"),
    "chunk-space-before": chunked(b" " + ONE, b"0\r\n\r\n"),
    "chunk-overflow": chunked(b"ffffffffffffffffff\r\n" + CHAT, b"\r\n0\r\n\r\n"),
    "chunk-lf": chunked(SIZE + b"\n" + CHAT + b"\r\n", b"0\r\n\r\n"),
    "chunk-lf-behind": chunked(SIZE + b"\r\n" + CHAT + b"\n", b"0\r\n\r\n"),
    "chunk-last-lf": chunked(ONE, b"0\n\n", more=HIDDEN),
    "chunk-ext-lf": chunked(SIZE + b";x\ny\r\n" + CHAT + b"\r\n", b"0\r\n\r\n"),
    "chunk-longer": chunked(SIZE + b"\r\n" + CHAT + b"XX\r\n", b"0\r\n\r\n"),
    "chunk-cr-only": chunked(SIZE + b"\r" + CHAT + b"\r\n", b"0\r\n\r\n"),
    "trailer-lf": chunked(ONE, b"0\r\nx: y\nz: w\r\n\r\n"),
    "obs-fold": header(b"x-a: b\r\n\tc"),
    "obs-fold-first": first(b"POST %b HTTP/1.1\r\n folded: x" % PATH.encode()),
    "bare-lf-head": request("POST", PATH, CHAT).replace(b"\r\n", b"\n"),
    "cr-in-name": header(b"x\r-a: b"),
    "nul-in-value": header(b"x-a: \0"),
    "no-colon": header(b"x-a"),
    "empty-name": header(b": b"),
    "name-of-spaces": header(b"x a: b"),
    "name-of-high-bytes": header(b"x-\xe9: b"),
    "version-2": first(b"POST %b HTTP/2.0" % PATH.encode()),
    "version-1.2": first(b"POST %b HTTP/1.2" % PATH.encode()),
    "version-9.9": first(b"POST %b HTTP/9.9" % PATH.encode()),
    "version-lower": first(b"POST %b http/1.1" % PATH.encode()),
    "version-none": b"POST " + PATH.encode() + b"\r\n\r\n",
    "method-odd": first(b"PO\x00ST %b HTTP/1.1" % PATH.encode()),
    "method-long": first(b"P" * 9000 + b" %b HTTP/1.1" % PATH.encode()),
    "connect": first(b"CONNECT example.com:443 HTTP/1.1"),
    "asterisk": first(b"POST * HTTP/1.1"),
    "target-relative": first(b"POST v1/chat/completions HTTP/1.1"),
    "target-space": first(b"POST /v1/chat/completions x HTTP/1.1"),
    "target-crlf": first(b"POST /v1/chat%0d%0aX:y HTTP/1.1"),
    "target-nul": first(b"POST /v1/chat\x00 HTTP/1.1"),
    "host-space": request("POST", PATH, CHAT, {"host": "a b"}),
    "host-slash": request("POST", PATH, CHAT, {"host": "a/b"}),
    "host-at": request("POST", PATH, CHAT, {"host": "user@host"}),
    "host-port": request("POST", PATH, CHAT, {"host": "a:port"}),
    "host-comma": request("POST", PATH, CHAT, {"host": "a\tb"}),
    "host-twice-equal": header(b"host: localhost"),
    "preface-h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "proxy-protocol": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n" + request("POST", PATH, CHAT),
    "tls-hello": bytes.fromhex("16030100be010000ba0303") + b"x" * 200,
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_what_two_readers_could_read_in_two_ways_reaches_nobody(rig, name):
    """A 4xx in OpenAI's shape (505 for a version), or a close without a word; the connection ends either way."""
    count = len(rig.origin.requests)
    visit = await Visit.open(rig.url)
    try:
        await visit.say(SMUGGLED[name] + HIDDEN)
        answer = await visit.rest()
        assert answer.status in (400, 404, 405, 413, 414, 415, 431, 505), answer
        if answer.body:
            answer.error()
        if answer.status not in (404, 405):  # those were understood, and what follows is a request of its own
            await visit.closed_by_peer()
            assert len(rig.origin.requests) == count
    except (ConnectionError, EOFError):
        assert len(rig.origin.requests) == count
    finally:
        await visit.leave()
    assert not [seen for seen in rig.origin.requests[count:] if seen.model != "hidden"]
    assert (await ask(rig.url, PATH, chat("small"))).status == 200


HARMLESS = {
    "absolute-form": first(b"POST http://evil.example/v1/chat/completions HTTP/1.1"),
    "twin-with-underscores": header(b"transfer_encoding: chunked\r\ncontent_length: 3\r\nx_api_key: other-key-0123456789"),
    "upgrade": header(b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA"),
    "hop-by-hop": header(b"connection: authorization, host, content-length"),
    "overrides": header(b"x-http-method-override: DELETE\r\nx-original-url: /v1/models\r\nx-forwarded-host: evil.example"),
    "chunk-extension": chunked(SIZE + b";a=b\r\n" + CHAT + b"\r\n", b"0\r\n\r\n"),
    "trailers": chunked(ONE, b"0\r\nauthorization: Bearer other-key-0123456789\r\nx: y\r\n\r\n"),
    "leading-newline": b"\r\n" + request("POST", PATH, CHAT),
    "expect-odd": header(b"expect: 100-con\xe2inue"),
    "expect-other": header(b"expect: a-miracle"),
    "te-trailers": header(b"te: trailers"),
    "version-spaces": first(b"POST  %b  HTTP/1.1" % PATH.encode()),
    "only-newlines": b"\r\n" * 5000 + request("POST", PATH, CHAT),
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_is_odd_but_unambiguous_is_served_and_nothing_odd_is_passed_on(rig, name):
    count = len(rig.origin.requests)
    answer = await send(rig.url, HARMLESS[name])
    assert answer.status in (200, 400, 417), answer
    assert len(rig.origin.requests) - count == (answer.status == 200)
    if answer.status == 200:
        sent = rig.origin.requests[-1]
        assert (sent.target, sent.model, sent.header("host")) == (PATH, "small", rig.origin.root.removeprefix("http://"))
        names = {name for name, _ in sent.headers}
        allowed = {"host", "authorization", "content-type", "accept", "accept-encoding", "user-agent", "content-length"}
        assert names <= allowed, names
        assert rig.daemon.rows()[-1]["caller"] == "tester"


async def test_a_pipelined_request_behind_a_refused_one_is_not_run(rig):
    count = len(rig.origin.requests)
    big = request("POST", PATH, b"", {"content-length": str(64 * MIB)})
    visit = await Visit.open(rig.url)
    await visit.say(big + HIDDEN)
    assert (await visit.rest()).status == 413
    await visit.closed_by_peer()
    await visit.leave()
    assert len(rig.origin.requests) == count


# JSON


def nested(depth: int) -> bytes:
    return b'{"model":"small","messages":' + b"[" * depth + b"]" * depth + b"}"


DOCUMENTS = {
    "depth-200": (nested(199), 200),
    "depth-201": (nested(200), 400),
    "depth-in-string": (b'{"model":"small","messages":[{"role":"user","content":"' + b"[{" * 5000 + b'"}]}', 200),
    "huge-int": (b'{"model":"small","messages":[],"seed":' + b"9" * 100_000 + b"}", (200, 400)),
    "huge-exponent": (b'{"model":"small","messages":[],"temperature":1e999999999}', (200, 400)),
    "huge-limit": (b'{"model":"small","messages":[],"max_tokens":' + b"9" * 400 + b"}", 400),
    "negative-n": (b'{"model":"small","messages":[],"n":-1}', 400),
    "nan": (b'{"model":"small","messages":[],"temperature":NaN}', 400),
    "surrogate": (b'{"model":"\\ud800","messages":[]}', 400),
    "nul-model": (b'{"model":"a\\u0000b","messages":[]}', 400),
    "rtl-model": ('{"model":"a\u202eb","messages":[]}'.encode(), 400),
    "line-separator": ('{"model":"a\u2028b","messages":[]}'.encode(), 400),
    "overlong-utf8": (b'{"model":"small","messages":[{"role":"user","content":"\xc0\xaf"}]}', 400),
    "utf16": ('{"model":"small","messages":[]}'.encode("utf-16"), 400),
    "bom": (b'\xef\xbb\xbf{"model":"small","messages":[]}', 400),
    "many-members": (b'{"model":"small",' + b",".join(b'"m%d":1' % n for n in range(1000)) + b"}", 400),
    "long-name": (b'{"model":"small","' + b"n" * MIB + b'":1}', (200, 400)),
    "prototype": (b'{"model":"small","messages":[],"__proto__":{"model":"evil"},"constructor":1}', 200),
    "many-messages": (b'{"model":"small","messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 50_000) + b"]}", 200),
    "many-arrays": (b'{"model":"small","messages":[],"x":[' + b",".join([b"[]"] * 500_000) + b"]}", (200, 400)),
}


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_document_that_is_meant_to_hurt_is_refused_or_served_and_hurts_nobody(rig, name):
    body, status = DOCUMENTS[name]
    answer = await ask(rig.url, PATH, body)
    assert answer.status in (status if isinstance(status, tuple) else (status,)), answer
    if answer.status == 400:
        answer.error()
    assert (await ask(rig.url, "/health", method="GET")).status == 200


# Injection


MODELS = [
    "a\r\nX-Injected: yes",
    "a\nfake line",
    "../../etc/passwd",
    "..%2f..%2fetc",
    "{{7*7}}",
    "{0.__class__}",
    "%s%s%n",
    "'; DROP TABLE usage_events; --",
    "<script>alert(1)</script>",
    'a"b',
    "\x1b[31mred",
    "${jndi:ldap://evil.example}",
    "model" * 60,
]


async def test_a_model_name_becomes_no_header_line_markup_or_sql(tmp_path, launch, origin):
    """Unknown names come back in the error, as JSON; the log stays one line of JSON an event; the ledger stays."""
    daemon = launch(upstreams={"origin": at(origin)}, models={"small": "origin"})
    for name in MODELS:
        answer = await ask(daemon.url, PATH, chat(name))
        assert answer.status in (400, 404), (name, answer)
        answer.error()
        assert "x-injected" not in answer.headers
        assert answer.headers["content-type"].startswith("application/json")
        quoted = "".join(f"%{byte:02x}" for byte in name.encode())
        assert (await ask(daemon.url, f"/v1/models/{quoted}", method="GET")).status == 404
    origin.on("small", whole(completion("hi")))
    assert (await ask(daemon.url, PATH, chat("small"))).status == 200
    assert len(daemon.settled("small")) == 1
    for line in daemon.log.splitlines()[2:]:
        assert isinstance(json.loads(line), dict), line
    assert "\x1b" not in daemon.log


@pytest.mark.parametrize("key", ["a\x0bb", "\xe9", "k" * 256, " ", "a\x7fb"])
async def test_an_id_that_is_not_printable_is_refused_before_it_is_kept(rig, key):
    answer = await ask(rig.url, PATH, chat("small"), idempotency_key=key)
    assert answer.status in (200, 400) if key == " " else answer.status == 400, answer


PATHS = [
    "/v1/../v1/chat/completions",
    "//v1/chat/completions",
    "/v1/chat/completions/",
    "/v1/chat/completions;x=y",
    "/V1/chat/completions",
    "/v1/chat%2fcompletions",
    "/v1/models/" + "x" * 300,
    "/v1/models/a%0d%0ab",
    "/v1/streams/../../../etc/passwd",
    "/v1/streams/%00",
    "/metrics",
    "/state",
    "/keys",
    "/reload",
    "/.env",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_path_is_what_the_table_says_and_nothing_else(rig, path, method):
    count = len(rig.origin.requests)
    answer = await ask(rig.url, path, b"{}" if method == "POST" else None, method=method)
    assert answer.status in (400, 404, 405, 414), answer
    assert len(rig.origin.requests) == count


# Callers and their traces


async def test_metrics_grow_by_nothing_that_a_client_makes_up(rig):
    async def series() -> int:
        page = (await ask(rig.daemon.ops, "/metrics", method="GET")).body.decode()
        return len([line for line in page.splitlines() if not line.startswith("#")])

    async def strange(n: int) -> None:
        await ask(rig.url, PATH, chat(f"strange-{n}"), user_agent=f"agent-{n}")
        await ask(rig.url, f"/strange/{n}", method="GET")
        await ask(rig.url, PATH, chat("small"), authorization=f"Bearer key-{n}")
        await send(rig.url, request(f"METHOD{n}", PATH, b"{}", {"content-length": "2"}))

    await strange(0)
    await ask(rig.url, PATH, chat("small"))
    before = await series()
    for n in range(1, 40):
        await strange(n)
    assert await series() == before


async def test_one_caller_sees_nothing_of_another(rig):
    own = {"idempotency_key": "shared-name", "authorization": f"Bearer {KEY}"}
    other = {"idempotency_key": "shared-name", "authorization": "Bearer other-key-0123456789"}
    mine = await ask(rig.url, PATH, chat("leak", stream=False), **own)
    assert mine.status == 200
    count = len(rig.origin.asked("leak"))
    theirs = await ask(rig.url, PATH, chat("leak", stream=False), **other)
    assert theirs.status == 200
    assert "idempotent-replayed" not in theirs.headers
    assert len(rig.origin.asked("leak")) == count + 1
    for name in (mine.headers["x-request-id"], "shared-name-of-nobody"):
        answer = await ask(rig.url, f"/v1/streams/{name}", method="GET", authorization="Bearer other-key-0123456789")
        assert answer.status in (403, 404), answer


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "localhost@evil.example"])
async def test_a_web_page_cannot_reach_the_operators_port_by_another_name(rig, host):
    """DNS rebinding: the browser believes the page's own host name is ours."""
    for path in ("/state", "/metrics", "/health"):
        answer = await send(rig.daemon.ops, request("GET", path, headers={"host": host}))
        assert answer.status in (400, 421), answer
        assert b"upstreams" not in answer.body


# Slow


async def test_drips_are_cut_at_their_deadline_while_others_are_served(rig):
    """Heads and bodies that come a byte at a time: each byte is a sign of life, and none of them buys time."""
    address = re.fullmatch(r"http://(.+):(\d+)", rig.url)
    head_, body = request("POST", PATH, CHAT).partition(b"\r\n\r\n")[::2]
    dripping: dict[socket.socket, bytes] = {}
    for number in range(100):
        link = socket.create_connection((address[1], int(address[2])))
        link.setblocking(False)
        at_once, drip = (head_ + b"\r\n\r\n", body + b" " * 10_000) if number % 2 else (b"", head_[:-1] + b"x" * 1000)
        link.send(at_once.replace(b"content-length: %d" % len(CHAT), b"content-length: 9000"))
        dripping[link] = drip
    served = 0
    began = asyncio.get_running_loop().time()
    while dripping:
        assert asyncio.get_running_loop().time() - began < 10, f"{len(dripping)} were not cut"
        for link, drip in list(dripping.items()):
            try:
                link.send(drip[:1])
                dripping[link] = drip[1:]
                if link.recv(65536) == b"":
                    raise ConnectionError
            except BlockingIOError:
                pass
            except OSError:
                link.close()
                del dripping[link]
        assert (await ask(rig.url, PATH, chat("small"))).status == 200
        served += 1
        await asyncio.sleep(0.02)
    assert served > 10


def test_the_payloads_are_distinct():
    """What replaces a part of a request by hand can miss it."""
    assert len(set(SMUGGLED.values())) == len(SMUGGLED)
    assert request("POST", PATH, CHAT) not in SMUGGLED.values()
