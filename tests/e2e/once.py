"""What the tests of keys and of resuming share: two callers, one origin, short ways to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.client import PATH, Visit, ask, chat
from tests.e2e.conftest import at
from tests.origin import DONE, completion, delta, stream, usage_event, whole
from tests.process import KEY

if TYPE_CHECKING:
    from tests.origin import Origin

OTHER_KEY = "another-key-0123456789abcdef"
KEYS = {"keys": [{"name": "tester", "key": KEY}, {"name": "other", "key": OTHER_KEY}]}
OTHER = f"Bearer {OTHER_KEY}"
MODELS = {"*": {"upstream": "origin", "retry": {"attempts": 1}}}
EVENTS = [delta("a"), delta("b"), delta("c"), delta("", finish="stop"), usage_event(4, 3), DONE]


def served(origin: Origin, **more: object) -> dict[str, object]:
    """Settings of a daemon with two callers and one origin."""
    return {"upstreams": {"origin": at(origin)}, "models": MODELS, "auth": KEYS, **more}


def answering(streamed, text: str = "a") -> list:
    """A whole answer."""
    return stream(delta(text), delta("", finish="stop"), usage_event(4, 3), DONE) if streamed else whole(completion(text))


def told(answer) -> tuple:
    """What must be the same again: status, headers but for the clock's and the mark, and the body."""
    fixed = {name: value for name, value in answer.headers.items() if name not in ("date", "idempotent-replayed", "connection")}
    return answer.status, fixed, answer.body, answer.whole


async def begun(rig, model: str, key: str, **more) -> Visit:
    """A client that has begun a stream and read its first event."""
    visit = await (await Visit.open(rig.url)).post(PATH, chat(model, stream=True, **more), Idempotency_Key=key)
    await visit.head()
    await visit.until(delta("a"))
    return visit


def again(rig, name: str, received: object = "", method: str = "GET", **headers: str):
    """Ask for a stream by its name."""
    return ask(rig.url, f"/v1/streams/{name}" + (f"?received={received}" if received != "" else ""), method=method, **headers)
