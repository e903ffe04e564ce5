"""kill -9, for real: what was acknowledged is on disk."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests.store.rows import query, states

ROOT = Path(__file__).parents[2]
CYCLES = 12


def test_no_acknowledged_row_is_missing_after_a_loop_of_kills(tmp_path):
    """Each cycle kills the writer at another moment; every row it had spoken of is there, in the state it had spoken of."""
    path = tmp_path / "ledger.db"
    chance = random.Random(20261101)
    acknowledged: dict[int, str] = {}
    left_open = 0
    for _ in range(CYCLES):
        with subprocess.Popen([sys.executable, "-m", "tests.store.child", str(path), "strict"], cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"recovered %d\n" % left_open
            told = [child.stdout.readline() for _ in range(chance.randrange(1, 1500))]
            child.kill()
            told += child.stdout.readlines()
        for line in told:
            if line.endswith(b"\n"):
                word, number = line.split()
                acknowledged[int(number)] = {b"o": "open", b"s": "done"}[word]
        found = states(path)
        assert {number for number, state in acknowledged.items() if found.get(number) not in {state, "done", "interrupted"}} == set()
        assert {number for number, state in acknowledged.items() if state == "done" and found[number] != "done"} == set()
        left_open = sum(state == "open" for state in found.values())
    assert len(acknowledged) > CYCLES * 50
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
