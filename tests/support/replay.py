"""Replay searches over recorded learning curves: each trial is looked up in a table, and none is trained.

`tests/replay/README.md` describes the table. The search asks, reports, prunes and tells as the record does.
"""

import csv
import gzip
import heapq
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from study.config.load_toml import baseline_recipe
from study.config.search_space import Budget, Categorical, Float, Int, Pruner, Resources, SearchSpace
from study.results.optuna_adapters import build_pruner, build_sampler, propose
from study.seeding import derive_seed
from study.verdict.prior import take_turns

CURVES = Path(__file__).parents[1] / "replay" / "curves.csv.gz"
MODEL = "timm/tf_efficientnet_lite0"
FIELDS = ("unfreeze_depth", "lr", "batch_size", "lr_schedule")
BASELINE = {"unfreeze_depth": 1, "lr": 1e-3, "batch_size": 64, "lr_schedule": "constant"}
"""The first trial of every search, as in search_spaces/baseline.toml."""
EARLIER = 12
"""Trials of each earlier study that recipes are taken from."""
CLASSES = {"cifar10": 10, "digits": 10, "vehicles": 4, "animals": 6, "small": 10, "vehicles-again": 4}
"""Numbers of classes of the tasks, which have about equally many images of each."""
AGAIN = "vehicles-again"
"""The task that repeats vehicles with another seed: its difference is noise."""

Values = Mapping[str, Any]
Propose = Callable[[optuna.Study, int], optuna.Trial]
"""Function from a study and the seed of the proposal to the next trial."""


@dataclass(frozen=True)
class Curve:
    """What a recipe has reached."""

    accuracy: Mapping[float, float]
    """Validation accuracy in [0, 1] by the epochs so far; fractions are parts of the first epoch."""
    loss: Mapping[float, float]
    """Validation loss, likewise."""
    test_accuracy: float
    """After the last epoch, on images that nothing else uses."""
    seconds: float
    """Duration of one epoch: the least over the recipes of the same cost, since other programs ran beside."""

    @cached_property
    def epochs(self) -> list[int]:
        """Numbers of the whole epochs."""
        return sorted(int(at) for at in self.accuracy if at == int(at) and at > 0)

    def rungs(self, first: float) -> list[tuple[float, int]]:
        """Return the epochs after which a trial reports, and the steps of these reports: the first report is step 1.

        Args:
            first: part of the first epoch after which the first report comes: 0.25, 0.5, or 1 for whole epochs only.
        """
        early = [at for at in sorted(self.accuracy) if first - 0.1 < at < 1][:1] if first < 1 else []
        return [*((at, 1) for at in early), *((epoch, round(epoch / first)) for epoch in self.epochs)]

    @property
    def final(self) -> float:
        """Validation accuracy after the last epoch."""
        return self.accuracy[self.epochs[-1]]


@dataclass(frozen=True)
class Table:
    """The curves of every recipe of a grid on one task."""

    task: str
    curves: Mapping[tuple[Any, ...], Curve]
    """Curves by the values of FIELDS."""
    probe: Curve

    def levels(self, field: str) -> list[Any]:
        """Return the values that a field has in the grid."""
        return sorted({key[FIELDS.index(field)] for key in self.curves})

    def snap(self, values: Values) -> tuple[Any, ...]:
        """Return the recipe of the grid that is nearest to the values; numbers are compared by their logarithms."""
        key = []
        for field in FIELDS:
            levels, value = self.levels(field), values[field]
            if isinstance(value, str) or value in levels:
                key.append(value)
            else:
                key.append(min(levels, key=lambda level: abs(math.log(level) - math.log(value))))
        return tuple(key)

    @property
    def guess(self) -> float:
        """Accuracy of a classifier that looks at no image."""
        return 1 / CLASSES[self.task]

    @cached_property
    def best(self) -> float:
        """Best final validation accuracy of any recipe."""
        return max(curve.final for curve in self.curves.values())

    @cached_property
    def best_test(self) -> float:
        """Best test accuracy of any recipe."""
        return max(curve.test_accuracy for curve in self.curves.values())

    @cached_property
    def space(self) -> SearchSpace:
        """The search space of the grid; its learning rate takes all values between those of the grid."""
        depths, rates, batches = (self.levels(field) for field in FIELDS[:3])
        domains = {
            "unfreeze_depth": Int(depths[0], depths[-1]),
            "lr": Float(rates[0], rates[-1], log=True),
            "batch_size": Int(batches[0], batches[-1], log=True),
            "lr_schedule": Categorical(tuple(self.levels("lr_schedule"))),
        }
        return SearchSpace("replay", CURVES, domains, baseline_recipe(MODEL), Budget(), Pruner(), Resources())


