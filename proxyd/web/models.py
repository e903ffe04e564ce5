"""The models that a caller may use, as OpenAI lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.flow.admit import authenticate
from proxyd.web.document import tell
from proxyd.wire.body import MAX_MODEL_NAME

if TYPE_CHECKING:
    from proxyd.flow.runtime import Runtime
    from proxyd.web.downstream import Downstream

VARY = (b"Vary", b"Accept")


async def listed(runtime: Runtime, down: Downstream, _argument: str) -> None:
    """List the route table as OpenAI lists models: what this caller may use."""
    caller = await authenticate(runtime, down)
    listed = [_model(name, runtime) for name in runtime.snapshot.routes.listed(caller)]
    tell(down, {"object": "list", "data": listed}, VARY)


async def one(runtime: Runtime, down: Downstream, argument: str) -> None:
    """Show one model; ids may hold slashes, encoded or raw."""
    caller = await authenticate(runtime, down)
    routes = runtime.snapshot.routes
    proper = len(argument) <= MAX_MODEL_NAME and argument.isprintable()  # as a request's body has to name it
    if not proper or routes.resolve(argument) is None or not routes.allowed(caller, argument):
        raise ProxyError("model_not_found", f"The model {argument[:200]!r} does not exist here.", param="model")
    tell(down, _model(argument, runtime), VARY)


def _model(name: str, runtime: Runtime) -> dict[str, object]:
    return {"id": name, "object": "model", "created": runtime.started_at // 1_000_000, "owned_by": "proxyd"}
