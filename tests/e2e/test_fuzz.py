"""A few hundred mutations through the whole daemon; `bench/fuzz.py` runs more."""

import random

from tests.fuzz import Fuzz
from tests.fuzz_protobuf import ProtobufFuzz


async def test_mutated_answers_and_requests_break_nothing(tmp_path, origin):
    fuzz = Fuzz(tmp_path, origin, random.Random(20261121))
    try:
        await fuzz.answers(240)
        await fuzz.requests(400)
        assert fuzz.findings.wrong == []
        assert fuzz.findings.answers == 240
        framed = ProtobufFuzz(fuzz, random.Random(20261121))
        await framed.requests(1600)
        await framed.answers(160)
        assert fuzz.findings.wrong == []
        assert framed.reused > 1000
        assert framed.refused > 500
        assert fuzz.findings.requests > 1900
        fuzz.daemon.stop()
    finally:
        if fuzz.daemon.child is not None:
            fuzz.daemon.child.end()
