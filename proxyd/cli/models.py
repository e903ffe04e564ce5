"""`proxyd models`: the route table as resolved, with the state of each upstream where a daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxyd.cli import Failed, config_path, ops, output

if TYPE_CHECKING:
    import argparse

    from proxyd.config.schema import Config

HELP = "Show the route table as resolved: each model, its upstreams in order, and their state if the daemon runs."
COLUMNS = tuple(output.Column(key, key.upper()) for key in ("model", "order", "upstream", "kind", "as", "strategy", "state"))
EXAMPLES = """
proxyd models
proxyd models -c config.yaml --format json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's own options."""
    output.add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from proxyd.config.load import look_into  # noqa: PLC0415 - `proxyd --help` loads no YAML
    from proxyd.daemon.run import environment  # noqa: PLC0415

    environ = environment()
    config = look_into(config_path(args, environ), environ)
    states = _states(config)
    rows: list[dict[str, Any]] = []
    for name, model in config.models.items():
        for place, target in enumerate(model.upstreams, 1):
            rows.append(
                {
                    "model": name,
                    "order": place,
                    "upstream": target.upstream,
                    "kind": config.upstreams[target.upstream].kind.value if target.upstream in config.upstreams else None,
                    "as": target.model or (f"without {model.strip_prefix!r}" if model.strip_prefix else "the same"),
                    "strategy": model.strategy.value if len(model.upstreams) > 1 else "",
                    "state": states.get(target.upstream, "unknown (no daemon answers)"),
                }
            )
    rows += [
        {"model": alias, "order": "", "upstream": "", "kind": "alias", "as": name, "strategy": "", "state": ""}
        for alias, name in config.aliases.items()
    ]
    output.show(COLUMNS, rows, args.format)
    return 0


def _states(config: Config) -> dict[str, str]:
    """Ask a running daemon's ops port; empty where none answers."""
    try:
        found = ops.ask(config, "GET", "/state")["upstreams"]
    except Failed:
        return {}
    return {name: facts["state"] + _probed(facts.get("probe")) for name, facts in found.items()}


def _probed(told: str | None) -> str:
    """What the last active probe said, if there was one."""
    return "" if told is None else ", probe ok" if told == "ok" else f", probe failed: {told}"
