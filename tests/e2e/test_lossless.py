"""At DETAIL_FULL and 0 ms nothing is lost on the way through the daemon: every chat stream of the corpus comes out of its frames again."""

from __future__ import annotations

import gzip
import json

import pytest

from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto_rebuild import Rebuilder, same
from tests.e2e.client import ask
from tests.e2e.conftest import at, rigged
from tests.e2e.corpus import Case, cases
from tests.e2e.test_protobuf import DELIMITED, KIND, PATH, asked, text_of
from tests.wire.pb_samples import messages, sse_data
from tests.wire.test_proto_rebuild import wanted

EXACT = pb.Delivery(max_delay_ms=0, detail=pb.DETAIL_FULL)
CHATS = [case for case in cases() if case.sse and case.endpoint == PATH and case.status < 400]
STREAMS = [case for case in CHATS if not case.error_first and not case.encoded]
REFUSED = [case for case in CHATS if case.error_first and not case.encoded]
CODED = [case for case in CHATS if case.encoded]
NAMED = {"ids": lambda case: case.name if isinstance(case, Case) else None}


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """One daemon; an upstream of its own for each case, so that no case's failures open a breaker for another."""

    def config(origin) -> dict:
        routes = {case.name: {"upstream": case.name, "retry": {"attempts": 1}} for case in CHATS}
        return {"upstreams": {case.name: at(origin) for case in CHATS}, "models": routes}

    with rigged(tmp_path_factory.mktemp("lossless"), config) as found:
        yield found


async def served(rig, case: Case, size: int):
    rig.origin.on(case.name, case.script(size))
    return await ask(rig.url, PATH, asked(case.name, stream=True, delivery=EXACT), Content_Type=KIND)


def test_they_are_all_here():
    assert (len(STREAMS) > 40, len(REFUSED) > 1, len(CODED) > 0) == (True, True, True)


@pytest.mark.parametrize("case", STREAMS, **NAMED)
async def test_the_upstreams_events_come_out_of_the_frames_again(rig, case):
    """Equal as JSON, in order, however the upstream cut them; and what breaks or ends too early ends with an error that is ours."""
    expected = wanted(sse_data(case.body))
    ended = case.facts["complete"] or case.facts["had_error"]
    for size in (7, 4096):
        answer = await served(rig, case, size)
        assert (answer.status, answer.headers["content-type"]) == (200, DELIMITED)
        rebuilder = Rebuilder()
        got = [json.loads(event) for message in messages(answer.body) for event in rebuilder.feed(message)]
        assert all(same(one, other) for one, other in zip(got, expected, strict=False))
        assert len(got) == len(expected) + (not ended)
        if not ended:
            assert got[-1]["error"]["code"] == ("upstream_incomplete" if case.clean else "upstream_cut")
        assert answer.whole == ended
        if case.facts["text_by_choice"].keys() <= {"0"}:
            assert text_of(answer.body) == "".join(case.facts["text_by_choice"].values())


@pytest.mark.parametrize("case", REFUSED, **NAMED)
async def test_a_stream_that_is_only_an_error_is_an_error(rig, case):
    answer = await served(rig, case, 4096)
    error = pb.Error.FromString(answer.body)
    assert (answer.headers["content-type"], answer.status >= 400) == (KIND, True)
    assert error.message


@pytest.mark.parametrize("case", CODED, **NAMED)
async def test_a_stream_that_came_compressed_unasked_cannot_be_read_and_is_refused(rig, case):
    assert gzip.decompress(case.body)
    answer = await served(rig, case, 4096)
    assert (answer.status, pb.Error.FromString(answer.body).code) == (502, "upstream_bad_response")
