"""`proxyd check`, as a person and as a program see it."""

import json
from pathlib import Path

import pytest

from proxyd.cli import main

GOOD = "upstreams: {a: {kind: echo}}\nmodels: {m: a, n: a}\n"
BAD = "upstreams: {a: {kind: ecko}}\nmodels: {m: b}\n"


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Check a text; returns the exit code and both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROXYD_CONFIG", raising=False)

    def run(text, *options):
        Path("config.yaml").write_text(text, "utf-8")
        code = main(["check", *options])
        return code, *capsys.readouterr()

    return run


def test_a_good_file_is_ok(check):
    assert check(GOOD) == (0, "config.yaml: ok (1 upstream, 2 models)\n", "")


def test_every_mistake_is_a_line(check):
    assert check(BAD) == (
        1,
        (
            "config.yaml:1:23: 'ecko' is not one of openai, azure, ollama, huggingface, echo; did you mean 'echo'?\n"
            "config.yaml:2:13: no upstream is called 'b'\n"
        ),
        "proxyd: config.yaml has 2 mistakes\n",
    )


def test_a_warning_is_no_failure(check):
    code, out, _ = check(GOOD.replace("{a:", "{b: {kind: echo}, a:"))
    assert code == 0
    assert out == "config.yaml:1:13: warning: no model uses the upstream 'b'\nconfig.yaml: ok (2 upstreams, 2 models)\n"


def test_what_serve_would_refuse_is_a_failure(check):
    code, out, err = check(GOOD + "environment: production\n")
    assert code == 1
    assert out.startswith("config.yaml:1:1: serve refuses to start: environment production needs a key: name one under auth.keys")
    assert err == "proxyd: config.yaml has 1 mistake\n"


def test_programs_get_json(check):
    code, out, _ = check(BAD, "--format", "json")
    document = json.loads(out)
    assert code == 1
    assert document["ok"] is False
    assert document["mistakes"][1] == {"file": "config.yaml", "line": 2, "column": 13, "message": "no upstream is called 'b'"}
    assert json.loads(check(GOOD, "--format", "json")[1]) == {
        "file": "config.yaml",
        "ok": True,
        "upstreams": 1,
        "models": 2,
        "mistakes": [],
        "warnings": [],
    }


def test_github_gets_annotations(check):
    code, out, _ = check(BAD.replace("m: b", '"100%\\n": b'), "--format", "github")
    assert code == 1
    assert out.splitlines()[0].startswith("::error file=config.yaml,line=1,col=23::'ecko' is not")
    assert all(line.startswith("::error file=config.yaml,line=") for line in out.splitlines())
    assert check(GOOD, "--format", "github") == (0, "", "")


def test_a_file_that_is_not_there_is_said(check, capsys):
    check(GOOD)
    assert main(["check", "-c", "nope.yaml"]) == 1
    assert capsys.readouterr() == ("", "proxyd: no such file: nope.yaml (from -c)\n")


def test_a_name_cannot_act_on_the_terminal(check):
    _, out, _ = check('upstreams: {"\\e[31m": {kind: ecko}}\nmodels: {m: "\\e[2J"}\n')
    assert "\x1b" not in out
    assert out


PRICED = """\
upstreams:
  o: {kind: openai, base_url: https://api.openai.com/v1, api_key: "${KEY:-k}"}
  mine: {kind: openai, base_url: "http://127.0.0.1:8000/v1"}
  ollama: {kind: ollama}
models:
  gpt-4o-mini: o
  nobody-knows: [o, mine]
  both: [{upstream: o, model: gpt-4o}, ollama]
  mine: {upstream: mine, price: {input: 0, output: 0}}
  "hf/*": mine
  "gpt-*": o
"""


def test_routes_without_a_price_are_named(check):
    pytest.importorskip("genai_prices")
    code, out, _ = check(PRICED)
    assert code == 0
    assert out.splitlines()[:-1] == [
        "config.yaml:7:3: warning: no price is known for 'nobody-knows' at o and mine: give it a 'price'",
        "config.yaml:10:3: warning: no price is known for 'hf/*' at mine: give it a 'price'",
    ]


def test_without_the_list_it_is_named(check, monkeypatch):
    monkeypatch.setattr("proxyd.rules.pricelist.installed", lambda: False)
    code, out, _ = check(PRICED)
    assert code == 0
    assert (
        "6:3: warning: no price is known for 'gpt-4o-mini' at o: give it a 'price', or install the list: pip install 'proxyd[prices]'"
        in out
    )
