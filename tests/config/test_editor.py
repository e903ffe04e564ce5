"""The JSON Schema says the same as the reader, as far as it can."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from proxyd.config import units
from proxyd.config.editor import json_schema
from proxyd.config.tree import Items, Mapping, grow
from tests.config.samples import GOOD, WRONG_SHAPE

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def document(text):
    """The file as an editor sees it: by YAML 1.2, without references put in."""

    def value(node):
        if isinstance(node, Mapping):
            return {key.text: value(child) for key, child in node.entries}
        if isinstance(node, Items):
            return [value(item) for item in node.items]
        if not node.plain:
            return node.text
        try:
            return units.plain(node.text)
        except ValueError:
            return node.text or None

    root, mistakes = grow(text, "c.yaml")
    assert mistakes == []
    return value(root)


def test_the_example_is_right_for_an_editor(validator):
    assert list(validator.iter_errors(document(EXAMPLE.read_text("utf-8")))) == []


@pytest.mark.parametrize("name", GOOD)
def test_what_the_reader_takes_the_editor_takes(name, validator):
    assert [error.message for error in validator.iter_errors(document(GOOD[name]))] == []


@pytest.mark.parametrize("name", WRONG_SHAPE)
def test_what_has_the_wrong_shape_the_editor_underlines(name, validator):
    assert not validator.is_valid(document(WRONG_SHAPE[name]))


def test_every_field_is_described_and_shows_its_default():
    schema = json_schema()
    upstream = schema["$defs"]["Upstream"]["properties"]
    assert upstream["max_connections"]["default"] == 256
    assert schema["$defs"]["Timeouts"]["properties"]["connect"]["default"] == "5s"
    assert schema["$defs"]["Limits"]["properties"]["body"]["default"] == "32MiB"
    assert schema["properties"]["listen"]["description"].endswith("(boot: a change waits for a restart)")
    route = schema["$defs"]["Model"]["anyOf"][2]
    for struct in [schema, route, *(each for each in schema["$defs"].values() if "properties" in each)]:
        assert struct["additionalProperties"] is False
        assert all(field.get("description") for field in struct["properties"].values())


def test_every_default_is_right_by_its_own_schema():
    schema = json_schema()

    def walk(part):
        if isinstance(part, dict):
            if "default" in part and isinstance(part.get("description"), str):
                Draft202012Validator({**part, "$defs": schema["$defs"]}).validate(part["default"])
                found.append(part["default"])
            for each in part.values():
                walk(each)
        elif isinstance(part, list):
            for each in part:
                walk(each)

    found = []
    walk(schema)
    assert len(found) > 20
