"""Measure parts 2, 3 and 5 of the benchmark: searches against stock Ray Tune, orchestration alone, and its growth.

Every part starts its own Ray with an empty cache. Needs Ray, Optuna and MLflow.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.logging import WARNING, set_verbosity
from ray import tune

from study.bench.training import CLASSES, ROUNDS, Figure, make_images
from study.config.load_toml import baseline_recipe
from study.config.manifest import Manifest
from study.config.plan import Design, Plan
from study.config.recipe import Recipe
from study.config.search_space import SearchSpace
from study.data.images import Images
from study.dispatch.cluster import PLAIN_ENVIRONMENT, TRIAL_ENVIRONMENT, Allotment, ray_session, share_resources
from study.dispatch.run_trials import run_trials
from study.dispatch.searcher import Listener, Work
from study.dispatch.stages import put_stages
from study.models.classifier import build
from study.other_process import OtherProcess
from study.results.metrics import EpochResult, Progress
from study.results.record import Record
from study.tracking.client import connect, local_uri
from study.tracking.tracker import Tracker
from study.training import reference
from study.training.run_trial import Inputs

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "resnet18"
DEPTHS = (0, 1, 2, 3)
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)
"""A PNG file of one pixel, in place of a study's picture of a training batch."""


def make_manifest(space: SearchSpace | None = None) -> Manifest:
    """Return the manifest of a study of generated images."""
    return Manifest(
        design=Design("search", (baseline_recipe(MODEL),), space),
        data="bench",
        source="bench",
        data_dir="",
        classes=tuple(str(label) for label in range(CLASSES)),
        fraction=1.0,
        image_size=baseline_recipe(MODEL).image_size,
        train_images=0,
        val_images=0,
        test_images=0,
        data_fingerprint="none",
        split_fingerprint="none",
        weights="none",
        weights_digests={},
        seed=0,
        precision="auto",
        tracking_uri=None,
        versions={},
        git_commit=None,
    )


def make_recipes() -> list[Recipe]:
    """Return 12 recipes in random order: three per unfreeze depth, with random learning rate and batch size."""
    generator = random.Random(0)
    recipes = [
        replace(
            baseline_recipe(MODEL),
            unfreeze_depth=depth,
            lr=10 ** generator.uniform(-5, -2),
            batch_size=generator.choice([16, 32, 64, 128, 256]),
            epochs=2,
        )
        for depth in DEPTHS
        for _ in range(3)
    ]
    generator.shuffle(recipes)
    return recipes


