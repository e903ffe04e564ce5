"""The structs themselves."""

import json
from typing import Any

import pytest

from proxyd.config import schema
from proxyd.config.load import parse
from proxyd.config.mistakes import ConfigError
from proxyd.config.not_built import NOT_BUILT, NOT_BUILT_VALUES
from proxyd.config.schema import Config, Key, Kind, Upstream
from proxyd.config.shape import Shape, shape_of_config
from tests.config.samples import secrets


def walk(shape: Shape, path=""):
    if shape.item is not None:
        yield from walk(shape.item, f"{path}.*")
    for name, field in shape.fields.items():
        yield f"{path}.{name}".lstrip("."), field
        yield from walk(field, f"{path}.{name}".lstrip("."))


def sections(shape):
    if shape.struct is not None:
        yield shape
    for inner in (shape.item, *shape.fields.values()):
        if inner is not None:
            yield from sections(inner)


def test_no_struct_shows_a_secret():
    config = Config(
        upstreams={"a": Upstream(kind=Kind.OPENAI, base_url="http://h", api_key="sk-1")},
        models={},
        auth=schema.Auth(keys=(Key(name="laptop", key="sk-2"),)),
    )
    assert "sk-" not in repr(config)
    assert "laptop" in repr(config)


def test_every_field_that_is_marked_secret_is_hidden():
    found = 0
    for section in sections(shape_of_config()):
        shown = repr(section.struct(**{name: "sk-1" if field.secret else "shown" for name, field in section.fields.items()}))
        assert "sk-1" not in shown
        assert shown.count("shown") == sum(not field.secret for field in section.fields.values())
        found += shown.count("…")
    assert found >= 3


def test_what_is_built_is_not_said_to_be_missing():
    """Whoever adds a field deletes its line from NOT_BUILT."""
    built = {path for path, _ in walk(shape_of_config())}
    assert not built & NOT_BUILT
    assert not {value for _, value in NOT_BUILT_VALUES} & set(Kind)


def test_boot_fields_are_those_that_a_running_process_cannot_change():
    otel = {"otel", "otel.endpoint", "otel.service_name", "otel.headers"}
    assert {path for path, field in walk(shape_of_config()) if field.boot} == {
        *("listen", "ops.listen", "environment", "storage.url", "tls"),
        *otel,
    }


@pytest.mark.parametrize("path", sorted(NOT_BUILT))
def test_what_is_not_built_is_refused_as_such(path):
    """It is no typo, and the message must not send anybody looking for one."""
    files = {
        "auth": {"keys": [{"name": "a", "key": "${KEY}"}]},
        "upstreams": {"a": {"kind": "echo"}},
        "models": {"m": {"upstream": "a"}},
    }
    here: Any = files
    *parents, last = path.split(".")
    for part in parents:
        here = (here[0] if isinstance(here, list) else next(iter(here.values()))) if part == "*" else here.setdefault(part, {})
    here[last] = {}
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps(files), filename="c.yaml", secrets=secrets())
    assert [mistake.message for mistake in caught.value.mistakes] == [f"{last!r} is not built yet in this version; remove it"]
