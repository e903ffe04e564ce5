"""Decoding as it arrives: what was sent comes out, however it is cut, and bombs do not go off."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.wire.inflate import Inflater

CODERS = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "raw": lambda plain: zlib.compress(plain)[2:-4],
    "members": lambda plain: gzip.compress(plain[:3]) + gzip.compress(plain[3:]),
}


@given(st.binary(max_size=300), st.sampled_from(sorted(CODERS)), st.lists(st.integers(0, 400), max_size=6))
def test_what_went_in_comes_out(plain, coder, cuts):
    coded = CODERS[coder](plain)
    offsets = [0, *sorted(min(cut, len(coded)) for cut in cuts), len(coded)]
    inflater = Inflater()
    out = [piece for a, b in itertools.pairwise(offsets) for piece in inflater.feed(coded[a:b])]
    assert b"".join(out) == plain
    assert not inflater.failed


def test_what_was_decodable_before_a_cut_comes_out():
    coder = zlib.compressobj(wbits=31)
    first = coder.compress(b"first") + coder.flush(zlib.Z_SYNC_FLUSH)
    assert b"".join(Inflater().feed(first + coder.compress(b"second" * 100)[:4])) == b"first"


def test_padding_after_the_end_is_let_be():
    inflater = Inflater()
    assert b"".join(inflater.feed(gzip.compress(b"x") + b"\x00" * 9)) == b"x"
    assert not inflater.failed


@pytest.mark.parametrize("coder", ["gzip", "zlib", "raw"])
def test_a_bomb_is_given_up_early(coder):
    coded = CODERS[coder](b"\x00" * (32 << 20))
    inflater = Inflater()
    assert sum(map(len, inflater.feed(coded))) <= (1 << 20) + 64 * len(coded)
    assert inflater.failed
    assert inflater.feed(coded) == []


@given(st.lists(st.integers(0, 200), max_size=5))
def test_what_comes_before_damage_comes_out_however_it_is_cut(cuts):
    coder = zlib.compressobj(wbits=31)
    coded = coder.compress(b"first") + coder.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 9
    offsets = [0, *sorted(min(cut, len(coded)) for cut in cuts), len(coded)]
    inflater = Inflater()
    assert b"".join(piece for a, b in itertools.pairwise(offsets) for piece in inflater.feed(coded[a:b])) == b"first"
    assert inflater.failed


@given(st.binary(max_size=200))
def test_damage_ends_it_and_never_raises(junk):
    Inflater().feed(gzip.compress(b"some text")[:15] + junk)
    Inflater().feed(junk)
