"""The frame of the commands: which one runs, which file it gets, how it ends."""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import proxyd
from proxyd import cli
from proxyd.config.mistakes import ConfigError, Mistake


class Command:
    """A command that does what a test says."""

    HELP, EXAMPLES = "Do it.", "proxyd check it"

    def __init__(self, act):
        self.run = act

    def arguments(self, parser):
        parser.add_argument("--loud", action="store_true")


@pytest.fixture
def command(monkeypatch):
    """Put a command into the place of `check`."""

    def put(act):
        monkeypatch.setitem(sys.modules, "proxyd.cli.check", Command(act))

    return put


def test_a_command_gets_its_arguments_and_its_code_is_the_exit_code(command):
    got = []
    command(lambda args: got.append(args) or 7)
    assert cli.main(["check", "--loud", "-c", "x.yaml"]) == 7
    assert (got[0].loud, got[0].config) == (True, "x.yaml")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (cli.Failed("no luck"), "proxyd: no luck\n"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "proxyd: No such file or directory: /x\n"),
        (ValueError("two\nlines"), "proxyd: unexpected ValueError: two lines (PROXYD_DEBUG=1 shows where)\n"),
        (
            ConfigError([Mistake("c.yaml", 3, 1, "b"), Mistake("c.yaml", 2, 9, "a")]),
            "c.yaml:2:9: a\nc.yaml:3:1: b\nproxyd: c.yaml has 2 mistakes\n",
        ),
    ],
)
def test_what_goes_wrong_is_said_on_stderr_and_exits_1(command, capsys, monkeypatch, error, line):
    monkeypatch.delenv("PROXYD_DEBUG", raising=False)

    def act(_args):
        raise error

    command(act)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr() == ("", line)


def test_a_bug_can_be_hunted(command, monkeypatch):
    monkeypatch.setenv("PROXYD_DEBUG", "1")

    def act(_args):
        raise KeyError("x")

    command(act)
    with pytest.raises(KeyError):
        cli.main(["check"])


