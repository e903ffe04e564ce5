"""The failure model, line by line: what goes wrong at an upstream or on the way there, against real sockets.

What relay, failover and ledger tests show already is not repeated here: silence, cuts, leaving, kill -9.
"""

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import subprocess
import threading
import time
import zlib
from email.utils import formatdate

import pytest

from tests.e2e.client import PATH, Visit, ask, becomes, begin, chat, happens, request
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, GOOD, SSE, Ending, Origin, chunk, completion, delta, flood, head, stream, whole

MIB = 1024 * 1024


# On the way: names, addresses, TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl is not there: {error}")
    return cert, key


class Relay:
    """A listener that does with each connection as told, in a thread: `act(socket)`. For what an HTTP origin cannot do."""

    def __init__(self, act) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.act = act
        self.came = threading.Event()
        self.open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self.sock.accept()
                self.open.append(link)
                self.came.set()
                threading.Thread(target=self._one, args=(link,), daemon=True).start()

    def _one(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.act(link)

    def close(self) -> None:
        """Stop listening, and close what is open."""
        self.sock.shutdown(socket.SHUT_RDWR)
        for link in [*self.open, self.sock]:
            link.close()


def tls_front(certificate, port: int):
    """What terminates TLS in front of an origin, byte for byte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def pump(source, sink) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def act(link: socket.socket) -> None:
        with context.wrap_socket(link, server_side=True) as secure, socket.create_connection(("127.0.0.1", port)) as back:
            threading.Thread(target=pump, args=(back, secure), daemon=True).start()
            pump(secure, back)

    return act


@pytest.fixture(scope="module")
def away(tmp_path_factory, certificate):
    """Upstreams that cannot be reached, each in its own way, and one that can, over TLS."""
    origin = Origin()
    good = Relay(tls_front(certificate, origin.port))
    mute = Relay(lambda link: link.recv(1) and threading.Event().wait(30))
    plain = Relay(lambda link: link.recv(1) and link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    crowd = [socket.socket() for _ in range(4)]
    for link in crowd:  # nobody accepts: the queue fills, and the kernel answers no further SYN
        link.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            link.connect(full.getsockname())
    bases = {
        "no-name": "http://no-such-host.invalid/v1",
        "unaccepted": f"http://127.0.0.1:{full.getsockname()[1]}/v1",
        "silent-tls": f"https://127.0.0.1:{mute.port}/v1",
        "plain-not-tls": f"https://127.0.0.1:{plain.port}/v1",
        "stranger": f"https://127.0.0.1:{good.port}/v1",
        "tls": f"https://localhost:{good.port}/v1",
    }
    upstreams = {name: at(origin, base_url=base, timeouts={"connect": "400ms"}) for name, base in bases.items()}
    models = {name: {"upstream": name, "retry": {"attempts": 1}} for name in bases}
    models["second"] = {"upstreams": ["no-name", "unaccepted", "tls"]}
    config = {"upstreams": upstreams, "models": models}
    with rigged(tmp_path_factory.mktemp("away"), lambda _: config, {"SSL_CERT_FILE": str(certificate[0])}) as found:
        yield found, origin
    for relay in (good, mute, plain):
        relay.close()
    for link in [full, *crowd]:
        link.close()
    origin.close()


UNREACHED = {
    "no-name": (502, "upstream_dns", "resolved"),
    "unaccepted": (504, "upstream_connect_timeout", "in time"),
    "silent-tls": (504, "upstream_connect_timeout", "in time"),
    "plain-not-tls": (502, "upstream_tls", "TLS"),
    "stranger": (502, "upstream_tls", "TLS"),
}


@pytest.mark.parametrize("model", UNREACHED)
async def test_what_cannot_be_reached_is_told_for_what_it_is_and_names_no_address(away, model):
    rig, _ = away
    status, code, word = UNREACHED[model]
    answer = await ask(rig.url, PATH, chat(model))
    assert (answer.status, answer.error()["code"]) == (status, code)
    assert word in answer.error()["message"]
    for secret in ("127.0.0.1", "localhost", "invalid"):
        assert secret not in answer.body.decode()
    (row,) = rig.daemon.settled(model)
    assert (row["state"], row["error"], row["status"], row["completion_tokens"]) == ("failed", code, status, None)


async def test_an_upstream_that_was_never_reached_is_passed_over_for_the_next(away):
    rig, origin = away
    origin.on("second", whole(completion("fine")))
    assert (await ask(rig.url, PATH, chat("second"))).body == completion("fine")
    rows = rig.daemon.settled("second", 3)
    assert [row["error"] for row in rows] == ["upstream_dns", "upstream_connect_timeout", None]


async def test_a_stream_over_tls_passes_and_leaving_it_stops_the_upstream(away):
    rig, origin = away
    origin.on("tls", stream(*GOOD), stream(delta("a"), ending=Ending.HANG))
    answer = await ask(rig.url, PATH, chat("tls", stream=True))
    assert (answer.body, answer.whole) == (b"".join(GOOD), True)
    visit = await begin(rig, "tls")
    await visit.until(delta("a"))
    await visit.leave()
    await happens(origin.asked("tls")[-1].connection.closed)
    assert [row["state"] for row in rig.daemon.settled("tls", 2)] == ["done", "cancelled"]


async def test_a_resolver_in_trouble_holds_up_no_other_upstream(away):
    """Look-ups of one name are shared, so that a slow one holds one thread and not all of them."""
    rig, origin = away
    origin.on("tls", whole(completion("fine")))
    lost = [asyncio.create_task(ask(rig.url, PATH, chat("no-name"))) for _ in range(50)]
    assert (await ask(rig.url, PATH, chat("tls"))).status == 200
    assert {answer.status for answer in await asyncio.gather(*lost)} <= {502, 503}


# Hostile and broken answers


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """One upstream a test, so that no breaker of one stands in another's way."""
    names = [*BROKEN, *STALLED, *FLOODS, *(f"own-{n}" for n in range(12))]
    upstreams = lambda origin: {name: at(origin, timeouts={"first_byte": "400ms", "between_bytes": "400ms"}) for name in names}  # noqa: E731
    models = {name: {"upstream": name, "retry": {"attempts": 1}} for name in names}
    models["own-retried"] = {"upstream": "own-0", "retry": {"attempts": 3}}
    with rigged(tmp_path_factory.mktemp("rough"), lambda origin: {"upstreams": upstreams(origin), "models": models}) as found:
        yield found


OK = {"content-type": "application/json"}
BODY = completion("fine")
BROKEN = {
    "shorter-than-said": [head(200, {**OK, "content-length": str(len(BODY) + 9)}), BODY, Ending.CLOSE],
    "negative-length": [head(200, {**OK, "content-length": "-1"}), BODY, Ending.CLOSE],
    "absurd-length": [head(200, {**OK, "content-length": "9" * 40}), BODY, Ending.CLOSE],
    "length-and-chunks": [head(200, {**OK, "content-length": "5", "transfer-encoding": "chunked"}), chunk(BODY), Ending.CLOSE],
    "not-a-number": [b"HTTP/1.1 abc OK\r\n\r\n", Ending.CLOSE],
    "status-4": [b"HTTP/1.1 4 Odd\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY, Ending.CLOSE],
    "status-999": [b"HTTP/1.1 999 Odd\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY, Ending.CLOSE],
    "version-2": [b"HTTP/2.0 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY, Ending.CLOSE],
    "bare-lf": [b"HTTP/1.1 200 OK\nx: y\n\n" + BODY, Ending.CLOSE],
    "nul-in-header": [b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n", Ending.CLOSE],
    "chunk-size-overflow": [head(200, {**OK, "transfer-encoding": "chunked"}), b"fffffffffffffffff\r\n{}", Ending.CLOSE],
    "unary-cut": [head(200, {**OK, "transfer-encoding": "chunked"}), chunk(BODY[:40]), Ending.CLOSE],
    "unary-reset": [head(200, {**OK, "transfer-encoding": "chunked"}), chunk(BODY[:40]), 0.05, Ending.RESET],
    "empty-200": [head(200, {**OK, "content-length": "0"})],
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_answer_never_looks_whole_and_its_connection_is_not_used_again(rough, kind):
    """Told as the upstream's fault: never half of it, and never cleanly cut."""
    rough.origin.on(kind, BROKEN[kind], whole(completion("better")))
    answer = await ask(rough.url, PATH, chat(kind))
    (row,) = rough.daemon.settled(kind)
    assert (answer.status, answer.error()["type"], row["state"]) == (502, "upstream_error", "failed")
    if kind != "empty-200":
        await happens(rough.origin.asked(kind)[0].connection.closed)
    assert (await ask(rough.url, PATH, chat(kind))).body == completion("better")


EVENT = chunk(delta("a"))
STALLED = {
    "in-status-line": ([b"HTTP/1.1 2", Ending.HANG], 504),
    "in-head": ([b"HTTP/1.1 200 OK\r\ncontent-ty", Ending.HANG], 504),
    "after-1xx": ([b"HTTP/1.1 103 Early Hints\r\n\r\n", Ending.HANG], 504),
    "in-first-event": ([head(200, SSE), chunk(b'data: {"choi'), Ending.HANG], 504),
    "in-later-event": ([head(200, SSE), EVENT, chunk(b'data: {"choi'), Ending.HANG], 200),
    "in-chunk-size": ([head(200, SSE), EVENT, b"1", Ending.HANG], 200),
    "in-chunk": ([head(200, SSE), EVENT, b"100\r\ndata: ", Ending.HANG], 200),
    "before-last-chunk": ([head(200, SSE), EVENT, Ending.HANG], 200),
    "in-trailers": ([head(200, SSE), EVENT, b"0\r\nx-trailer: y", Ending.HANG], 200),
    "in-error-body": ([head(500, {**OK, "content-length": "100"}), b'{"error":', Ending.HANG], 500),
}


@pytest.mark.parametrize("phase", STALLED)
async def test_a_stall_is_cut_at_its_deadline_wherever_it_happens(rough, phase):
    script, status = STALLED[phase]
    rough.origin.on(phase, script)
    answer = await ask(rough.url, PATH, chat(phase, stream=True))
    assert answer.status == status, answer
    if status == 200:
        assert answer.body.startswith(delta("a"))
        assert json.loads(answer.body[len(delta("a")) + 6 :])["error"]["code"] == "upstream_timeout"
        assert not answer.whole
    await happens(rough.origin.asked(phase)[0].connection.closed)
    (row,) = rough.daemon.settled(phase)
    assert row["state"] == "failed"


async def test_an_unstreamed_answer_that_stalls_is_a_proper_504(rough):
    rough.origin.on("own-1", [head(200, {**OK, "content-length": "500"}), b'{"id":', Ending.HANG])
    answer = await ask(rough.url, PATH, chat("own-1"))
    assert (answer.status, answer.error()["code"], answer.whole) == (504, "upstream_timeout", True)


FLOODS = {
    "comments": flood(head(200, SSE), chunk(b": x\n\n" * 10_000)),
    "blank-lines": flood(head(200, SSE), chunk(b"\n" * 50_000)),
    "line": flood(head(200, SSE) + chunk(b"data: "), chunk(b"x" * 60_000)),
    "error-body": flood(head(500, {**OK, "transfer-encoding": "chunked"}), chunk(b"x" * 60_000)),
    "spaces": flood(head(200, {**OK, "transfer-encoding": "chunked"}), chunk(b" " * 60_000)),
    "extensions": flood(head(200, SSE), b"1;" + b"e" * 60_000),
    "trailers": flood(head(200, SSE) + EVENT + b"0\r\n", b"x-trailer: " + b"t" * 1000 + b"\r\n"),
    "empty-data": flood(head(200, SSE), chunk(b"data:\n\n" * 5_000)),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_an_answer_without_end_costs_a_bounded_memory(rough, kind):
    """The client does not read. Whatever is held, of the meter's 64 MiB at most, the flood stops or waits at the socket."""
    rough.origin.on(kind, FLOODS[kind])
    before = rough.daemon.memory()
    visit = await (await Visit.open(rough.url, receive_buffer=16 * 1024)).post(PATH, chat(kind, stream=kind != "spaces"))
    await becomes(lambda: rough.origin.asked(kind))
    connection, sent = rough.origin.asked(kind)[0].connection, -1
    while sent != connection.sent() and not connection.closed.is_set() and connection.sent() < 400 * MIB:
        sent = connection.sent()
        await asyncio.sleep(0.2)
    assert connection.sent() < 400 * MIB
    grown = rough.daemon.memory() - before
    await visit.leave(reset=True)
    await happens(connection.closed)
    assert grown < 200 * MIB, f"{grown / MIB:.0f} MiB"
    assert (await ask(rough.url, "/health", method="GET")).status == 200
    assert rough.daemon.settled(kind)[0]["state"] != "done"


async def test_a_bomb_in_a_coding_that_nobody_asked_for_passes_and_is_not_unfolded(rough):
    """A megabyte of zeros behind gzip's 1000:1, five times: what reads along gives up, the bytes pass as they came."""
    bomb = gzip.compress(b"\0" * 200 * MIB, 9)
    rough.origin.on("own-2", whole(bomb, headers={"content-encoding": "gzip"}))
    before = rough.daemon.memory()
    answer = await ask(rough.url, PATH, chat("own-2"))
    assert (answer.status, answer.body, answer.headers["content-encoding"]) == (200, bomb, "gzip")
    assert rough.daemon.memory() - before < 150 * MIB


CODED = {
    "gzip": (gzip.compress, "The prompt is too long."),
    "deflate": (zlib.compress, "The prompt is too long."),
    "x-unheard-of": (lambda body: body[::-1], "The upstream answered with status 400 and no message."),
}


@pytest.mark.parametrize("coding", CODED)
async def test_an_error_in_a_coding_that_nobody_asked_for_is_read_or_is_without_words(rough, coding):
    """Its bytes as they are would be a message of noise."""
    code, message = CODED[coding]
    body = code(b'{"error":{"message":"The prompt is too long.","type":"invalid_request_error","param":null,"code":null}}')
    rough.origin.on("own-9", whole(body, status=400, headers={"content-encoding": coding}))
    answer = await ask(rough.url, PATH, chat("own-9"))
    assert (answer.status, answer.error()["message"]) == (400, message)
    assert "content-encoding" not in answer.headers


OUR_CREDENTIAL = {
    # where an upstream's word on proxyd's credential stands
    "proxy": whole(b'{"error":{"message":"upstream-s***89"}}', status=407),
    "document": whole(b'{"error":{"message":"Incorrect API key: upstream-s***89","code":"invalid_api_key"}}'),
    "event": stream(b'data: {"error":{"message":"Incorrect API key: upstream-s***89","code":401}}\n\n'),
    "anthropic": stream(b'event: error\ndata: {"type":"error","error":{"type":"authentication_error","message":"upstream-s***89"}}\n\n'),
}


@pytest.mark.parametrize("where", OUR_CREDENTIAL)
async def test_what_is_said_of_our_credential_is_never_passed_on_wherever_it_stands(rough, where):
    """It quotes a part of the key, and a client would look for the mistake in its own."""
    rough.origin.on("own-7", OUR_CREDENTIAL[where])
    answer = await ask(rough.url, PATH, chat("own-7", stream=where not in ("proxy", "document")))
    assert (answer.status, answer.error()["code"]) == (502, "upstream_auth")
    assert b"upstream-s" not in answer.body


async def test_a_refusal_for_the_rate_is_of_the_type_that_says_so(rough):
    """Where the upstream itself gives no type."""
    rough.origin.on("own-8", whole(b'{"error":"slow down"}', status=429))
    answer = await ask(rough.url, PATH, chat("own-8"))
    assert (answer.status, answer.error()["type"], answer.error()["message"]) == (429, "requests", "slow down")


# Waiting: who says it how


WAITS = {
    "seconds": ({"retry-after": "20"}, (20, 20)),
    "fraction": ({"retry-after": "1.5"}, (1, 2)),
    "milliseconds": ({"retry-after-ms": "2500", "retry-after": "9"}, (2, 3)),
    "date": (lambda: {"retry-after": formatdate(time.time() + 30, usegmt=True)}, (25, 31)),
    "past": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, (0, 1)),
    "nonsense": ({"retry-after": "soon"}, None),
    "negative": ({"retry-after": "-5"}, None),
    "a-year": ({"retry-after": "31536000"}, (3600, 3600)),
}


@pytest.mark.parametrize("form", WAITS)
async def test_a_wait_is_understood_in_every_form_and_told_as_whole_seconds(rough, form):
    headers, bounds = WAITS[form]
    body = b'{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
    rough.origin.on("own-3", whole(body, status=429, headers=headers() if callable(headers) else headers))
    answer = await ask(rough.url, PATH, chat("own-3"))
    assert (answer.status, answer.body) == (429, body)
    if bounds is None:
        assert "retry-after" not in answer.headers
    else:
        assert answer.headers["retry-after"].isdigit()
        assert bounds[0] <= int(answer.headers["retry-after"]) <= bounds[1]


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (429, "false", "false"),
        (529, "true", "true"),
        (503, "perhaps", None),
        (400, "true", "true"),
        (400, None, "false"),
        (401, "true", "false"),
    ],
)
async def test_what_an_upstream_tells_sdks_about_trying_again_reaches_them(rough, status, said, told):
    """It knows best: providers answer a 429 that no waiting cures, and tools rely on the header as it was sent."""
    body = b'{"error":{"message":"no","type":"requests","param":null,"code":null}}'
    rough.origin.on("own-5", whole(body, status=status, headers={} if said is None else {"x-should-retry": said}))
    answer = await ask(rough.url, PATH, chat("own-5"))
    assert answer.headers.get("x-should-retry") == told


async def test_a_full_queue_of_ollama_is_tried_again_and_then_told_in_openais_shape(rough):
    full = whole(b'{"error":"server busy, please try again.  maximum pending requests exceeded"}', status=503)
    rough.origin.on("own-retried", full, whole(completion("fine")))
    assert (await ask(rough.url, PATH, chat("own-retried"))).body == completion("fine")
    assert [row["error"] for row in rough.daemon.settled("own-retried", 2)] == ["upstream_overloaded", None]
    rough.origin.on("own-4", full)
    answer = await ask(rough.url, PATH, chat("own-4"))
    assert (answer.status, answer.error()["message"][:11]) == (503, "server busy")
    assert "x-should-retry" not in answer.headers


async def test_a_spent_quota_is_asked_for_once(rough):
    body = b'{"error":{"message":"You exceeded your quota.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}'
    rough.origin.on("own-retried", whole(body, status=429))
    count = len(rough.origin.asked("own-retried"))
    answer = await ask(rough.url, PATH, chat("own-retried"))
    assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
    assert len(rough.origin.asked("own-retried")) == count + 1


@pytest.mark.parametrize("breaks", [False, True])
async def test_where_only_the_connections_end_ends_a_stream_a_broken_one_is_reset(rig, breaks):
    """HTTP/1.0, as nginx speaks it to upstreams unless told otherwise: no chunks, so a plain close would look like the end."""
    model = f"old-{breaks}"
    rig.origin.on(model, stream(delta("a"), *([] if breaks else [delta("", finish="stop"), DONE]), ending=Ending.CLOSE))
    visit = await Visit.open(rig.url)
    body = json.dumps(chat(model, stream=True)).encode()
    await visit.say(request("POST", PATH, body).replace(b" HTTP/1.1", b" HTTP/1.0", 1))
    assert "transfer-encoding" not in (await visit.head()).headers
    with pytest.raises(ConnectionResetError) if breaks else contextlib.nullcontext():
        assert (await visit._reader.read()).endswith(DONE)
    await visit.leave()
