"""Makes the vocabularies in `proxyd/wire/vocab` out of tiktoken's rank files: `python bench/vocab.py FILE.tiktoken[.gz] …`.

The rank files are 6 MB of base64, one token a line in the order of the ranks, so the rank is only the line's number.
Kept are the tokens in that order: their count (4 bytes, big-endian), their lengths (a byte each), their bytes; under xz.
"""

from __future__ import annotations

import base64
import gzip
import lzma
import pathlib
import sys

TARGET = pathlib.Path(__file__).parents[1] / "proxyd" / "wire" / "vocab"
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def pack(ranks: bytes) -> bytes:
    """A rank file's tokens, compactly. Raises ValueError if its ranks are not 0, 1, 2, …."""
    tokens = []
    for number, line in enumerate(ranks.splitlines()):
        token, rank = line.split()
        if int(rank) != number:
            raise ValueError(f"line {number}: rank {rank!r}")
        tokens.append(base64.b64decode(token, validate=True))
    flat = len(tokens).to_bytes(4, "big") + bytes(map(len, tokens)) + b"".join(tokens)
    return lzma.compress(flat, format=lzma.FORMAT_XZ, filters=FILTERS)


def main(paths: list[str]) -> None:
    for path in map(pathlib.Path, paths):
        raw = path.read_bytes()
        packed = pack(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        target = TARGET / f"{path.name.partition('.')[0]}.xz"
        target.write_bytes(packed)
        print(f"{target.name}: {len(packed)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
