"""Another upstream answers when one fails, but only while nothing of an answer has left."""

import json
from dataclasses import dataclass

import pytest

from tests.e2e.client import PATH, Answer, Visit, ask, becomes, chat, happens
from tests.e2e.conftest import Rig, at, rigged
from tests.origin import DONE, GOOD, Ending, Gate, Origin, Request, Script, completion, delta, event, head, stream, whole

ERROR = {"error": {"message": "Overloaded for now.", "type": "server_error", "param": None, "code": "overloaded"}}


@dataclass(frozen=True, slots=True)
class Pair:
    """A route of a test's own over two upstreams, in order; `one` and `two` are also the model's names there."""

    rig: Rig
    model: str

    @property
    def one(self) -> str:
        return self.model + "-one"

    @property
    def two(self) -> str:
        return self.model + "-two"

    def plays(self, one: Script, two: Script) -> None:
        """Say what each upstream answers."""
        self.rig.origin.on(self.one, one)
        self.rig.origin.on(self.two, two)

    def asked(self, name: str) -> list[Request]:
        """What one of the two was asked."""
        return self.rig.origin.asked(name)

    async def ask(self, **more: object) -> Answer:
        """Ask the route."""
        return await ask(self.rig.url, PATH, chat(self.model, **more))

    def settled(self, count: int = 1) -> list[dict]:
        """The rows of this route."""
        return self.rig.daemon.settled(self.model, count)


def _config(origin: Origin) -> dict[str, object]:
    upstreams: dict[str, object] = {}
    models: dict[str, object] = {}
    for name in PAIRS:
        upstreams[name + "-one"] = at(origin, api_key="key-of-one", timeouts={"first_byte": "400ms"})
        upstreams[name + "-two"] = at(origin, api_key="key-of-two")
        models[name] = {"upstreams": [{"upstream": name + end, "model": name + end} for end in ("-one", "-two")]}
    for name in LONE:
        upstreams[name] = at(origin)
        models[name] = {"upstream": name, "retry": {"attempts": 1}}
    upstreams["dead"] = at(origin, base_url="http://127.0.0.1:9/v1")  # discard: nobody serves it on loopback
    upstreams["never"] = at(origin, reuse="never")
    upstreams["narrow"] = at(origin, max_connections=1)
    shares = [{"upstream": "pair-0-one", "model": "heavy", "weight": 3}, {"upstream": "pair-0-two", "model": "light", "weight": 1}]
    models |= {"first-dead": ["dead", "lone-0"], "never": "never", "held": "narrow", "next": "narrow"}
    models["weighted"] = {"upstreams": shares, "strategy": "weighted"}
    return {"upstreams": upstreams, "models": models}


