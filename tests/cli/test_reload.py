"""`proxyd reload` where no daemon can be found; with one it is tried in tests/daemon."""

from proxyd import cli


def test_a_file_that_cannot_be_read_tells_its_mistakes_though_it_names_no_daemon(tmp_path, capsys, monkeypatch):
    """The ops port stands in the file: where that is broken, the operator wants to read why, not that nobody answers."""
    file = tmp_path / "config.yaml"
    file.write_text("upstreams: {echo: {kind: echo}}\nmodels: {echo: echo}\nx: [\n")
    assert cli.main(["reload", "-c", str(file), "--ops", "127.0.0.1:9"]) == 1
    said = capsys.readouterr()
    assert f"{file}:4:1: not YAML" in said.out
    assert "the running configuration stays" in said.err


def test_a_good_file_without_a_daemon_says_that_nobody_answers(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text("upstreams: {echo: {kind: echo}}\nmodels: {echo: echo}\n")
    assert cli.main(["reload", "-c", str(file), "--ops", "127.0.0.1:9"]) == 1
    assert "no daemon answers" in capsys.readouterr().err
