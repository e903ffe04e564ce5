"""`proxyd openapi`: the OpenAPI document of the clients' port."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = """Print the OpenAPI document (3.1) of the clients' port, as a running proxyd serves it at /openapi.json.

At /docs it shows the same for people, with a place to try each endpoint."""
EXAMPLES = """proxyd openapi > openapi.json
proxyd openapi | jq '.paths | keys'"""


def arguments(_parser: argparse.ArgumentParser) -> None:
    """Take none of its own: the endpoints are the same for every file."""


def run(_args: argparse.Namespace) -> int:
    """Print the document."""
    from proxyd.web.app import ENDPOINTS  # noqa: PLC0415 - `proxyd --help` imports no server
    from proxyd.web.openapi import document  # noqa: PLC0415

    print(json.dumps(document(ENDPOINTS), indent=2, ensure_ascii=False))
    return 0
