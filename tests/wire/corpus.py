"""The wire corpus: what upstreams sent, and what is to be read of it."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from proxyd.model import Format, Usage
from proxyd.wire.meter import Meter

FOLDER = Path(__file__).parents[1] / "corpus"


@dataclass(frozen=True, slots=True)
class Case:
    """One case: the bytes, the facts that its sidecar tells, and how it was sent."""

    name: str
    body: bytes
    facts: dict
    context: dict

    @property
    def clean(self) -> bool:
        return self.context["transport_end"] == "clean"

    @property
    def sse(self) -> bool:
        return self.context["format"] == "sse"

    def meter(self, **more) -> Meter:
        response = self.context["response"]
        return Meter(
            Format(self.context["format"]),
            status=response["status"],
            content_encoding=response["headers"].get("content-encoding", "identity"),
            endpoint=self.context["endpoint"],
            **more,
        )


@functools.cache
def load(name: str) -> Case:
    sidecar = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    context = sidecar.pop("context")
    return Case(sidecar.pop("case"), (FOLDER / f"{name}.body").read_bytes(), sidecar, context)


CASES = sorted(path.stem for path in FOLDER.glob("*.body"))


def run(meter: Meter, pieces: list[bytes], *, clean: bool) -> tuple[bytes, bytes]:
    """What left by itself, and what was held."""
    left = b"".join(meter.feed(piece) for piece in pieces)
    left += meter.end(clean)
    return left, meter.take_held()


PRICED_PARTS = ("cache_write_tokens", "audio_input_tokens", "audio_output_tokens")
"""Read for prices only; the corpus says nothing of them."""


def facts(meter: Meter) -> dict:
    """What was read, in the sidecars' shape."""
    got = asdict(meter.read())
    got.pop("service_tier")
    got["text_by_choice"] = meter.texts()
    usage = got.pop("usage") or asdict(Usage())
    got.update({name: count for name, count in usage.items() if name not in PRICED_PARTS})
    for member in ("finish_reasons", "text_by_choice"):
        got[member] = {str(index): value for index, value in got[member].items()}
    return got
