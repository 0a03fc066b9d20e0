"""Define the functions of `import study`: run, load and list studies, and audit images.

Imports no torch, Ray, Optuna or MLflow until a function needs it.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from study.api.audits import DataAudit, audit_source
from study.api.handle import Study
from study.api.keywords import BaselineOptions, ProbeOptions, SearchOptions, read_options, worded_for_python
from study.api.planning import Job, plan_baseline, plan_probe, plan_searches
from study.api.running import run_here
from study.api.session import process_restored
from study.config.flags import images_of
from study.config.paths import find_study, list_journals
from study.config.validation import within
from study.errors import ConfigError

if TYPE_CHECKING:
    from study.api.inputs import Data


def baseline(*models: str, data: "Data | None" = None, **options: Unpack[BaselineOptions]) -> Study:
    """Train each model with the assignment's recipe and test it, as `python -m study.run --baseline` does.

    Args:
        models: names of models; none for vgg16 and resnet18.
        data: cifar10 (the default), digits, a folder, a CSV file, a DataFrame or images; see docs/python.md.
        options: the flags of `python -m study.run`, with underscores.

    Raises:
        StudyError: arguments are wrong, or the study cannot begin.
        KeyboardInterrupt: the user stopped the study; `resume` goes on with it.
    """
    return _run("baseline", [*models], BaselineOptions, plan_baseline, data, options)


def search(space: str | Path, *, data: "Data | None" = None, **options: Unpack[SearchOptions]) -> Study:
    """Search for a better recipe and judge it, as `python -m study.run --search` does.

    Args:
        space: name of a shipped search space, such as resnet18, or path of a TOML file.
        data: cifar10 (the default), digits, a folder, a CSV file, a DataFrame or images; see docs/python.md.
        options: the flags of `python -m study.run`, with underscores.

    Raises:
        StudyError: arguments are wrong, or the study cannot begin.
        KeyboardInterrupt: the user stopped the study; `resume` goes on with it.
    """
    return _run("search", [str(space)], SearchOptions, lambda read: plan_searches(read)[0], data, options)


def probe(*models: str, data: "Data | None" = None, **options: Unpack[ProbeOptions]) -> Study:
    """Rank pretrained models by linear probes of their features, as `python -m study.run --probe` does.

    Args:
        models: names of models; none for those of the shipped search space backbones.
        data: cifar10 (the default), digits, a folder, a CSV file, a DataFrame or images; see docs/python.md.
        options: the flags of `python -m study.run`, with underscores.

    Raises:
        StudyError: arguments are wrong, or the study cannot begin.
        KeyboardInterrupt: the user stopped the study; `resume` goes on with it.
    """
    return _run("probe", [*models], ProbeOptions, plan_probe, data, options)


def audit_data(
    data: "Data",
    *,
    data_dir: str | Path | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    skip_broken: bool = False,
) -> DataAudit:
    """Count images, and find copies, leaks and contradicting labels, as `python -m study.audit` does.

    Args:
        data: cifar10, digits, a folder, a CSV file, a DataFrame or images; see docs/python.md.
        data_dir: directory for downloaded images; None for the user's cache.
        test_fraction: share of each class to hold out as test images, in (0, 1); None for the default.
        seed: seed of these test images.
        skip_broken: whether to leave out image files that cannot be read.

    Raises:
        StudyError: there are no such images, or they cannot be read.
    """
    with worded_for_python(), process_restored():
        with within("data: "):
            source = images_of(_written(data))
        return audit_source(source, data_dir=data_dir, test_fraction=test_fraction, seed=seed, skip_broken=skip_broken)


def load(name: str | Path = "latest") -> Study:
    """Return a study of the current directory by its name, or the one in a directory; `latest` is the last one.

    Raises:
        ConfigError: there is no such study; the message names similar ones.
    """
    if not isinstance(name, str | Path):
        raise ConfigError(f"name: must be a string or a path, but got {name!r}.")
    directory = Path(name).absolute()
    if (directory / "journal.log").is_file():
        return Study(directory)
    if isinstance(name, Path):
        raise ConfigError(f"{name}: must be a study's directory, but holds no journal.log.")
    return Study(find_study(name, Path("mlruns").absolute()))


def list_studies() -> list[Study]:
    """Return the studies of the current directory, the last one first."""
    return [Study(journal.parent) for journal in list_journals(Path("mlruns").absolute())]


def _run(
    verb: str,
    what: list[str],
    allowed: type,
    plan: Callable[[Namespace], Job],
    data: "Data | None",
    options: Mapping[str, Any],
) -> Study:
    """Read the options of a function, plan its study and run it.

    Args:
        verb: flag of `study.run` that does the same.
        what: value of this flag.
        allowed: TypedDict of the options that the function takes.
        plan: function that plans the study.
        data: images, as the function got them.
        options: keyword arguments of the function.
    """
    with worded_for_python():
        read = read_options(verb, what, allowed, {**options, "data": _named(data)})
        result = run_here(lambda: _plan(plan, read, data))
    return Study(result.directory)


def _plan(plan: Callable[[Namespace], Job], options: Namespace, data: "Data | None") -> Job:
    """Plan a study; write data that is in memory to files only when everything else has been checked."""
    if data is not None and _named(data) is None:
        plan(Namespace(**{**vars(options), "data": str(Path.cwd())}))
        options.data = _written(data)
    return plan(options)


def _named(data: "Data | None") -> str | None:
    return str(data) if isinstance(data, str | Path) else None


def _written(data: "Data") -> str:
    """Return the name or the place of images, which are written to files if they are in memory."""
    if isinstance(data, str | Path):
        return str(data)
    from study.api.inputs import write_images

    return str(write_images(data, Path("mlruns").absolute()))
