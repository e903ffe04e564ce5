"""Time series in Prometheus's text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats): counted for little, told in pieces.

prometheus-client's own counters cost a request 10 µs where these cost 3.5, and a scrape of ten thousand series held the interpreter for
90 ms (`python -m bench.scrape`), in which streams stood still; it tells what is known of the process.

For one thread. Ten thousand series take some ten milliseconds to tell, for which no stream should wait: `Family.pieces` stops now and then.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LINES = 500
"""Of one piece, or a few more: a fifth of a millisecond."""
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Number:
    """A counter's or a gauge's series. Counters are only ever increased."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add."""
        self.value += amount

    def dec(self) -> None:
        """Take one off a gauge."""
        self.value -= 1.0

    def set(self, value: float) -> None:
        """Set a gauge."""
        self.value = value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """As it is told."""
        yield f"{name}{{{labels}}} {float(self.value)!r}\n" if labels else f"{name} {float(self.value)!r}\n"


class Distribution:
    """A histogram's series: how many observations fell under each bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """As it is told: each bucket holds all that lies under its bound."""
        before, comma, sofar = f"{name}_bucket{{", "," if labels else "", 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            sofar += count
            yield f'{before}{labels}{comma}le="{bound}"}} {sofar}.0\n'
        braced = f"{{{labels}}}" if labels else ""
        yield f"{name}_count{braced} {sofar}.0\n{name}_sum{braced} {self._sum!r}\n"


S = TypeVar("S", Number, Distribution)


class Family(Generic[S]):
    """The series of one name, by the values of their labels."""

    def __init__(self, name: str, kind: str, about: str, labels: Sequence[str]) -> None:
        """`kind` is counter, gauge or histogram."""
        self.name = name
        self._head = f"# HELP {name} {about}\n# TYPE {name} {kind}\n"
        self._names = labels
        self._series: dict[tuple[str, ...], tuple[str, S]] = {}

    def _make(self) -> S:
        raise NotImplementedError

    def labels(self, *values: str) -> S:
        """Find or make the series with these values, in the order of the names."""
        found = self._series.get(values)
        if found is None:
            told = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in sorted(zip(self._names, values, strict=True)))
            found = self._series[values] = told, self._make()
        return found[1]

    def remove(self, *values: str) -> None:
        """Tell of this series no more."""
        self._series.pop(values, None)

    def pieces(self) -> Iterator[str]:
        """Tell all, some lines at a time; between two pieces series may change and come."""
        lines = [self._head]
        for labels, series in list(self._series.values()):
            lines += series.lines(self.name, labels)
            if len(lines) >= LINES:
                yield "".join(lines)
                lines = []
        yield "".join(lines)


class Numbers(Family[Number]):
    """Counters or gauges."""

    def _make(self) -> Number:
        return Number()


class Distributions(Family[Distribution]):
    """Histograms, all with the same bounds."""

    def __init__(self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(name, "histogram", about, labels)
        self._bounds = bounds

    def _make(self) -> Distribution:
        return Distribution(self._bounds)
