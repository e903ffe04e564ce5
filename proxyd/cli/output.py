"""What commands print: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

FORMATS = ("table", "json", "csv")
BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: where its value is in a row, what stands above it, and which side it leans to."""

    key: str
    title: str
    right: bool = False


def add_format(parser: argparse.ArgumentParser, formats: Sequence[str] = FORMATS) -> None:
    """Add `--format`, with the first of `formats` as its default."""
    parser.add_argument("--format", choices=formats, default=formats[0], help=f"how to print: {', '.join(formats)} (default: {formats[0]})")


def show(columns: Sequence[Column], rows: Iterable[Mapping[str, object]], form: str, out: TextIO | None = None) -> None:
    """Print `rows` as one of FORMATS to `out` (default: standard output). None is `-` in a table, null in JSON, empty in CSV.

    JSON is one array of objects with the keys of `columns`, in their order. In a table and in CSV control characters are
    written out: both land on terminals, and Python's csv leaves a lone carriage return unquoted. Raises ValueError for another format.
    """
    out = sys.stdout if out is None else out
    if form == "table":
        _table(columns, list(rows), out)
    elif form == "json":
        documents = [{column.key: row.get(column.key) for column in columns} for row in rows]
        out.write(json.dumps(documents, indent=2) + "\n")
    elif form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.key for column in columns])
        writer.writerows([_cell(row.get(column.key)) for column in columns] for row in rows)
    else:
        raise ValueError(f"no such format: {form}")


def paint(text: str, colour: str, out: TextIO, environ: Mapping[str, str] | None = None) -> str:
    """Colour `text` if `out` is a terminal that wants colour: not when NO_COLOR is set to anything (no-color.org), nor TERM=dumb."""
    environ = os.environ if environ is None else environ
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb" or not out.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def plain(value: object) -> str:
    r"""Write a value for one line of a terminal: None as `-`, and no control character survives (`\x1b` is written out).

    Names in the ledger come from clients; a terminal must not act on them.
    """
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _cell(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


def _table(columns: Sequence[Column], rows: Sequence[Mapping[str, object]], out: TextIO) -> None:
    cells = [[plain(row.get(column.key)) for column in columns] for row in rows]
    widths = [max([_width(column.title), *(_width(line[i]) for line in cells)]) for i, column in enumerate(columns)]

    def line(texts: Sequence[str]) -> str:
        padded = (_pad(text, width, right=column.right) for text, width, column in zip(texts, widths, columns, strict=True))
        return "  ".join(padded).rstrip()

    out.write(paint(line([column.title for column in columns]), BOLD, out) + "\n")
    out.writelines(line(texts) + "\n" for texts in cells)


def _pad(text: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if right else text + blanks


def _width(text: str) -> int:
    """Cells of a terminal that `text` takes: wide and full-width characters take two, combining marks none (UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
