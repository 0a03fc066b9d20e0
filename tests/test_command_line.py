"""The overview of all commands, and what a mistake in the command line says."""

import importlib
import shlex
import subprocess
import sys

import pytest

import study
from study.__main__ import IN_PACKAGES, main
from study.command_line import COMMANDS, overview


def test_overview_fits_one_screen():
    lines = overview().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_a_command_is_one_that_parses(name):
    module = importlib.import_module(f"study.{name}.__main__" if name in IN_PACKAGES else f"study.{name}")
    parser = importlib.import_module("study.config.flags") if name == "run" else module
    program, *arguments = shlex.split(COMMANDS[name][1])[2:]
    assert program == f"study.{name}"
    parser.build_parser().parse_args(arguments)


@pytest.mark.parametrize("module", ["study", "study.run"])
def test_no_arguments_show_all_commands(module):
    shown = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=True).stdout
    assert shown == overview() + "\n"


def test_command_runs_by_its_name(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"study {study.__version__}\n")


def test_unknown_command_is_one_line_with_the_known_ones(capsys):
    assert main(["predcit"]) == 2
    assert capsys.readouterr().err.startswith("study: unknown command 'predcit'. Did you mean 'predict'?")


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["run", "--resume", ""], "--resume"),
        (["run", "--baseline", "--data="], "--data"),
        (["run", "--search", "vgg16", ""], "argument 3"),
        (["run", "--baseline", "--epochs", ""], "--epochs"),
        (["export", "", "--to", "onnx", "out"], "argument 1"),
        (["predict", "a.png", "--model", ""], "--model"),
        (["report", ""], "argument 1"),
    ],
)
def test_empty_argument_is_refused_instead_of_ignored(arguments, place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith(f"study: {place}: must not be empty. Perhaps a variable of the shell is not set. All flags")


def test_unknown_flag_is_one_line_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--baseline", "--epoch", "3"])
    line = "study: unrecognized arguments: --epoch 3. Did you mean --epochs? All flags: python -m study.run --help\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, line)
