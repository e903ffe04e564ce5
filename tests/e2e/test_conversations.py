"""Conversations that proxyd remembers: one sentence a turn, JSON and protobuf alike, and nothing lost or mixed up."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from proxyd.client import Client, Settings
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto import name_text
from tests.e2e.client import Visit, ask, becomes, request
from tests.e2e.conftest import at, rigged
from tests.e2e.once import KEYS, MODELS, OTHER, PATH
from tests.e2e.test_protobuf import KIND, asked, text_of
from tests.origin import DONE, Ending, Gate, completion, delta, event, stream, usage_event, whole
from tests.process import KEY


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A daemon with two callers."""
    settings = {"models": MODELS, "auth": KEYS}
    with rigged(tmp_path_factory.mktemp("memory"), lambda origin: {"upstreams": {"origin": at(origin)}, **settings}) as found:
        yield found


async def begin(rig, **body: object) -> str:
    answer = await ask(rig.url, "/v1/conversations", body)
    assert answer.status == 200, answer.body
    return answer.json()["conversation_id"]


async def say(rig, name: str, text: str, *, model: str | None = None, **more: object):
    document = {"conversation_id": name, "message": text, **({"model": model} if model else {}), **more}
    return await ask(rig.url, PATH, document)


async def look(rig, name: str, path: str = "", **headers: str):
    return await ask(rig.url, f"/v1/conversations/{name}{path}", method="GET", **headers)


def said(rig, model: str) -> list[list[tuple[str, str]]]:
    """What each request to the upstream had as messages."""
    return [[(one["role"], one["content"]) for one in seen.json()["messages"]] for seen in rig.origin.asked(model)]


async def messages(rig, name: str) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in (await look(rig, name)).json()["messages"]]


async def test_a_turn_sends_one_sentence_and_the_upstream_gets_all(rig):
    rig.origin.on("talk", whole(completion("One.")), stream(delta("Tw"), delta("o.", finish="stop"), usage_event(1, 2), DONE))
    name = await begin(rig, messages=[{"role": "system", "content": "Be brief."}])
    first = await say(rig, name, "One?", model="talk", temperature=0.5)
    second = await say(rig, name, "Two?", stream=True)
    assert (first.status, second.status, second.whole) == (200, 200, True), second.body
    system = ("system", "Be brief.")
    assert said(rig, "talk") == [
        [system, ("user", "One?")],
        [system, ("user", "One?"), ("assistant", "One."), ("user", "Two?")],
    ]
    sent = [seen.json() for seen in rig.origin.asked("talk")]
    assert sent[1]["model"] == "talk"
    assert not {"conversation_id", "message", "history"} & (sent[0].keys() | sent[1].keys())
    assert (await messages(rig, name))[-2:] == [("user", "Two?"), ("assistant", "Two.")]
    assert {row["conversation_id"] for row in rig.daemon.settled("talk", 2)} == {name}


async def test_what_held_for_the_first_turn_holds_for_later_ones(rig):
    rig.origin.on("held", whole(completion("Yes.")))
    name = "c_" + name_text(b"held-held")
    await say(rig, name, "One?", model="held", history=0, temperature=0.25, tools=[{"type": "function", "function": {"name": "f"}}])
    await say(rig, name, "Two?")
    await say(rig, name, "Three?", temperature=1)
    bodies = [seen.json() for seen in rig.origin.asked("held")]
    assert [body.get("temperature") for body in bodies] == [0.25, 0.25, 1]
    assert all(body["tools"][0]["function"]["name"] == "f" for body in bodies)


async def test_json_and_protobuf_share_a_conversation(rig):
    rig.origin.on("shared", stream(delta("One.", finish="stop"), usage_event(1, 1), DONE), whole(completion("Two.")))
    first = pb.ChatCompletionRequest(
        model="shared", messages=[pb.Message(content="One?")], conversation=b"shared-1", history=0, stream=True
    )
    answer = await ask(rig.url, PATH, first.SerializeToString(), Content_Type=KIND)
    assert text_of(answer.body) == "One."
    await say(rig, "c_" + name_text(b"shared-1"), "Two?")
    turn = pb.ChatCompletionRequest(messages=[pb.Message(content="Three?")], conversation=b"shared-1", history=4)
    body = turn.SerializeToString()
    assert len(body) <= 120
    assert pb.ChatCompletion.FromString((await ask(rig.url, PATH, body, Content_Type=KIND)).body).choices[0].message.content == "Two."
    assert [content for _, content in said(rig, "shared")[-1]] == ["One?", "One.", "Two?", "Two.", "Three?"]


