"""What the file leaves out: `${VAR}`, `${VAR:-default}`, `${file:/path}`, `${credential:NAME}`, and the `.env` beside it.

The law: a value that comes from here never gets into a message, only its name does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyd.config.mistakes import Mistake, meant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_FILE = 65_536
"""Characters that a file named by `${file:…}` may hold."""

_TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)
_CREDENTIAL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ENV_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")
_ENV_QUOTED = re.compile(r"""'([^']*)'(?:\s+\#.*)?|"((?:[^"\\]|\\.)*)"(?:\s+\#.*)?""")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Unresolved(Exception):  # noqa: N818 - it is a verdict on a reference
    """References that lead nowhere; `reasons` are told without a value."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where references look. `read` gets a path as written and returns the file's text, at most MAX_FILE + 1 characters.

    `read` may raise OSError or UnicodeDecodeError. `credentials` is systemd's $CREDENTIALS_DIRECTORY.
    """

    environ: Mapping[str, str]
    read: Callable[[str], str]
    credentials: str | None = None

    def expand(self, text: str) -> str:
        """Replace all references in `text`; `$${` stands for a plain `${`.

        Raises Unresolved with a reason for each that is undefined or malformed. A variable that is set but empty counts
        as unset, as in a shell's `:-`.
        """
        if "${" not in text:
            return text
        reasons: list[str] = []

        def replace(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            try:
                return self._look_up(found[1])
            except Unresolved as error:
                reasons.extend(error.reasons)
                return ""

        expanded = _TOKEN.sub(replace, text)
        if reasons:
            raise Unresolved(reasons)
        return expanded

    def _look_up(self, reference: str | None) -> str:
        if reference is None:
            raise Unresolved(["a ${ has no }; write $${ for the characters themselves"])
        if reference.startswith("file:"):
            path = reference.removeprefix("file:")
            return self._file(path, path)
        if reference.startswith("credential:"):
            return self._credential(reference.removeprefix("credential:"))
        found = _VARIABLE.fullmatch(reference)
        if found is None:
            raise Unresolved(["no such reference; write ${VAR}, ${VAR:-default}, ${file:/path} or ${credential:NAME}"])
        name, has_default, default = found.groups()
        value = self.environ.get(name)
        if value:
            return value
        if has_default:
            return str(default)
        if value is not None:
            raise Unresolved([f"the variable {name} is empty"])
        more = meant(name, self.environ) or "; set it, or write it into the .env beside the file"
        raise Unresolved([f"the variable {name} is not set{more}"])

    def _credential(self, name: str) -> str:
        if not _CREDENTIAL.fullmatch(name):
            raise Unresolved([f"{name!r} is not the name of a credential"])
        if not self.credentials:
            raise Unresolved([f"the credential {name} is not there: $CREDENTIALS_DIRECTORY is not set (systemd's LoadCredential= sets it)"])
        return self._file(f"{self.credentials.rstrip('/')}/{name}", f"the credential {name}")

    def _file(self, path: str, told: str) -> str:
        if not path:
            raise Unresolved(["${file:} names no file"])
        try:
            text = self.read(path)
        except OSError as error:
            raise Unresolved([f"{told} cannot be read: {error.strerror or type(error).__name__}"]) from error
        except ValueError as error:  # not UTF-8, or a NUL in the path
            raise Unresolved([f"{told} cannot be read: it is not UTF-8 text"]) from error
        if len(text) > MAX_FILE:
            raise Unresolved([f"{told} is longer than {MAX_FILE} characters"])
        text = text.rstrip("\r\n")
        if not text:
            raise Unresolved([f"{told} is empty"])
        return text


def read_env(text: str, file: str) -> tuple[dict[str, str], list[Mistake]]:
    r"""Read a `.env` file: `NAME=value` lines, `export`, `#` comments, single quotes as they are, `\n` in double ones.

    Nothing in it is expanded. Returns the variables, the last of a name winning, and the lines that are none.
    """
    variables: dict[str, str] = {}
    mistakes = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _ENV_LINE.fullmatch(line)
        value = None if found is None else _env_value(found[2])
        if found is None or value is None:
            mistakes.append(Mistake(file, number, 1, "not a NAME=value line" if found is None else "the quotes do not match"))
        else:
            variables[found[1]] = value
    return variables, mistakes


def _env_value(text: str) -> str | None:
    """Return the value of a line; None if its quotes do not match."""
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()
    found = _ENV_QUOTED.fullmatch(text)
    if found is None:
        return None
    if found[1] is not None:
        return found[1]
    return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), found[2])
