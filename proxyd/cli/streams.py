"""Standard input, output and error, as whoever started the process gave them: closed, full, gone, or in another encoding.

Not a command itself.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

_ESCAPED = "proxyd.escaped"


def ready() -> None:
    """Open what is closed (`>&-`), lest a file that is opened next be standard output; and write out what it has no letters for."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            setattr(sys, name, open(number, "w" if number else "r", closefd=False, encoding="utf-8"))  # noqa: SIM115 - for good
    codecs.register_error(_ESCAPED, _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPED)


def flush() -> str | None:
    """Write out what is left, and say why standard output cannot be; it is dropped, lest the interpreter complain at its end."""
    told = None
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or str(error) if stream is sys.stdout else None
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return told


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Write characters that an encoding has not as JSON does, `\u2192`: JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end
