"""The short forms of a route, written out, so that one reader understands them all.

`x: ollama`  `x: [a, b]`  `x: {upstream: a, model: m}`  `x: {upstreams: [a, {upstream: b, weight: 2}]}`
"""

from __future__ import annotations

from msgspec.structs import replace

from proxyd.config.tree import Broken, Items, Mapping, Node, Scalar

ROUTE_KEYS = ("upstream", "model")
"""Keys that a route has as written, and `schema.Model` has not."""

FORMS = ("upstreams", *ROUTE_KEYS)
"""Keys of which each form has its own."""


class WrongForm(ValueError):  # noqa: N818 - it is a verdict on a form
    """Neither short nor long: the message says what to write, `at` is where."""

    def __init__(self, at: Node, message: str) -> None:
        super().__init__(message)
        self.at = at


def long_route(node: Node) -> Node:
    """Write out a route: the mapping of `schema.Model`, with `upstreams` as a list. Raises WrongForm.

    New nodes stand where the words that they are made of stand.
    """
    if isinstance(node, Scalar):
        return Mapping(((_key("upstreams", node), _list(node)),), node.line, node.column)
    if isinstance(node, Items):
        return Mapping(((_key("upstreams", node), node),), node.line, node.column)
    if isinstance(node, Broken):
        return node
    keys = {key.text: key for key, _ in node.entries}
    if "upstream" in keys and "upstreams" in keys:
        raise WrongForm(keys["upstreams"], "'upstream' and 'upstreams' exclude each other; write one of them")
    if "upstream" in keys:
        target = Mapping(tuple((key, value) for key, value in node.entries if key.text in ROUTE_KEYS), node.line, node.column)
        rest = tuple((key, value) for key, value in node.entries if key.text not in ROUTE_KEYS)
        return replace(node, entries=((_key("upstreams", keys["upstream"]), _list(target)), *rest))
    if "model" in keys and "upstreams" in keys:
        raise WrongForm(keys["model"], "'model' goes with 'upstream'; in 'upstreams' each has its own")
    if "upstreams" not in keys:
        raise WrongForm(node, "the route has no 'upstream' (or 'upstreams')")
    upstreams = node.get("upstreams")
    if isinstance(upstreams, Scalar):
        raise WrongForm(upstreams, "'upstreams' is a list: [a, b]; for a single one write 'upstream'")
    return node


def long_target(node: Node) -> Node:
    """Write out one upstream of a route: a name alone is `{upstream: name}`."""
    if isinstance(node, Scalar):
        return Mapping(((_key("upstream", node), node),), node.line, node.column)
    return node


def _key(text: str, at: Node) -> Scalar:
    return Scalar(text, plain=True, line=at.line, column=at.column)


def _list(node: Node) -> Items:
    return Items((node,), node.line, node.column)
