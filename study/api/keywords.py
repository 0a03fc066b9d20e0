"""Read the keyword arguments of the Python API: those of `python -m study.run`, with underscores.

Words errors for Python: `fraction: must be at most 1`, where a command says `--fraction: must be at most 1`.
"""

import argparse
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypedDict

from study.config.flags import build_parser, fill_in
from study.config.plan import Repeats
from study.config.validation import gather
from study.errors import ConfigError, StudyError, unknown_name


class MachineOptions(TypedDict, total=False):
    """Options that every run takes: where images and weights lie, and what it may use."""

    data_dir: str | Path
    weights: str | Path
    tracking_uri: str
    ray_address: str
    cpus_per_trial: float
    gpus_per_trial: float
    concurrent: int
    cache_gb: float
    verbose: bool


class BudgetOptions(TypedDict, total=False):
    """Options that a search may also change when it is resumed."""

    trials: int
    time_budget: str


class StudyOptions(MachineOptions, total=False):
    """Options of every new study besides its data."""

    fraction: float
    test_fraction: float
    skip_broken: bool
    leaks: Literal["keep", "drop"]
    demo: bool
    image_size: int | Literal["auto"]
    fit: Literal["crop", "pad", "squash"]
    seed: int
    precision: Literal["auto", "bf16", "fp32"]
    name: str


class BaselineOptions(StudyOptions, total=False):
    """Options of a study of the baseline's recipe."""

    epochs: int
    as_written: bool


class SearchOptions(StudyOptions, BudgetOptions, total=False):
    """Options of a search."""

    epochs: int
    pruner: Literal["asha", "none"]
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
    repeats: Repeats
    rerank: int
    prior: str | Sequence[str]


class ProbeOptions(StudyOptions, total=False):
    """Options of a study of linear probes, which have no epochs."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]


class ResumeOptions(MachineOptions, BudgetOptions, total=False):
    """Options that a resumed study may change."""


VERBS = ("baseline", "search", "probe", "models", "reproduce", "resume")
"""Flags that say what to run: functions of the Python API."""
OR_AUTO = ("repeats", "image_size")
"""Whole numbers that may also be the word auto."""
_PLACEHOLDERS = r"(?= (?P<value>[A-Z][A-Z-]+\b|'|/))"


def read_options(verb: str, what: object, allowed: type, given: Mapping[str, Any]) -> argparse.Namespace:
    """Return the options that a function was called with, as `python -m study.run` parses them.

    Args:
        verb: flag of `study.run` that does the same: baseline, search, probe or resume.
        what: value of this flag.
        allowed: TypedDict of the keyword arguments that the function takes, besides data.
        given: keyword arguments; None stands for an argument that is not given.

    Raises:
        ConfigError: arguments are unknown or have the wrong type; the message lists all of them.
    """
    if isinstance(what, list) and (odd := [name for name in what if not isinstance(name, str)]):
        raise ConfigError(f"{verb}: takes names, each an argument of its own, but got {odd[0]!r}.")
    actions = {action.dest: action for action in build_parser()._actions if action.option_strings[0] != "--no-cache"}
    known = [*allowed.__annotations__, *(["data"] if verb != "resume" or "data" in given else [])]
    parts: dict[str, Callable[[], Any]] = {
        name: partial(_convert, actions[name], value) if name in known else partial(_refuse, name, known)
        for name, value in given.items()
        if value is not None
    }
    options = build_parser().parse_args([])
    for name, value in {**gather(parts), verb: what}.items():
        setattr(options, name, value)
    fill_in(options)
    return options


def _refuse(name: str, known: list[str]) -> None:
    raise ConfigError(unknown_name("keyword argument", name, known))


def _convert(action: argparse.Action, value: Any) -> Any:
    """Return a value as the parser would have made it from text."""
    if action.nargs == 0:  # a switch
        if isinstance(value, bool):
            return value or None if action.default is None else value
        raise ConfigError(f"must be True or False, but got {value!r}.")
    if action.nargs == "+":
        names = [value] if isinstance(value, str) else [*value] if isinstance(value, list | tuple) else []
        if names and all(isinstance(name, str) for name in names):
            return names
        raise ConfigError(f"must be a string or a list of strings, but got {value!r}.")
    if action.choices and value not in action.choices:
        raise ConfigError(unknown_name("choice", str(value), [*action.choices]))
    if action.type is int or (action.dest in OR_AUTO and value != "auto"):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            rule = "a whole number" if action.type is int else "a whole number or 'auto'"
            raise ConfigError(f"must be {rule}, but got {value!r}.")
        return operator.index(value)
    if action.type is float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(f"must be a number, but got {value!r}.")
        return float(value)
    if not isinstance(value, str | Path):
        rule = "a duration such as '30m' or '1h30m'" if action.dest == "time_budget" else "a string"
        raise ConfigError(f"must be {rule}, but got {value!r}.")
    if value == "":
        raise ConfigError("must not be empty.")
    return Path(value) if action.type is Path else str(value)


@contextmanager
def worded_for_python() -> Iterator[None]:
    """Raise errors from inside again, in the words of a Python caller."""
    try:
        yield
    except StudyError as error:
        raise type(error)(in_python(str(error))) from error
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(in_python(str(interruption))) from None


def in_python(text: str) -> str:
    """Return a message with the words of a Python caller in the place of flags and commands."""
    text = re.sub(r"python -m study\.run --resume (\S+)", r"study.load('\1').resume()", text)
    text = text.replace("or --resume it", "or resume it with study.load(…).resume()")  # before a name is looked for
    text = re.sub(r"--resume ([A-Za-z0-9][\w.-]*)", r"study.load('\1').resume()", text)
    text = text.replace("--no-cache", "cache_gb=0")
    text = re.sub(r"--(leaks|fit|weights|data) (drop|pad|squash|none|imagenet|digits)\b", r"\1='\2'", text)
    return _known_flags().sub(lambda flag: flag[1].replace("-", "_") + ("=" if flag["value"] else ""), text)


@cache
def _known_flags() -> re.Pattern[str]:
    flags = sorted((flag[2:] for flag in build_parser()._option_string_actions if flag.startswith("--")), reverse=True)
    return re.compile(rf"(?<!study\.run )--({'|'.join(map(re.escape, flags))})(?![\w-])(?:{_PLACEHOLDERS} )?")
