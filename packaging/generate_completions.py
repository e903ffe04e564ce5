"""Write the shells' completions from the commands' own tables of arguments: `python packaging/generate_completions.py`.

A test fails when what is committed is not what this writes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from proxyd.cli import COMMANDS, command_of  # noqa: E402

FILES = {"FILE", "ADDRESS"}
"""Metavars behind which a file may stand."""


@dataclass(frozen=True, slots=True)
class Option:
    """`--format`, what it is for, and what may stand behind it: nothing, choices, a file, or something else."""

    names: tuple[str, ...]
    about: str
    takes: bool
    choices: tuple[str, ...] = ()
    file: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow a command, or one of its actions."""

    about: str
    options: tuple[Option, ...]
    choices: tuple[str, ...] = ()
    """Of its positional arguments."""
    file: bool = False
    actions: dict[str, Words] = field(default_factory=dict)


def read(parser: argparse.ArgumentParser, about: str) -> Words:
    """Read a parser."""
    options, choices, file, actions = [], [], False, {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to be asked
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {one.dest: one.help or "" for one in action._choices_actions}  # noqa: SLF001
            actions = {name: read(one, helps.get(name, "")) for name, one in action.choices.items()}
        elif action.option_strings:
            takes = action.nargs != 0
            listed = tuple(str(choice) for choice in action.choices or ())
            options.append(Option(tuple(action.option_strings), _line(action.help), takes, listed, action.metavar in FILES))
        else:
            choices += [str(choice) for choice in action.choices or ()]
            file = file or action.metavar in FILES
    return Words(_line(about), tuple(options), tuple(choices), file, actions)


def commands() -> dict[str, Words]:
    """Read all commands."""
    return {name: read(command_of(name)[1], about) for name, about in COMMANDS.items()}


def bash(table: dict[str, Words]) -> str:
    """For bash: a case for each command and action, then for each option that takes something."""
    cases = []
    for path, words in _paths(table):
        names = [name for option in words.options for name in option.names]
        what = " ".join([*names, *words.actions, *words.choices])
        cases.append(f'        "{path}") words="{what}"{" files=yes" if words.file else ""} ;;')
    values = []
    for path, words in _paths(table):
        for option in words.options:
            if option.takes:
                pattern = "|".join(f'"{path} {name}"' for name in option.names)
                does = "files=yes" if option.file else f'words="{" ".join(option.choices)}"'
                values.append(f"        {pattern}) {does}; only=yes ;;")
    actions = " ".join(f"{name}" for name, words in table.items() if words.actions)
    return f"""# bash completion for proxyd; made by packaging/generate_completions.py
_proxyd() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} path=${{COMP_WORDS[1]}} words="" files="" only="" i
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{" ".join(table)} --help --version" -- "$word"))
        return
    fi
    if [[ " {actions} " == *" $path "* ]]; then
        for ((i = 2; i < COMP_CWORD; i++)); do
            case "$path ${{COMP_WORDS[i]}}" in
{chr(10).join(f'                "{path}") path="{path}"; break ;;' for path, _ in _paths(table) if " " in path)}
            esac
        done
    fi
    case "$path $before" in
{chr(10).join(values)}
    esac
    if [[ -z $only ]]; then
        case "$path" in
{chr(10).join("    " + case for case in cases)}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ $files == yes ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen -f -- "$word"))
    fi
}}
complete -F _proxyd proxyd
"""


def zsh(table: dict[str, Words]) -> str:
    """For zsh: a function for each command and action, by _arguments."""
    functions = []
    for path, words in _paths(table):
        specs = [_zsh_option(option) for option in words.options]
        if words.actions:
            listed = " ".join(_zsh(f"{name}:{one.about}") for name, one in words.actions.items())
            calls = "\n".join(f"        {name}) {_function(f'{path} {name}')} ;;" for name in words.actions)
            functions.append(
                f"{_function(path)}() {{\n    local state line\n    _arguments -C {' '.join(specs)} '1: :->action' '*:: :->rest'\n"
                f"    case $state in\n    action) local -a actions=({listed}); _describe action actions ;;\n"
                f"    rest) case $line[1] in\n{calls}\n        esac ;;\n    esac\n}}"
            )
            continue
        if words.choices:
            specs.append(_zsh(f"*: :({' '.join(words.choices)})"))
        elif words.file:
            specs.append("'*: :_files'")
        functions.append(f"{_function(path)}() {{\n    _arguments {' '.join(specs)}\n}}")
    listed = " ".join(_zsh(f"{name}:{one.about}") for name, one in table.items())
    calls = "\n".join(f"        {name}) {_function(name)} ;;" for name in table)
    return f"""#compdef proxyd
# zsh completion for proxyd; made by packaging/generate_completions.py
{chr(10).join(functions)}
_proxyd() {{
    local state line
    _arguments -C '--help[show help]' '--version[show the version]' '1: :->command' '*:: :->rest'
    case $state in
    command) local -a commands=({listed}); _describe command commands ;;
    rest) case $line[1] in
{calls}
        esac ;;
    esac
}}
if [[ $funcstack[1] == _proxyd ]]; then _proxyd "$@"; else compdef _proxyd proxyd; fi
"""


def fish(table: dict[str, Words]) -> str:
    """For fish: a line for each word."""
    lines = ["# fish completion for proxyd; made by packaging/generate_completions.py", "complete -c proxyd -f"]
    for name, words in table.items():
        lines.append(f"complete -c proxyd -n __fish_use_subcommand -a {name} -d {_fish(words.about)}")
    for path, words in _paths(table):
        name, _, action = path.partition(" ")
        inside = f"__fish_seen_subcommand_from {name}" + (f"; and __fish_seen_subcommand_from {action}" if action else "")
        free = f"{inside}; and not __fish_seen_subcommand_from {' '.join(words.actions)}" if words.actions else inside
        for other, one in words.actions.items():
            lines.append(f"complete -c proxyd -n {_fish(free)} -a {other} -d {_fish(one.about)}")
        if words.file:
            lines.append(f"complete -c proxyd -n {_fish(inside)} -F")
        for option in words.options:
            said = [f"-s {one[1:]}" if not one.startswith("--") else f"-l {one[2:]}" for one in option.names]
            takes = ["-r" if option.file else "-x"] if option.takes else []
            what = ["-F"] if option.file else [f"-a {_fish(' '.join(option.choices))}"] if option.choices else []
            lines.append(" ".join(["complete -c proxyd -n", _fish(inside), *said, *takes, *what, "-d", _fish(option.about)]))
    return "\n".join(lines) + "\n"


def _paths(table: dict[str, Words]) -> list[tuple[str, Words]]:
    """`db`, `db backup`, … in order."""
    found = []
    for name, words in table.items():
        found.append((name, words))
        found += [(f"{name} {action}", one) for action, one in words.actions.items()]
    return found


def _function(path: str) -> str:
    return "_proxyd_" + path.replace(" ", "_")


def _zsh_option(option: Option) -> str:
    about = option.about.replace("[", "(").replace("]", ")").replace(":", ";")
    value = "" if not option.takes else f": :({' '.join(option.choices)})" if option.choices else ": :_files" if option.file else ": : "
    specs = [_zsh(f"{name}[{about}]{value}") for name in option.names]
    return " ".join(specs)


def _zsh(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _line(text: str | None) -> str:
    """Help in one line of plain words."""
    plain = " ".join((text or "").replace("%%", "%").split()).replace("`", "")
    return "" if plain == argparse.SUPPRESS else plain


def files() -> dict[Path, str]:
    """What is written where."""
    table, folder = commands(), HERE / "completions"
    return {folder / "proxyd.bash": bash(table), folder / "_proxyd": zsh(table), folder / "proxyd.fish": fish(table)}


if __name__ == "__main__":
    for place, text in files().items():
        place.write_text(text, "utf-8")