def load_tables(file: Path = CURVES) -> dict[str, Table]:
    """Return the recorded tables by the names of their tasks."""
    rows: dict[str, dict[tuple[Any, ...], list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(file, "rt", newline="") as text:
        for row in csv.DictReader(text):
            rows[row["task"]][_key(row)].append(row)
    tables = {}
    for task, found in rows.items():
        seconds: dict[Any, float] = {}
        for key, steps in found.items():
            whole = [float(step["seconds"]) for step in steps if float(step["epoch"]) > 1]
            if key and whole:
                cost = (key[0], key[2])
                seconds[cost] = min(seconds.get(cost, math.inf), statistics.median(whole))
        curves = {key: _curve(steps, seconds[key[0], key[2]]) for key, steps in found.items() if key}
        tables[task] = Table(task, curves, _curve(found[()], float(found[()][0]["seconds"])))
    return tables


def _key(row: Mapping[str, str]) -> tuple[Any, ...]:
    """Return the recipe of a row; () for the probe."""
    if not row["lr"]:
        return ()
    return int(row["unfreeze_depth"]), float(row["lr"]), int(row["batch_size"]), row["lr_schedule"]


def _curve(steps: Sequence[Mapping[str, str]], seconds: float) -> Curve:
    return Curve(
        accuracy={float(step["epoch"]): float(step["val_accuracy"]) for step in steps},
        loss={float(step["epoch"]): float(step["val_loss"]) for step in steps},
        test_accuracy=next(float(step["test_accuracy"]) for step in steps if step["test_accuracy"]),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Ran:
    """One trial of a replayed search."""

    key: tuple[Any, ...]
    state: str
    """complete or pruned; no recipe of the table failed."""
    epochs: float
    """Number of epochs that it trained."""
    ended: float
    """Seconds since the search began."""


@dataclass(frozen=True)
class Search:
    """A replayed search."""

    table: Table
    trials: Sequence[Ran]

    def chosen(self, count: int) -> Curve:
        """Return the curve of the recipe that the first trials would choose: the best complete one, as `judge.choose`.

        The first trial, the baseline, is always complete.
        """
        complete = [self.table.curves[ran.key] for ran in self.trials[:count] if ran.state == "complete"]
        return max(complete, key=lambda curve: (curve.final, -curve.loss[curve.epochs[-1]]))

    def regret(self, count: int) -> float:
        """Return how far the chosen recipe is below the best one, in validation accuracy."""
        return self.table.best - self.chosen(count).final

    def test_regret(self, count: int) -> float:
        """Return how far the chosen recipe is below the best one, in test accuracy."""
        return self.table.best_test - self.chosen(count).test_accuracy

    def ended_by(self, time: float) -> int:
        """Return how many trials had ended after a time, in durations of the first trial, the baseline."""
        return sum(ran.ended <= time * self.trials[0].ended for ran in self.trials)

    def epochs(self, count: int) -> float:
        """Return the number of epochs that the first trials trained."""
        return sum(ran.epochs for ran in self.trials[:count])


def search(
    table: Table,
    propose: Propose,
    pruner: optuna.pruners.BasePruner,
    *,
    trials: int,
    seed: int,
    first: Sequence[Values] = (),
    workers: int = 1,
    first_rung: float = 1,
) -> Search:
    """Search a table: the baseline's recipe, then the first proposals, then the sampler's.

    Trials end in the order of their recorded seconds, so with several workers a proposal sees those that have ended.

    Args:
        table: table of the task.
        propose: function that asks for the next trial.
        pruner: pruner; the first trial runs all its epochs, as in a study.
        trials: number of trials.
        seed: seed of the search.
        first: recipes that are tried after the baseline.
        workers: number of trials that run at a time.
        first_rung: part of the first epoch after which a trial first reports; 1 for whole epochs only.
    """
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name=f"{table.task} {seed}")
    for values in (BASELINE, *first):
        study.enqueue_trial(dict(values))
    running: list[tuple[float, int, optuna.Trial, int]] = []  # when its next report comes, number, trial, that report
    ran: dict[int, Ran] = {}
    clock, begun = 0.0, 0
    while begun < trials or running:
        while begun < trials and len(running) < workers:
            trial = propose(study, derive_seed(seed, "sampler", begun))
            curve = table.curves[table.snap(trial.params)]
            heapq.heappush(running, (clock + curve.seconds * curve.rungs(first_rung)[0][0], trial.number, trial, 0))
            begun += 1
        clock, number, trial, report = heapq.heappop(running)
        key = table.snap(trial.params)
        curve = table.curves[key]
        (at, step), *later = curve.rungs(first_rung)[report:]
        trial.report(curve.accuracy[at], step)
        if not later:
            study.tell(trial, curve.accuracy[at])
            ran[number] = Ran(key, "complete", at, clock)
        elif trial.should_prune() and number:
            study.tell(trial, state=TrialState.PRUNED)
            ran[number] = Ran(key, "pruned", at, clock)
        else:
            heapq.heappush(running, (clock + curve.seconds * (later[0][0] - at), number, trial, report + 1))
    return Search(table, [ran[number] for number in sorted(ran)])


def run(
    table: Table,
    seed: int,
    trials: int,
    *,
    build: Callable[[int], optuna.samplers.BaseSampler] = build_sampler,
    pruner: optuna.pruners.BasePruner | None = None,
    **more: Any,
) -> Search:
    """Replay one search with the sampler and the pruner that a study has by default; `more` goes to `search`."""

    def ask(study: optuna.Study, own: int) -> optuna.Trial:
        return propose(study, table.space, own, build)

    return search(table, ask, pruner or build_pruner(table.space, table.guess), trials=trials, seed=seed, **more)


def first_recipes(table: Table, others: Sequence[Table], seed: int, count: int) -> Iterator[Values]:
    """Yield the recipes that a search takes from replayed studies of the other tasks, in a random order of studies."""
    histories = {}
    for other in random.Random(seed).sample(others, len(others)):
        done = run(other, seed + 1_000, EARLIER)
        complete = [(number, ran) for number, ran in enumerate(done.trials) if ran.state == "complete"]
        scores = {number: other.curves[ran.key].final for number, ran in complete}
        best = sorted((pair for pair in complete if scores[pair[0]] >= scores[0]), key=lambda pair: -scores[pair[0]])
        histories[other.task] = [(number, dict(zip(FIELDS, ran.key, strict=True))) for number, ran in best]
    for proposal, _ in zip(take_turns(table.space, histories, tried=BASELINE), range(count), strict=False):
        yield proposal.values