def measure_search(folder: Path, *, images: int, recipes: list[Recipe] | None = None) -> list[Figure]:
    """Measure part 2: seconds for 12 recipes in sequence, by the assignment's loop on stock Ray Tune and by our search.

    Ray's start is not measured, and our store is empty.

    Args:
        folder: directory for all files.
        images: number of training images of an epoch; a tenth as many are used for validation.
        recipes: recipes to run; None for those of `make_recipes`.
    """
    set_verbosity(WARNING)
    recipes = recipes or make_recipes()
    train, validation = make_images(images), make_images(max(CLASSES, images // 10))
    inputs = Inputs(train, validation, None, CLASSES, {MODEL: None}, "auto", cache_gb=None)
    values: dict[str, list[float]] = {"stock Ray Tune": [], "ours": []}
    for _ in range(ROUNDS):
        with _ray(folder, PLAIN_ENVIRONMENT) as (room, allotment):
            values["stock Ray Tune"].append(_seconds(_run_stock, recipes, train, validation, allotment, room))
        with _ray(folder) as (room, allotment):
            values["ours"].append(_seconds(_run_ours, recipes, inputs, allotment, room))
    return [Figure(2, name, "s", seconds, images, len(recipes)) for name, seconds in values.items()]


def measure_orchestration(folder: Path, *, trials: int, stock_trials: int) -> list[Figure]:
    """Measure part 3: seconds per trial that does nothing, with stock Ray Tune, ours, and ours with MLflow's runs.

    The start of processes is included: ours starts one in all, and stock Ray Tune starts one per trial, so that fewer
    trials of stock Ray Tune suffice.

    Args:
        folder: directory for all files.
        trials: number of our trials.
        stock_trials: number of stock Ray Tune's trials.
    """
    set_verbosity(WARNING)
    recipes = _idle_recipes(trials)
    values: dict[str, list[float]] = {"stock Ray Tune": [], "ours": [], "ours with MLflow": []}
    for _ in range(ROUNDS):
        with _ray(folder, PLAIN_ENVIRONMENT) as (room, allotment):
            seconds = _seconds(_fit, _report_nothing, recipes[:stock_trials], allotment, room)
            values["stock Ray Tune"].append(seconds / stock_trials)
        for name in ("ours", "ours with MLflow"):
            with _ray(folder) as (room, allotment):
                client = None if name == "ours" else connect(local_uri(room), verbose=False)  # creates its tables
                values[name].append(_seconds(_run_idle, recipes, allotment, room, _Marks(()), client) / trials)
    return [
        Figure(3, name, "s a trial", seconds, trials=stock_trials if name == "stock Ray Tune" else trials)
        for name, seconds in values.items()
    ]


def measure_growth(folder: Path, *, marks: tuple[int, ...]) -> list[Figure]:
    """Measure part 5, once: memory and time of trials that do nothing, journal and MLflow included.

    One trial more than the last mark is run: when that trial starts, the process that ran all others still exists.

    Args:
        folder: directory for all files.
        marks: numbers of ended trials, ascending, at which memory and time are measured.
    """
    set_verbosity(WARNING)
    watch = _Marks(marks)
    with _ray(folder) as (room, allotment):
        _run_idle(_idle_recipes(marks[-1] + 1), allotment, room, watch, connect(local_uri(room), verbose=False))
    assert all(watch.megabytes[mark]["worker"] > 0 for mark in marks), "the trials' process must be found at every mark"
    figures = []
    for mark in marks:
        for process, megabytes in watch.megabytes[mark].items():
            figures.append(Figure(5, f"{process} at {mark:,} trials", "MB", [megabytes], trials=mark))
    # Times count from the end of the first trial, which starts a process.
    for first, last in zip((1, *marks), marks, strict=False):
        seconds = (watch.moments[last] - watch.moments[first]) / (last - first)
        figures.append(Figure(5, f"a trial, {first:,} to {last:,}", "s", [seconds], trials=last - first))
    return figures


class _Marks(Listener):
    """Listener that records time and memory at given numbers of ended trials."""

    def __init__(self, marks: tuple[int, ...]) -> None:
        self._marks = (1, *marks)
        self._started: set[str] = set()
        self.moments: dict[int, float] = {}
        self.megabytes: dict[int, dict[str, float]] = {}

    def on_start(self, plan: Plan) -> None:
        ended = len(self._started)  # trials run one at a time: when one starts, all earlier ones have ended
        self._started.add(plan.key)
        if ended in self._marks:
            memory = {"driver": own_bytes(os.getpid()), "worker": sum(map(own_bytes, _trial_processes()))}
            self.moments[ended] = time.perf_counter()
            self.megabytes[ended] = {process: used / 1e6 for process, used in memory.items()}

    def on_wait(self, plan: Plan, shortage: str) -> None:
        pass

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        pass

    def on_change(self, plan: Plan) -> None:
        pass


def _trial_processes() -> list[int]:
    """Return the ids of this process's descendants that run a trial, as Ray writes in their titles (Linux)."""
    parents: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        if facts := _read(file).rpartition(")")[2].split():  # after the name, which may contain any character
            parents[int(file.parent.name)] = int(facts[1])
    ours = {os.getpid()}
    while children := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= children
    return [process for process in ours if _read(Path(f"/proc/{process}/cmdline")).startswith("ray::ImplicitFunc")]


def own_bytes(process: int) -> int:
    """Return a process's private resident bytes; pages of Ray's object store are shared, and do not count."""
    _, resident, shared, *_ = map(int, (_read(Path(f"/proc/{process}/statm")) or "0 0 0").split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # the process has just ended
        return ""


@contextmanager
def _ray(folder: Path, environment: Mapping[str, str] = TRIAL_ENVIRONMENT) -> Iterator[tuple[Path, Allotment]]:
    """Start Ray with an empty cache; yield a directory, and an allotment of the whole machine to one trial."""
    room = Path(tempfile.mkdtemp(dir=folder))
    kept = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(room / "cache")
    try:
        with ray_session(None, verbose=False, environment=environment):
            yield room, share_resources(None, None, 1, trials=1)
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if kept is not None:
            os.environ["XDG_CACHE_HOME"] = kept


def _run_ours(recipes: list[Recipe], inputs: Inputs, allotment: Allotment, room: Path) -> None:
    record = Record.create(room / "study", make_manifest())
    record.add(Plan(None, "search", recipe, 0) for recipe in recipes)
    run_trials(lambda: Work(record, put_stages([inputs])), resources=allotment, scratch=room)
    assert all(trial.state == "complete" for trial in record.trials()), "every trial of the benchmark must complete"
    record.close()


def _run_idle(
    recipes: list[Recipe], allotment: Allotment, room: Path, watch: _Marks, client: "MlflowClient | None"
) -> None:
    record = Record.create(room / "study", make_manifest())
    record.add(Plan(None, "search", recipe, 0) for recipe in recipes)
    inputs = Inputs(make_images(1), None, None, CLASSES, {}, "auto")
    listeners: list[Listener] = [watch]
    tracker = None
    with OtherProcess() as call:
        if client:
            tracker = Tracker(client, record, artifacts=room / "artifacts", samples=lambda plan: ONE_PIXEL, call=call)
            listeners.append(tracker)
        work = Work(record, put_stages([inputs]), listeners)
        run_trials(lambda: work, resources=allotment, scratch=room, function=_do_nothing)
        if tracker:
            unsent = tracker.finish("FINISHED", {}, {})
            assert unsent == 0, "all runs must reach MLflow"
    record.close()


def _run_stock(recipes: list[Recipe], train: Images, validation: Images, allotment: Allotment, room: Path) -> None:
    _fit(tune.with_parameters(_train_stock, train=train, validation=validation), recipes, allotment, room)


def _fit(function: Callable[..., None], recipes: list[Recipe], allotment: Allotment, room: Path) -> None:
    """Run each recipe on stock Ray Tune: without our searcher, scheduler, record and store."""
    resources = {"cpu": allotment.cpus_per_trial, "gpu": allotment.gpus_per_trial}
    results = tune.Tuner(
        tune.with_resources(function, resources),
        param_space={"recipe": tune.grid_search([recipe.to_dict() for recipe in recipes])},
        tune_config=tune.TuneConfig(max_concurrent_trials=allotment.concurrent),
        run_config=tune.RunConfig(storage_path=str(room / "stock"), verbose=0),
    ).fit()
    assert results.num_errors == 0, "every trial of the benchmark must complete"


def _train_stock(config: dict[str, Any], *, train: Images, validation: Images) -> None:
    """Train one recipe with the assignment's loop, as a user of Ray Tune would write the trainable."""
    recipe = Recipe(**config["recipe"])
    hardware = reference.choose_hardware()
    network = build(MODEL, classes=CLASSES, unfreeze_depth=recipe.unfreeze_depth, pretrained=None, seed=0).network
    for epoch in reference.train(network, recipe, train, seed=0, hardware=hardware):
        scores = reference.evaluate(network, recipe, validation, seed=0, hardware=hardware)
        right = scores.argmax(1).cpu().numpy() == validation.labels
        tune.report({"train_loss": epoch.loss, "val_accuracy": float(right.mean())})


def _report_nothing(config: dict[str, Any]) -> None:
    tune.report({"val_accuracy": 0.5})


def _do_nothing(config: dict[str, Any], *, inputs: Inputs) -> None:
    confusion = [[5] * inputs.classes] * inputs.classes
    tune.report({"report": EpochResult(1, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=confusion)})


def _idle_recipes(count: int) -> list[Recipe]:
    recipe = replace(baseline_recipe(MODEL), epochs=1)
    return [replace(recipe, lr=1e-5 * (1 + number)) for number in range(count)]


def _seconds(run: Callable[..., None], *arguments: Any) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started
