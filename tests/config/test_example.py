"""config.example.yaml shows all there is."""

from pathlib import Path

import pytest

from proxyd.config.load import examine_file, load_file
from proxyd.config.shape import Shape, shape_of_config
from proxyd.config.units import NOTHING

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
ENVIRON = {"OPENAI_API_KEY": "a", "AZURE_API_KEY": "b", "LAPTOP_KEY": "c"}


def fields(shape: Shape, path=""):
    """Every field of the schema: its path, its default (or nothing) and whether it has one."""
    if shape.item is not None:
        yield from fields(shape.item, f"{path}.*")
    for name, field in shape.fields.items():
        here = f"{path}.{name}".lstrip(".")
        if field.struct is None:
            yield here, shape.defaults.get(name, ...)
        yield from fields(field, here)


def shown(value, shape: Shape, path=""):
    """Every value in the loaded example, by its path in the schema."""
    if shape.item is not None:
        for each in value.values() if isinstance(value, dict) else value:
            yield from shown(each, shape.item, f"{path}.*")
    for name, field in shape.fields.items():
        here = f"{path}.{name}".lstrip(".")
        found = getattr(value, name)
        yield here, found
        if field.struct is None or found is not None:
            yield from shown(found, field, here)


def written(path):
    """Whether the last part of a path stands in the file as a key."""
    name = path.rsplit(".", 1)[-1]
    return any(line.strip().removeprefix("- ").startswith(f"{name}:") for line in EXAMPLE.read_text("utf-8").splitlines())


FIELDS = dict(fields(shape_of_config()))


def test_it_loads_without_a_warning():
    assert examine_file(EXAMPLE, ENVIRON).warnings == ()


@pytest.mark.parametrize("path", FIELDS)
def test_it_shows_every_field_with_its_default(path):
    assert written(path)
    values = [value for where, value in shown(load_file(EXAMPLE, ENVIRON), shape_of_config()) if where == path]
    assert values
    if FIELDS[path] not in (..., None, (), {}):
        assert FIELDS[path] in values


def test_every_value_that_differs_from_its_default_is_marked():
    """A reader must be able to take an unmarked line for the default; required and empty fields are exempt."""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        name, colon, rest = line.strip().removeprefix("- ").partition(": ")
        known = [path for path in FIELDS if path.rsplit(".", 1)[-1] == name and FIELDS[path] is None]
        if colon and known and "#" in rest and not line.startswith("#") and "> " not in rest and "# >" not in rest:
            assert rest.split()[0] in NOTHING, line