async def test_tool_calls_of_a_stream_are_stored_whole(rig):
    def calls(*each: dict) -> bytes:
        return event({"choices": [{"index": 0, "delta": {"tool_calls": list(each)}, "finish_reason": None}]})

    rig.origin.on(
        "calls",
        stream(
            calls({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
            calls({"index": 0, "function": {"arguments": '{"x"'}}, {"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}),
            calls({"index": 0, "function": {"arguments": ":1}"}}),
            event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": "tool_calls"}]}),
            DONE,
        ),
    )
    name = await begin(rig)
    await say(rig, name, "Call.", model="calls", stream=True)
    found = (await look(rig, name)).json()["messages"][-1]
    assert [(call["id"], call["function"]["name"], call["function"].get("arguments")) for call in found["tool_calls"]] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", None),
    ]
    assert (found["role"], found["content"], "reasoning_content" in found) == ("assistant", None, False)


async def test_a_turn_that_broke_or_failed_is_not_stored(rig):
    rig.origin.on("breaks", stream(delta("Half"), ending=Ending.CLOSE), whole(b"{}", status=500), whole(completion("Whole.")))
    name = await begin(rig)
    assert not (await say(rig, name, "One?", model="breaks", stream=True)).whole
    assert (await say(rig, name, "Two?", model="breaks")).status >= 500
    assert await messages(rig, name) == []
    await say(rig, name, "Three?", model="breaks")
    assert await messages(rig, name) == [("user", "Three?"), ("assistant", "Whole.")]


async def test_a_client_that_leaves_in_the_middle_leaves_no_half_turn(rig):
    rig.origin.on("left", stream(delta("Half"), ending=Ending.HANG))
    name = await begin(rig)
    visit = await (await Visit.open(rig.url)).post(PATH, {"conversation_id": name, "message": "One?", "model": "left", "stream": True})
    await visit.head()
    await visit.some()
    await visit.leave(reset=True)
    rig.daemon.settled("left")
    assert await messages(rig, name) == []


async def test_edit_and_answer_again(rig):
    rig.origin.on("edit", whole(completion("A.")), whole(completion("B.")), whole(completion("C.")))
    name = await begin(rig)
    await say(rig, name, "One?", model="edit")
    await say(rig, name, "Two?")
    await say(rig, name, "Two, again?", history=2)
    assert await messages(rig, name) == [("user", "One?"), ("assistant", "A."), ("user", "Two, again?"), ("assistant", "C.")]


async def test_of_two_writers_at_once_one_wins_and_the_other_is_told(rig):
    gate = Gate()
    rig.origin.on("race", [gate, *whole(completion("First."))], whole(completion("Second.")))
    name = await begin(rig)
    first = asyncio.create_task(say(rig, name, "One?", model="race"))
    assert await asyncio.to_thread(gate.reached.wait, 10)
    second = await say(rig, name, "Two?", model="race")
    assert (second.status, second.error()["code"], second.headers["x-should-retry"]) == (409, "conversation_busy", "false")
    gate.open()
    assert (await first).status == 200
    assert (await say(rig, name, "Two?")).status == 200
    assert [content for _, content in await messages(rig, name)] == ["One?", "First.", "Two?", "Second."]
    assert len(rig.origin.asked("race")) == 2


async def test_many_writers_lose_nothing_that_was_answered(rig):
    rig.origin.on("crowd", whole(completion("Yes.")))
    name = await begin(rig)
    answers = await asyncio.gather(*(say(rig, name, f"{number}?", model="crowd") for number in range(12)))
    won = {f"{number}?" for number, answer in enumerate(answers) if answer.status == 200}
    assert {answer.status for answer in answers} <= {200, 409}
    assert {content for role, content in await messages(rig, name) if role == "user"} == won
    assert len(rig.origin.asked("crowd")) == len(won)


async def test_a_repeated_turn_is_answered_once_though_the_conversation_has_grown(rig):
    rig.origin.on("again", whole(completion("Once.")))
    name = await begin(rig)
    first = await ask(rig.url, PATH, {"conversation_id": name, "message": "One?", "model": "again"}, Idempotency_Key="turn-1")
    second = await ask(rig.url, PATH, {"conversation_id": name, "message": "One?", "model": "again"}, Idempotency_Key="turn-1")
    assert (first.body, second.headers["idempotent-replayed"]) == (second.body, "true")
    assert len(await messages(rig, name)) == 2
    other = await ask(rig.url, PATH, {"conversation_id": await begin(rig), "message": "One?", "model": "again"}, Idempotency_Key="turn-1")
    assert (other.status, other.error()["code"]) == (409, "idempotency_key_reused")


async def test_a_conversation_that_is_begun_twice_under_one_key_is_one(rig):
    """Also when both ask at once, and when the first answer is lost in a crash."""
    document = {"messages": [{"role": "system", "content": "Be brief."}]}
    headers = {"authorization": OTHER, "idempotency_key": "begin-1"}
    first, second = await asyncio.gather(*[ask(rig.url, "/v1/conversations", document, **headers) for _ in range(2)])
    rig.daemon.kill()
    rig.daemon.start()
    third = await ask(rig.url, "/v1/conversations", document, **headers)
    assert first.body == second.body == third.body
    assert sorted("idempotent-replayed" in one.headers for one in (first, second)) == [False, True]
    assert (third.headers["idempotent-replayed"], third.headers["x-request-id"]) == ("true", first.headers["x-request-id"])
    listed = await ask(rig.url, "/v1/conversations", method="GET", authorization=OTHER)
    assert [one["conversation_id"] for one in listed.json()["data"]] == [first.json()["conversation_id"]]
    other = await ask(rig.url, "/v1/conversations", {}, **headers)
    assert (other.status, other.error()["code"]) == (409, "idempotency_key_reused")
    wrong = await ask(rig.url, "/v1/conversations", {}, idempotency_key="a" * 256)
    assert (wrong.status, wrong.error()["param"]) == (400, "Idempotency-Key")
    await ask(rig.url, f"/v1/conversations/{first.json()['conversation_id']}", method="DELETE", authorization=OTHER)


async def test_conversations_are_the_callers_own(rig):
    rig.origin.on("own", whole(completion("Mine.")))
    name = await begin(rig)
    await say(rig, name, "One?", model="own")
    for answer in (
        await look(rig, name, Authorization=OTHER),
        await look(rig, name, "/export", Authorization=OTHER),
        await ask(rig.url, f"/v1/conversations/{name}", method="DELETE", Authorization=OTHER),
        await ask(rig.url, PATH, {"conversation_id": name, "message": "Two?", "model": "own"}, Authorization=OTHER),
    ):
        assert (answer.status, answer.error()["code"]) == (404, "conversation_not_found")
    listed = await ask(rig.url, "/v1/conversations", method="GET", Authorization=OTHER)
    assert name not in [one["conversation_id"] for one in listed.json()["data"]]
    assert len(await messages(rig, name)) == 2


async def test_they_are_listed_page_by_page_exported_and_deleted(rig):
    names = [await begin(rig, messages=[{"role": "user", "content": str(number)}]) for number in range(5)]
    found, after = [], ""
    while True:
        page = (await ask(rig.url, f"/v1/conversations?limit=2{after}", method="GET")).json()
        found += [one["conversation_id"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={found[-1]}"
    assert found[:5] == names[::-1]
    assert len(found) == len(set(found))
    nowhere = await ask(rig.url, "/v1/conversations?after=nowhere", method="GET")
    assert (nowhere.status, nowhere.error()["param"]) == (400, "after")
    lines = (await look(rig, "export")).body.splitlines()
    assert [json.loads(line)["conversation_id"] for line in lines] == found
    one = await look(rig, names[0], "/export")
    assert (one.json()["messages"], "attachment" in one.headers["content-disposition"]) == ([{"role": "user", "content": "0"}], True)
    gone = await ask(rig.url, f"/v1/conversations/{names[0]}", method="DELETE")
    assert gone.json()["deleted"] is True
    assert (await look(rig, names[0])).status == 404
    assert (await ask(rig.url, f"/v1/conversations/{names[0]}", method="DELETE")).status == 404


async def test_a_conversation_deleted_while_its_turn_runs_stays_deleted(rig):
    gate = Gate()
    rig.origin.on("deleted", [gate, *whole(completion("Late."))])
    name = await begin(rig)
    running = asyncio.create_task(say(rig, name, "One?", model="deleted"))
    assert await asyncio.to_thread(gate.reached.wait, 10)
    assert (await ask(rig.url, f"/v1/conversations/{name}", method="DELETE")).status == 200
    gate.open()
    assert (await running).status == 200
    assert (await look(rig, name)).status == 404


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"conversation_id": "c_" + name_text(b"nowhere!")}, 404, "conversation_not_found"),
        ({"conversation_id": "c_!!"}, 400, None),
        ({"conversation_id": "12345678"}, 400, None),
        ({"conversation_id": 7}, 400, None),
        ({"history": 3}, 404, "conversation_not_found"),
        ({"history": -1}, 400, None),
        ({"history": True}, 400, None),
        ({"message": 5}, 400, None),
        ({"messages": []}, 400, None),
    ],
)
async def test_what_cannot_be_a_turn_is_refused(rig, more, status, code):
    name = await begin(rig)
    answer = await ask(rig.url, PATH, {"conversation_id": name, "message": "One?", "model": "refused", **more})
    assert answer.status == status, answer.body
    assert code in (None, answer.error()["code"])
    assert rig.origin.asked("refused") == []


@pytest.mark.parametrize("body", [b"[]", b'{"x":1}', b'{"messages":[1]}', b"{"])
async def test_what_cannot_be_a_conversation_is_refused(rig, body):
    assert (await ask(rig.url, "/v1/conversations", body)).status == 400


async def test_they_outlive_the_process(launch, origin):
    daemon = launch(upstreams={"o": {"kind": "openai", "base_url": origin.url}}, models={"*": "o"})
    origin.on("kept", whole(completion("Yes.")))
    name = (await ask(daemon.url, "/v1/conversations", {})).json()["conversation_id"]
    assert (await ask(daemon.url, PATH, {"conversation_id": name, "message": "One?", "model": "kept"})).status == 200
    daemon.kill()  # what a client has seen whole is on disk
    daemon.start()
    found = (await ask(daemon.url, f"/v1/conversations/{name}", method="GET")).json()
    assert [one["content"] for one in found["messages"]] == ["One?", "Yes."]


async def test_the_client_talks_for_three_turns_and_sends_little(rig):
    rig.origin.on("client", *(stream(delta(f"Answer {number}.", finish="stop"), usage_event(1, 1), DONE) for number in (1, 2, 3)))

    def run() -> list[str]:
        with Client(Settings(rig.url, KEY, "client", timeout=20)) as client:
            chat = client.chat("Be brief.")
            return ["".join(chat.send(f"Question {number}?")) for number in (1, 2, 3)]

    assert await asyncio.to_thread(run) == ["Answer 1.", "Answer 2.", "Answer 3."]
    assert [content for _, content in said(rig, "client")[-1]] == [
        *("Be brief.", "Question 1?", "Answer 1.", "Question 2?", "Answer 2.", "Question 3?"),
    ]
    assert max(row["bytes_in"] for row in rig.daemon.settled("client", 3)[1:]) <= 120


async def test_the_client_sends_everything_again_when_the_server_forgot(rig):
    rig.origin.on("forgot", stream(delta("Yes.", finish="stop"), DONE))

    def run() -> None:
        with Client(Settings(rig.url, KEY, "forgot", timeout=20)) as client:
            chat = client.chat()
            assert "".join(chat.send("One?")) == "Yes."
            asyncio.run(ask(rig.url, f"/v1/conversations/c_{name_text(chat.transcript.name)}", method="DELETE"))
            assert "".join(chat.send("Two?")) == "Yes."

    await asyncio.to_thread(run)
    assert [content for _, content in said(rig, "forgot")[-1]] == ["One?", "Yes.", "Two?"]


async def test_an_error_in_protobuf_names_the_conversation(rig):
    body = pb.ChatCompletionRequest(model="x", messages=[pb.Message(content="a")], conversation=b"nowhere-", stream=True)
    visit = await Visit.open(rig.url)
    await visit.say(request("POST", PATH, body.SerializeToString(), {"content-type": KIND}))
    answer = await visit.rest()
    assert (answer.status, pb.Error.FromString(answer.body).code) == (404, "conversation_not_found")
    await visit.leave()


async def test_a_turn_is_not_lost_though_its_conversation_was_old_enough_to_go(launch, origin):
    config = {
        "upstreams": {"origin": at(origin)},
        "models": MODELS,
        "storage": {"url": "sqlite:///proxyd.db", "retain": {"conversations": "1s"}},
    }
    daemon = launch(**config)
    gate = Gate()
    origin.on("late", stream(delta("So "), gate, delta("late.", finish="stop"), usage_event(1, 2), DONE))
    name = (await ask(daemon.url, "/v1/conversations", {"messages": [{"role": "user", "content": "Hi"}]})).json()["conversation_id"]
    visit = await (await Visit.open(daemon.url)).post(PATH, {"conversation_id": name, "message": "Late?", "model": "late", "stream": True})
    await visit.head()
    await asyncio.sleep(1.2)
    assert (await ask(daemon.ops, "/db/prune", {})).status == 200
    gate.open()
    assert (await visit.rest()).whole
    await visit.leave()
    found = (await ask(daemon.url, f"/v1/conversations/{name}", method="GET")).json()
    assert [one["content"] for one in found["messages"]] == ["Hi", "Late?", "So late."]


async def test_what_a_crash_leaves_of_a_turn_counts_the_history_that_the_upstream_read(launch, origin):
    daemon = launch(upstreams={"origin": at(origin)}, models=MODELS)
    gate = Gate()
    origin.on("lost", stream(delta("a"), gate, DONE))
    said = [{"role": "user", "content": "many words " * 100}]
    name = (await ask(daemon.url, "/v1/conversations", {"messages": said})).json()["conversation_id"]
    visit = await (await Visit.open(daemon.url)).post(PATH, {"conversation_id": name, "message": "?", "model": "lost", "stream": True})
    await visit.head()
    await visit.until(b'"a"')
    await becomes(lambda: daemon.rows("lost")[0]["completion_tokens"])
    daemon.kill()
    await visit.leave()
    daemon.start()
    (row,) = daemon.rows("lost")
    assert (row["state"], row["tokens_source"], row["completion_tokens"]) == ("interrupted", "estimated", 1)
    assert 200 < row["prompt_tokens"] < 400


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_came_compressed_unasked_is_read_by_all(rig, streamed):
    model = f"squeezed-{streamed}"
    coded = gzip.compress(completion("Hello there"))
    rig.origin.on(model, whole(coded, headers={"content-encoding": "gzip"}))
    plain = await ask(rig.url, PATH, {"model": model, "messages": [], "stream": streamed})
    assert (plain.body, plain.headers["content-encoding"]) == (coded, "gzip")
    packed = await ask(rig.url, PATH, asked(model, stream=streamed), Content_Type=KIND)
    assert (packed.status, b"Hello there" in packed.body) == (200, True)
    name = await begin(rig)
    assert (await say(rig, name, "Who?", model=model, stream=streamed)).body == coded
    assert await messages(rig, name) == [("user", "Who?"), ("assistant", "Hello there")]
    first, again = [await ask(rig.url, PATH, asked(model, stream=streamed), Content_Type=KIND, Idempotency_Key=model) for _ in range(2)]
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert again.headers["idempotent-replayed"] == "true"
