"""`proxyd schema`: the JSON Schema of the YAML."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxyd.config.editor import json_schema

if TYPE_CHECKING:
    import argparse

HELP = """Print the JSON Schema (2020-12) of the YAML, made from what this version reads.

Editors with yaml-language-server complete and check the file by it when its first line is
  # yaml-language-server: $schema=proxyd.schema.json"""
EXAMPLES = """proxyd schema > proxyd.schema.json"""


def arguments(_parser: argparse.ArgumentParser) -> None:
    """Take none of its own: the schema is the same for every file."""


def run(_args: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
