"""A file → Config, or every mistake in it at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from proxyd.config.checks import check, warnings
from proxyd.config.mistakes import ConfigError, Mistake
from proxyd.config.read import read
from proxyd.config.schema import Config
from proxyd.config.secrets import MAX_FILE, Secrets, read_env
from proxyd.config.tree import MAX_BYTES, grow, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_ENV_BYTES = 65_536
"""What a `.env` file may hold."""
_WHERE_THINGS_ARE = frozenset({"listen", "ops", "storage"})
"""What commands that only look need to know for certain: the database and the ports."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A good configuration, and what is worth a look in it all the same."""

    config: Config
    warnings: tuple[Mistake, ...]
    files: tuple[Path, ...] = ()
    """What it was read from, the YAML first; a `.env` that is not there counts, for it may come."""
    routes: Mapping[str, Mistake] = field(default_factory=dict)
    """Where each model stands, as a warning without words, for who has something to say of it."""


def parse(text: str, *, filename: str, secrets: Secrets) -> Config:
    """Read and check a whole file. Every route of the result has its upstreams, every base URL is without a slash at the end.

    `filename` is for messages only. Raises ConfigError with all mistakes.
    """
    return examine(text, filename=filename, secrets=secrets).config


def examine(text: str, *, filename: str, secrets: Secrets, lenient: bool = False) -> Loaded:
    """Do what `parse` does, and tell the warnings too. Raises ConfigError with all mistakes.

    `lenient` is for who only looks, in a shell that has none of the daemon's secrets: a reference that leads nowhere leaves its
    value out, with what cannot be without it, unless it says where the database or a port is. Such a Config must not be served.
    """
    root, mistakes = grow(text.removeprefix("\ufeff"), filename)
    if root is None:
        raise ConfigError(mistakes or [Mistake(filename, 1, 1, "the file is empty; it begins with 'upstreams:' and 'models:'")])
    draft = read(root, filename, secrets)
    check(draft)
    unresolved = [mistake for path, mistake in draft.unresolved if not lenient or path[0] in _WHERE_THINGS_ARE]
    if mistakes or draft.mistakes or unresolved:
        raise ConfigError([*mistakes, *draft.mistakes, *unresolved])
    values = draft.values
    for name, upstream in values["upstreams"].items():
        if upstream.base_url is not None:
            values["upstreams"][name] = msgspec.structs.replace(upstream, base_url=upstream.base_url.rstrip("/"))
    routes = {name: draft.noted(draft.keys["models", name], "") for name in values["models"]}
    return Loaded(Config(**values), tuple(sorted(warnings(draft))), routes=routes)


def load_file(path: Path, environ: Mapping[str, str]) -> Config:
    """Read and check a file, the `.env` beside it, and the files that it points at.

    `environ` wins over `.env`. Relative `${file:…}` paths start at the file's folder. Raises ConfigError with all
    mistakes, also if the file cannot be read.
    """
    return examine_file(path, environ).config


def look_into(path: Path, environ: Mapping[str, str]) -> Config:
    """Do what `load_file` does for who only looks: secrets may be missing (`examine`, lenient). Never serve the result."""
    return examine_file(path, environ, lenient=True).config


def examine_file(path: Path, environ: Mapping[str, str], *, lenient: bool = False) -> Loaded:
    """Do what `load_file` does, and tell the warnings too. Raises ConfigError with all mistakes."""
    text = _text(path, MAX_BYTES)
    beside = path.parent / ".env"
    variables, mistakes = read_env(_text(beside, MAX_ENV_BYTES), str(beside)) if beside.is_file() else ({}, [])

    files = {path: None, beside: None}

    def read_secret(name: str) -> str:
        files[path.parent / name] = None
        with (path.parent / name).open(encoding="utf-8") as file:
            return file.read(MAX_FILE + 1)

    secrets = Secrets({**variables, **environ}, read_secret, environ.get("CREDENTIALS_DIRECTORY"))
    try:
        loaded = examine(text, filename=str(path), secrets=secrets, lenient=lenient)
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes]) from None
    if mistakes:
        raise ConfigError(mistakes)
    tls = loaded.config.tls
    certificate = () if tls is None else (path.parent / tls.cert, path.parent / tls.key)
    return replace(loaded, files=(*files, *certificate))


def _text(path: Path, most: int) -> str:
    """Read a file of at most `most` bytes as UTF-8. Raises ConfigError."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError([Mistake(name, 1, 1, f"cannot be read: {error.strerror or type(error).__name__}")]) from error
    if len(data) > most:
        raise ConfigError([Mistake(name, 1, 1, f"the file is larger than {most} bytes")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8")
        line, column = place_of(good, len(good))
        raise ConfigError([Mistake(name, line, column, "not UTF-8")]) from None
