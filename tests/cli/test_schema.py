"""`proxyd schema`."""

import json

from proxyd.cli import main
from proxyd.config.editor import json_schema


def test_it_prints_the_schema(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