PAIRS = [f"pair-{number}" for number in range(30)]
LONE = [f"lone-{number}" for number in range(8)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """One daemon; every test takes upstreams that no other test has broken."""
    with rigged(tmp_path_factory.mktemp("failover"), _config) as found:
        yield found


@pytest.fixture(scope="module")
def names():
    return {"pair": iter(PAIRS[1:]), "lone": iter(LONE[1:])}


@pytest.fixture
def pair(rig, names) -> Pair:
    return Pair(rig, next(names["pair"]))


@pytest.fixture
def lone(rig, names) -> Pair:
    """A route over one upstream, tried once."""
    return Pair(rig, next(names["lone"]))


FIRST_FAILS = {
    "500": whole(json.dumps(ERROR).encode(), status=500),
    "501": whole(json.dumps(ERROR).encode(), status=501),
    "503": whole(b"<html>busy</html>", status=503, headers={"content-type": "text/html"}),
    "429": whole(json.dumps(ERROR).encode(), status=429, headers={"retry-after": "30"}),
    "closed": [Ending.CLOSE],
    "reset": [Ending.RESET],
    "silent": [Ending.HANG],
    "error-event-first": stream(event(ERROR), DONE),
    "comment-then-error": stream(b": OPENROUTER PROCESSING\n\n", event(ERROR)),
    "comment-then-end": stream(b": OPENROUTER PROCESSING\n\n"),
    "comment-then-cut": stream(b": OPENROUTER PROCESSING\n\n", ending=Ending.CLOSE),
    "comment-then-reset": stream(b": OPENROUTER PROCESSING\n\n", 0.02, ending=Ending.RESET),
    "cut-before-an-event": stream(b'data: {"choi', ending=Ending.CLOSE),
}


_TOLD = json.dumps(ERROR, indent=1).encode()
UNKNOWN = b'{"detail": [{"loc": ["body", "stream_options"], "msg": "extra fields not permitted"}]}'


async def test_an_upstream_that_refuses_to_be_asked_for_usage_is_asked_without_and_remembered(pair):
    """The client did not send `stream_options`, so it must not be refused for them."""
    refuses = lambda seen: whole(UNKNOWN, status=422) if "stream_options" in seen.json() else stream(*GOOD)  # noqa: E731
    pair.plays(refuses, whole(b"{}", status=500))
    for _ in range(2):
        assert ((answer := await pair.ask(stream=True)).status, answer.body) == (200, b"".join(GOOD))
    assert [row["error"] for row in pair.settled(3)] == ["upstream_refused", None, None]
    assert len(pair.asked(pair.one)) == 3
    asked = await pair.ask(stream=True, stream_options={"include_usage": True})
    assert (asked.status, "stream_options" in asked.error()["message"]) == (422, True)  # that is the client's own wish


NO_ANSWERS = {
    "only-an-error": (whole(_TOLD), "upstream_error"),
    "an-error-in-pieces": ([head(200, {"content-length": str(len(_TOLD))}) + _TOLD[:20], 0.05, _TOLD[20:]], "upstream_error"),
    "a-page": (whole(b"\n<!doctype html><title>Welcome</title>", headers={"content-type": "text/html"}), "upstream_bad_response"),
}


@pytest.mark.parametrize("failure", NO_ANSWERS)
async def test_a_document_that_begins_as_no_answer_does_leaves_it_to_the_second_upstream(pair, failure):
    script, error = NO_ANSWERS[failure]
    pair.plays(script, whole(completion("hello")))
    answer = await pair.ask()
    assert (answer.status, answer.body) == (200, completion("hello"))
    assert [(row["upstream"], row["state"], row["error"]) for row in pair.settled(2)] == [
        (pair.one, "failed", error),
        (pair.two, "done", None),
    ]


@pytest.mark.parametrize("failure", FIRST_FAILS)
async def test_the_second_upstream_answers_when_the_first_fails_before_a_byte(pair, failure):
    """Each call is an attempt with a row of its own; the client sees one clean answer."""
    pair.plays(FIRST_FAILS[failure], stream(*GOOD))
    answer = await pair.ask(stream=True)
    assert (answer.status, answer.body, answer.whole) == (200, b"".join(GOOD), True)
    rows = pair.settled(2)
    assert [(row["attempt"], row["upstream"], row["state"]) for row in rows] == [(1, pair.one, "failed"), (2, pair.two, "done")]
    assert {row["request_id"] for row in rows} == {answer.headers["x-request-id"]}
    assert rows[0]["error"] is not None
    assert [seen.header("authorization") for seen in pair.asked(pair.one)] == ["Bearer key-of-one"]
    assert [seen.header("authorization") for seen in pair.asked(pair.two)] == ["Bearer key-of-two"]
    (told,) = await attempts_told(pair.rig, rows[0]["request_id"])
    assert ("answered with status" in told["msg"]) == failure.isdigit()  # an error inside a 200 is not told as a status


async def attempts_told(rig: Rig, request_id: str) -> list[dict]:
    """What the log says of the failed attempts of an exchange."""
    marks = ("an attempt failed", request_id)
    return await becomes(lambda: [json.loads(line) for line in rig.daemon.log.splitlines() if all(mark in line for mark in marks)])


async def test_the_second_upstream_answers_when_nobody_listens_at_the_first(rig):
    rig.origin.on("first-dead", whole(completion("fine")))
    assert (await ask(rig.url, PATH, chat("first-dead"))).body == completion("fine")
    rows = rig.daemon.settled("first-dead", 2)
    assert [(row["upstream"], row["error"]) for row in rows] == [("dead", "upstream_connect"), ("lone-0", None)]
    told = await attempts_told(rig, rows[0]["request_id"])
    assert [(line["level"], line["upstream"], line["error"]) for line in told] == [("warning", "dead", "upstream_connect")]
    assert "The upstream could not be connected to. ConnectionRefusedError: " in told[0]["msg"]


async def test_nothing_is_tried_again_once_a_byte_left(pair):
    pair.plays(stream(delta("half"), 0.05, ending=Ending.CLOSE), stream(*GOOD))
    answer = await pair.ask(stream=True)
    assert answer.body.startswith(delta("half"))
    assert b"fine" not in answer.body
    assert not answer.whole
    assert pair.asked(pair.two) == []
    (row,) = pair.settled()
    assert (row["upstream"], row["state"], row["error"]) == (pair.one, "failed", "upstream_cut")


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_refusal_of_the_request_itself_is_not_carried_to_the_next(pair, status):
    """A client's mistake is one at every upstream, and says nothing of this one's health."""
    pair.plays(whole(json.dumps(ERROR).encode(), status=status), whole(completion("fine")))
    answer = await pair.ask()
    assert (answer.status, answer.error()["message"]) == (status, "Overloaded for now.")
    assert pair.asked(pair.two) == []


async def test_when_all_fail_the_last_failure_is_told(pair):
    failing = whole(json.dumps(ERROR).encode(), status=500)
    pair.plays(failing, whole(json.dumps(ERROR).encode(), status=503, headers={"retry-after": "7"}))
    answer = await pair.ask()
    assert answer.status in (500, 503)
    assert answer.error()["message"] == "Overloaded for now."
    rows = pair.settled(2)
    assert all(row["state"] == "failed" for row in rows)
    assert [row["attempt"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) <= 3


async def test_a_client_that_leaves_during_the_second_attempt_stops_it(pair):
    pair.plays(whole(json.dumps(ERROR).encode(), status=500), [Ending.HANG])
    visit = await (await Visit.open(pair.rig.url)).post(PATH, chat(pair.model))
    await becomes(lambda: pair.asked(pair.two))
    await visit.leave()
    await happens(pair.asked(pair.two)[0].connection.closed)
    assert [row["state"] for row in pair.settled(2)] == ["failed", "cancelled"]


async def test_an_upstream_that_keeps_failing_is_left_alone(pair):
    """The breaker: after a row of its own failures the first one is not even asked, and the second answers at once."""
    pair.plays(whole(json.dumps(ERROR).encode(), status=500), whole(completion("fine")))
    for _ in range(30):
        assert (await pair.ask()).body == completion("fine")
    assert len(pair.asked(pair.one)) < 30
    assert len(pair.asked(pair.two)) == 30


async def test_a_pooled_connection_that_died_is_replaced_once_as_attempt_two(lone):
    """RFC 9112 9.3.1: a server may close a kept connection at any time. No response byte came, so nothing was answered."""
    lone.rig.origin.on(lone.model, whole(completion("one")), [Ending.CLOSE], whole(completion("three")))
    assert (await lone.ask()).body == completion("one")
    assert (await lone.ask()).body == completion("three")
    first, stale, fresh = lone.asked(lone.model)
    assert first.connection is stale.connection
    assert fresh.connection is not stale.connection
    rows = lone.settled(3)
    assert [(row["attempt"], row["state"], row["error"]) for row in rows] == [
        (1, "done", None),
        (1, "failed", "upstream_stale"),
        (2, "done", None),
    ]
    assert rows[1]["request_id"] == rows[2]["request_id"]


async def test_a_connection_that_dies_after_a_response_byte_is_not_stale(lone):
    lone.rig.origin.on(lone.model, whole(completion("one")), [b"HTTP/1.1 20", Ending.CLOSE], whole(completion("three")))
    await lone.ask()
    assert (await lone.ask()).status == 502
    assert len(lone.asked(lone.model)) == 2


async def test_a_fresh_connection_that_dies_is_not_tried_again_by_itself(lone):
    lone.rig.origin.on(lone.model, [Ending.CLOSE], whole(completion("two")))
    assert (await lone.ask()).status == 502
    assert len(lone.asked(lone.model)) == 1


async def test_connections_are_kept_for_the_next_request(lone):
    lone.rig.origin.on(lone.model, whole(completion("hi")), stream(*GOOD), whole(completion("hi")))
    for streamed in (False, True, False):
        await lone.ask(stream=streamed)
    assert len({seen.connection.number for seen in lone.asked(lone.model)}) == 1


async def test_reuse_never_opens_a_connection_for_each_request(rig):
    rig.origin.on("never", whole(completion("hi")))
    for _ in range(3):
        await ask(rig.url, PATH, chat("never"))
    assert [seen.connection.requests for seen in rig.origin.asked("never")] == [1, 1, 1]


async def test_weights_share_the_requests(rig):
    for name in ("heavy", "light"):
        rig.origin.on(name, whole(completion("hi")))
    for _ in range(80):
        await ask(rig.url, PATH, chat("weighted"))
    heavy, light = len(rig.origin.asked("heavy")), len(rig.origin.asked("light"))
    assert heavy + light == 80
    assert heavy > light > 0


async def test_a_connection_limit_makes_requests_wait_their_turn(rig):
    gate, later = Gate(), Gate()
    rig.origin.on("held", stream(delta("a"), gate, DONE))
    rig.origin.on("next", [later, *whole(completion("hi"))])
    held = await (await Visit.open(rig.url)).post(PATH, chat("held", stream=True))
    await held.head()
    await held.until(delta("a"))
    waiting = await (await Visit.open(rig.url)).post(PATH, chat("next"))
    await becomes(lambda: rig.daemon.rows("next"))
    assert not rig.origin.asked("next")
    gate.open()
    assert (await held.rest()).whole
    await happens(later.reached)
    # The first exchange is over to its last line: nothing of it may touch the connection that the second one now has.
    assert (await ask(rig.url, "/health", method="GET")).status == 200
    later.open()
    assert (await waiting.rest()).body == completion("hi")
    assert rig.origin.asked("next")[0].connection is rig.origin.asked("held")[0].connection
    await held.leave()
    await waiting.leave()


async def test_an_idle_connection_that_the_upstream_closed_costs_nothing(launch):
    """The pool sees the FIN before the next request, and takes a new connection without a failed attempt."""
    impatient = Origin(idle=0.02)
    try:
        daemon = launch(upstreams={"origin": at(impatient)}, models={"m": "origin"})
        impatient.on("m", whole(completion("hi")))
        for turn in range(3):
            assert (await ask(daemon.url, PATH, chat("m"))).status == 200
            await happens(impatient.connections[turn].closed)
            assert impatient.connections[turn].ended_by == "origin"
        assert [row["attempt"] for row in daemon.settled("m", 3)] == [1, 1, 1]
    finally:
        impatient.close()
