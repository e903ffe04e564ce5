"""Web pages of listed origins may call and read; those of others may not, and nobody is told why by a guess."""

import pytest

from tests.e2e.client import ask, chat
from tests.e2e.conftest import at, rigged
from tests.origin import DONE, completion, delta, stream, whole

PATH = "/v1/chat/completions"
PAGE = "https://app.example.com"
ALLOW = "access-control-allow-origin"


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    cors = {"origins": [PAGE, "http://localhost:3000", "chrome-extension://abcdef"], "credentials": True}
    with rigged(
        tmp_path_factory.mktemp("cors"), lambda origin: {"upstreams": {"o": at(origin)}, "models": {"*": "o"}, "cors": cors}
    ) as found:
        found.origin.on("m", whole(completion("hi")))
        found.origin.on("s", stream(delta("a"), delta("", finish="stop"), DONE))
        yield found


async def test_a_thin_answer_names_only_the_headers_that_it_has(rig):
    """The whole list has 500 bytes: half a streamed answer of 200 tokens in protobuf."""
    rig.origin.on("limited", whole(b'{"error":{"message":"later"}}', status=429, headers={"retry-after": "3"}))
    thin = {"accept": "application/protobuf", "origin": PAGE}
    answer, refused = await ask(rig.url, PATH, chat("m"), **thin), await ask(rig.url, PATH, chat("limited"), **thin)
    assert (answer.headers[ALLOW], "access-control-expose-headers" in answer.headers) == (PAGE, False)
    assert "retry-after" in refused.headers["access-control-expose-headers"].lower().split(", ")
    assert len(refused.headers["access-control-expose-headers"]) < 60


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000", "chrome-extension://abcdef"])
@pytest.mark.parametrize("asked", [chat("m"), chat("s", stream=True)])
async def test_a_page_of_a_listed_origin_may_read_the_answer_and_its_headers(rig, origin, asked):
    answer = await ask(rig.url, PATH, asked, origin=origin)
    assert (answer.status, answer.headers[ALLOW], answer.headers["access-control-allow-credentials"]) == (200, origin, "true")
    assert "Origin" in answer.headers["vary"]
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert {"x-request-id", "retry-after", "idempotent-replayed", "preference-applied", "x-ratelimit-remaining-tokens"} <= set(
        exposed.split(", ")
    )


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example.com", "https://app.example.com.evil.com", "https://APP.example.com", "http://app.example.com", "null", "*"],
)
async def test_other_pages_are_told_nothing_and_caches_are_told_that_it_depends(rig, origin):
    for method, more in (("POST", {}), ("OPTIONS", {"access-control-request-method": "POST"})):
        answer = await ask(rig.url, PATH, chat("m") if method == "POST" else None, method=method, origin=origin, **more)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "Origin" in answer.headers["vary"]


async def test_programs_are_answered_as_ever_with_vary(rig):
    answer = await ask(rig.url, PATH, chat("m"))
    assert answer.status == 200
    assert ALLOW not in answer.headers
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(("path", "methods"), [(PATH, "POST"), ("/v1/streams/req_1", "DELETE, GET"), ("/v1/models", "GET")])
async def test_a_preflight_needs_no_key_and_says_what_may_be_asked(rig, path, methods):
    wanted = "authorization,content-type,idempotency-key,x-stainless-os"
    answer = await ask(
        rig.url,
        path,
        method="OPTIONS",
        origin=PAGE,
        authorization="",
        **{"access-control-request-method": "POST", "access-control-request-headers": wanted},
    )
    assert (answer.status, answer.body, answer.headers[ALLOW]) == (204, b"", PAGE)
    assert answer.headers["access-control-allow-methods"] == methods
    assert answer.headers["access-control-allow-headers"] == wanted
    assert answer.headers["access-control-max-age"] == "600"
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("wanted", ["a b", "x" * 65, "a,,b", ",".join(["a"] * 51), "a(b)"])
async def test_what_is_no_list_of_headers_is_not_said_back(rig, wanted):
    more = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    answer = await ask(rig.url, PATH, method="OPTIONS", origin=PAGE, **more)
    assert answer.status == 204
    assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [(PATH, {"authorization": "Bearer wrong"}, 401), ("/nowhere", {}, 404), (PATH, {"content-type": "text/plain"}, 415)],
)
async def test_a_page_may_read_errors_too(rig, path, more, status):
    answer = await ask(rig.url, path, chat("m"), origin=PAGE, **more)
    assert (answer.status, answer.headers[ALLOW]) == (status, PAGE)


async def test_the_operators_port_lets_no_page_in(rig):
    answer = await ask(rig.daemon.ops, "/state", method="GET", origin=PAGE)
    assert answer.status == 403
    assert ALLOW not in answer.headers


async def test_without_cors_in_the_file_there_is_none(daemon, origin):
    origin.on("m", whole(completion("hi")))
    answer = await ask(daemon.url, PATH, chat("m"), origin=PAGE)
    assert answer.status == 200
    assert ALLOW not in answer.headers
    refused = await ask(daemon.url, PATH, method="OPTIONS", origin=PAGE, **{"access-control-request-method": "POST"})
    assert refused.status == 405


async def test_every_page_may_be_let_in_without_credentials(launch, origin):
    daemon = launch(upstreams={"o": at(origin)}, models={"*": "o"}, cors={"origins": ["*"]})
    origin.on("m", whole(completion("hi")))
    answer = await ask(daemon.url, PATH, chat("m"), origin="https://any.example.com")
    assert answer.headers[ALLOW] == "*"
    assert "access-control-allow-credentials" not in answer.headers
