"""`python -m study.studies` as a user types it."""

import pytest
from support.manifests import make_manifest

from study import studies
from study.results.record import Record


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the command in a directory with one study, `pets-1`, that has no MLflow store."""
    monkeypatch.chdir(tmp_path)
    Record.create(tmp_path / "mlruns" / "studies" / "pets-1", make_manifest()).close()

    def call(*arguments):
        code = studies.main([*arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "mlruns" / "studies" / "pets-1"


def test_studies_are_listed_and_described(run):
    code, listed, _ = run()
    assert code == 0 and "pets-1" in listed and "baseline" in listed
    code, shown, _ = run("latest")
    assert code == 0 and shown.startswith("study      pets-1, interrupted")


def test_nothing_is_removed_without_terminal_and_yes(run, directory):
    code, _, errors = run("pets-1", "--remove")
    assert (code, directory.is_dir()) == (2, True)
    assert "Add --yes." in errors


@pytest.mark.parametrize(("answer", "code", "kept"), [("", 1, True), ("n", 1, True), ("y", 0, False)])
def test_removal_asks_on_a_terminal(run, directory, monkeypatch, answer, code, kept):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert run("pets-1", "--remove")[0] == code
    assert directory.is_dir() == kept


def test_removal_with_yes_says_what_happens(run, directory):
    code, printed, _ = run("pets-1", "--remove", "--yes")
    assert (code, directory.exists()) == (0, False)
    assert "versions of its models that are registered stay" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pest-1"], "Did you mean 'pets-1'?"),
        (["--remove"], "--remove: needs the NAME of a study."),
        (["--yes"], "--yes: needs --remove."),
        (["pets-1", "--caches"], "NAME: must be left out with caches"),
    ],
)
def test_usage_error_exits_2(run, arguments, message):
    code, _, errors = run(*arguments)
    assert code == 2 and message in errors


def test_caches_are_shown_and_cleared(run):
    assert "features" in run("--caches")[1]
    assert "cleared  images: 0 B" in run("--clear", "images")[1]
