"""Which keys may stand in the file: never no to one that does, hardly ever yes to one that does not (a Bloom filter).

A key that is certainly new needs no look into the file, and its claim can be written together with the ledger's row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = 1 << 20
"""Bytes. A million keys are taken for known wrongly in 2.4 % of cases (four probes in eight bits each)."""
ROOM = 1_000_000
"""Keys after which it is worth making anew, without those that have expired."""
_MASK = SIZE * 8 - 1


class Known:
    """Begins by taking every key for known, until it has `learnt` which ones there are."""

    __slots__ = ("_bits", "_young", "count")

    def __init__(self) -> None:
        self._bits: bytearray | None = None
        self._young: bytearray | None = bytearray(SIZE)
        """What was added since it began to learn."""
        self.count = 0

    def __contains__(self, name: tuple[str, str]) -> bool:
        """Whether this caller's key may stand in the file."""
        bits = self._bits
        return bits is None or all(bits[place >> 3] >> (place & 7) & 1 for place in _places(name))

    def add(self, name: tuple[str, str]) -> None:
        """Take note of a key that is about to be claimed."""
        self.count += 1
        for bits in (self._bits, self._young):
            if bits is not None:
                _mark(bits, name)

    @property
    def listening(self) -> bool:
        """Whether it is about to learn."""
        return self._young is not None

    def listen(self) -> bool:
        """Begin to collect what is added from now on; False if it does already."""
        if self._young is not None:
            return False
        self._young = bytearray(SIZE)
        return True

    def learn(self, found: bytearray, count: int) -> None:
        """Take over what the file holds: all that was written there before `listen` must be in `found`."""
        young = int.from_bytes(self._young or b"", "little")
        self._bits = bytearray((int.from_bytes(found, "little") | young).to_bytes(SIZE, "little"))
        self._young, self.count = None, count


def collect(names: Iterable[tuple[str, str]]) -> tuple[bytearray, int]:
    """Mark all these keys; how many they were. For any thread."""
    bits, count = bytearray(SIZE), 0
    for name in names:
        _mark(bits, name)
        count += 1
    return bits, count


def _mark(bits: bytearray, name: tuple[str, str]) -> None:
    for place in _places(name):
        bits[place >> 3] |= 1 << (place & 7)


def _places(name: tuple[str, str]) -> tuple[int, int, int, int]:
    # Python's own hash: 64 bits, and keyed anew in each process, so that nobody can aim.
    first = hash(name)
    step = first >> 23 | 1
    return first & _MASK, first + step & _MASK, first + 2 * step & _MASK, first + 3 * step & _MASK
