"""systemd's unit, as far as commands must know it: which file it serves, and where its data is. Not a command itself."""

from __future__ import annotations

import configparser
import itertools
import os
from pathlib import Path

PLACES = (Path("/etc/systemd/system/proxyd.service"), Path("/usr/lib/systemd/system/proxyd.service"))
"""The operator's, and a package's."""
STATE = Path("/var/lib")
"""What StateDirectory= begins at (systemd.exec(5))."""


def installed() -> Path:
    """The unit that counts; the operator's place where there is none."""
    return next((place for place in PLACES if place.is_file()), PLACES[0])


def settings_of(place: Path) -> dict[str, str] | None:
    """The [Service] settings of a unit and its drop-ins, the last word counting; names in lower case. None where there is no unit."""
    parser = configparser.ConfigParser(
        strict=False, interpolation=None, allow_no_value=True, comment_prefixes=("#", ";"), delimiters=("=",)
    )
    folders = dict.fromkeys(each.with_name(place.name + ".d") for each in (place, *(PLACES[:1] if place in PLACES else ())))
    files = [place, *sorted((file for folder in folders for file in folder.glob("*.conf")), key=lambda file: file.name)]
    try:
        if not parser.read(files, encoding="utf-8"):
            return None
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return {name: (value or "").strip() for name, value in parser.items("Service")} if parser.has_section("Service") else {}


def served(settings: dict[str, str]) -> Path | None:
    """The configuration that it serves, if it names one."""
    words = settings.get("execstart", "").split()
    return next((Path(after) for word, after in itertools.pairwise(words) if word in {"-c", "--config"}), None)


def state_directory(config_file: Path, place: Path | None = None) -> str | None:
    """Where the data of a configuration is: as $STATE_DIRECTORY says, else as the unit that serves this file has it; None: beside the file.

    Without it a command beside a unit would look into, or even make, a database that the daemon never sees.
    """
    if named := os.environ.get("STATE_DIRECTORY"):
        return named
    settings = settings_of(place or installed()) or {}
    serves, folder = served(settings), settings.get("statedirectory", "").split(" ")[0].partition(":")[0]
    if not folder or serves is None or serves.resolve() != config_file.resolve():
        return None
    return str(STATE / folder)