def test_an_interrupt_ends_quietly(command, capsys):
    def act(_args):
        raise KeyboardInterrupt

    command(act)
    assert cli.main(["check"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["chek"], "proxyd: no such command: 'chek'; did you mean 'check'? (see proxyd --help)\n"),
        (["check", "--nope"], "proxyd: unrecognized arguments: --nope (see proxyd check --help)\n"),
        (["--nope"], "proxyd: unrecognized arguments: --nope (see proxyd --help)\n"),
        (["-c", "x"], "proxyd: -c stands behind a command, as in proxyd check -c FILE (see proxyd --help)\n"),
        (["--config=x", "check"], "proxyd: -c stands behind a command, as in proxyd check -c FILE (see proxyd --help)\n"),
        (["check", "x.yaml"], "proxyd: unrecognized arguments: x.yaml; write -c x.yaml (see proxyd check --help)\n"),
        (["models", "-c", ""], "proxyd: -c names no file: what stands behind it is empty\n"),
        (["check", "-c"], "proxyd: argument -c/--config: expected one argument (see proxyd check --help)\n"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(command, capsys, argv, line):
    command(lambda _args: 0)
    assert cli.main(argv) == 2
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(("argv", "same"), [(["help"], ["--help"]), (["help", "check"], ["check", "--help"]), (["version"], ["--version"])])
def test_words_that_other_programs_take_for_options_are_understood(capsys, argv, same):
    assert cli.main(argv) == 0
    told = capsys.readouterr()
    assert cli.main(same) == 0
    assert told == capsys.readouterr()
    assert told.out


@pytest.mark.parametrize(
    "argv",
    [
        ("reload", "--ops", "garbage"),
        ("reload", "--ops", "127.0.0.1:99999"),
        ("demo", "--port", "99999"),
        ("demo", "--port", "-1"),
        ("keys", "create", "a b"),
        ("keys", "create", "x", "--budget", "20/week"),
        ("keys", "rotate", "x", "--grace", "long"),
        ("chat", "m", "--url", "ftp://x"),
        ("chat", "m", "hi", "--url", "http://127.0.0.1:9", "--delay", "-1"),
        ("chat", "m", "hi", "--url", "http://127.0.0.1:9", "--delay", "10001"),
        ("usage", "--since", "yesterday"),
        ("db", "prune", "--older-than", "x"),
        ("top", "--interval", "0"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_wrong_usage(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("ops: {listen: off}\nupstreams: {echo: {kind: echo}}\nmodels: {echo: echo}\n")
    Path("proxyd.db").touch()
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "unexpected" not in err


def test_without_a_command_the_help_is_on_stderr(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(f"  {name} " in err for name in cli.COMMANDS)


def test_the_version_and_the_help_are_asked_for(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"proxyd {proxyd.__version__}\n"
    assert cli.main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out


BUILT = [name for name in cli.COMMANDS if (Path(cli.__file__).parent / f"{name}.py").exists()]


ACTIONS = ["keys create", "keys list", "keys show", "keys rotate", "keys revoke", "db backup", "db check", "db prune", "db vacuum"]


@pytest.mark.parametrize("name", [*BUILT, *ACTIONS])
def test_the_help_of_a_command_has_an_example_and_takes_a_file(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert f"  proxyd {name}" in told[told.index("examples:") :]
    assert "--config FILE" in told


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["check", "--help"], ["schema"]])
def test_what_needs_no_network_does_not_import_it(argv):
    """Start-up stays fast: aiohttp alone is a third of a second on a small board."""
    code = f"import sys; from proxyd.cli import main; code = main({argv!r}); assert 'aiohttp' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_traceback():
    code = "import sys; from proxyd.cli import main; sys.exit(main(['schema']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait() == 1


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "proxyd", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"proxyd {proxyd.__version__}\n")


ECHO = "upstreams: {echo: {kind: echo}}\nmodels: {grün: echo}\nops: {listen: off}\n"


def shell(line, folder, **environ):
    """Type a line into a shell, where `proxyd` is this one."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(proxyd.__file__).parents[1]), "PYTHONUTF8": "1"} | environ
    line = line.replace("proxyd ", f"{sys.executable} -m proxyd ", 1)
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_failure_and_no_files_place(tmp_path, closed):
    """Who wants only the exit code closes what it does not read; the next file that is opened would be standard output."""
    (tmp_path / "config.yaml").write_text(ECHO)
    for line in ("check", "--version", "models", "keys create x"):
        done = shell(f"proxyd {line} {closed}", tmp_path)
        assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr
    assert sqlite3.connect(tmp_path / "proxyd.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("line", ["--version", "check", "schema", "models"])
def test_what_cannot_be_written_is_one_line_and_exits_1(tmp_path, line):
    (tmp_path / "config.yaml").write_text(ECHO)
    done = shell(f"proxyd {line} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith("No space left on device\n")
    assert shell("proxyd check -c nowhere 2> /dev/full", tmp_path).returncode == 1


def test_a_key_that_was_made_and_cannot_be_printed_is_told_as_that(tmp_path):
    (tmp_path / "config.yaml").write_text(ECHO)
    done = shell("proxyd keys create x > /dev/full", tmp_path)
    told = "proxyd: a key of x was made, but could not be printed (No space left on device): rotate it, or revoke it\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_what_an_encoding_has_no_letters_for_is_written_as_json_does(tmp_path):
    (tmp_path / "config.yaml").write_text(ECHO)
    done = shell("proxyd models", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, "gr\\u00fcn " in done.stdout) == (0, True)
    assert json.loads(f'"{done.stdout.splitlines()[1].split()[0]}"') == "grün"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["usage"], 1),
        (["db", "check"], 1),
        (["health", "-c", "off.yaml"], 1),
        (["top", "--once"], 1),
        (["reload"], 1),
        (["reload", "-c", "bad.yaml"], 1),
        (["models", "-c", "bad.yaml"], 1),
        (["check", "-c", "bad.yaml"], 1),
        (["check", "-c", "nowhere"], 1),
        (["doctor", "-c", "nowhere"], 1),
        (["keys", "show", "nobody"], 1),
        (["usage", "--since", "x"], 2),
    ],
)
def test_who_asks_for_json_gets_one_document_when_it_fails_too(folder, capsys, argv, code):
    Path("config.yaml").write_text(ECHO)
    Path("off.yaml").write_text(ECHO + "listen: 127.0.0.1:9\n")
    Path("bad.yaml").write_text("x: [\n")
    assert cli.main([*argv, "--format", "json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert err.startswith(("proxyd: ", "bad.yaml:"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory, on a machine without /etc/proxyd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "CONFIG_PLACES", ("config.yaml", str(tmp_path / "etc.yaml")))
    return tmp_path


def find(option=None, environ=None):
    return cli.config_path(argparse.Namespace(config=option), environ or {})


def test_the_file_is_looked_for_in_order(folder):
    for name in ("etc.yaml", "config.yaml", "named.yaml", "given.yaml"):
        (folder / name).touch()
    assert find("given.yaml", {"PROXYD_CONFIG": "named.yaml"}) == Path("given.yaml")
    assert find(None, {"PROXYD_CONFIG": "named.yaml"}) == Path("named.yaml")
    assert find() == Path("config.yaml")
    (folder / "config.yaml").unlink()
    assert find() == folder / "etc.yaml"


def test_a_file_that_is_named_is_never_replaced_by_another(folder):
    (folder / "config.yaml").touch()
    with pytest.raises(cli.Failed, match=r"^no such file: x\.yaml \(from -c\)$"):
        find("x.yaml")
    with pytest.raises(cli.Failed, match=r"^no such file: y\.yaml \(from \$PROXYD_CONFIG\)$"):
        find(None, {"PROXYD_CONFIG": "y.yaml"})
    with pytest.raises(cli.Failed, match="is a directory"):
        find(str(folder))


@pytest.mark.usefixtures("folder")
def test_without_any_file_all_places_are_named():
    with pytest.raises(cli.Failed, match=r"^no configuration found; looked at -c, \$PROXYD_CONFIG, \./config\.yaml, /.*etc\.yaml$"):
        find()
