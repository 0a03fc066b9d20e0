"""Compare samplers, pruners, rungs and earlier studies on the recorded curves.

`PYTHONPATH=tests python tests/replay/compare.py samplers processes pruners hopeless rungs prior` prints the tables of
docs/sampler-and-pruner.md. CMA-ES needs the package cmaes.
"""

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import optuna
from optuna import pruners, samplers
from scipy.stats import spearmanr
from support.replay import AGAIN, Search, Table, first_recipes, load_tables, run

from study.results.optuna_adapters import HOPELESS, GuardedPruner, build_sampler

Build = Callable[[int], samplers.BaseSampler]
BUDGETS = (8, 12, 20)
SEEDS, SLOW_SEEDS = 30, 8
"""Numbers of seeds; the second is that of the Gaussian process, whose proposals take a hundred times as long."""


def tpe(**changes: object) -> Build:
    """Return a function that builds the default sampler with changed settings."""
    settings = {"multivariate": True, "group": True, "constant_liar": True, **changes}
    return lambda seed: samplers.TPESampler(seed=seed % 2**32, **settings)


SAMPLERS: Mapping[str, Build] = {
    "TPE, as it is (10 random)": build_sampler,
    "TPE, fields apart": tpe(multivariate=False, group=False),
    "TPE, 6 random": tpe(n_startup_trials=6),
    "TPE, 4 random": tpe(n_startup_trials=4),
    "TPE, 2 random": tpe(n_startup_trials=2),
    "CMA-ES": lambda seed: samplers.CmaEsSampler(seed=seed % 2**32, warn_independent_sampling=False),
    "quasi-random (Sobol)": lambda seed: samplers.QMCSampler(seed=0, warn_independent_sampling=False),
    "random": lambda seed: samplers.RandomSampler(seed=seed % 2**32),
}
PROCESSES: Mapping[str, Build] = {
    "Gaussian process, 10 random": lambda seed: samplers.GPSampler(seed=seed % 2**32),
    "Gaussian process, 4 random": lambda seed: samplers.GPSampler(seed=seed % 2**32, n_startup_trials=4),
}


def halving(factor: int) -> pruners.BasePruner:
    """Return asynchronous successive halving from the first epoch."""
    return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)


PRUNERS: Mapping[str, Callable[[float], pruners.BasePruner]] = {
    "halving, as it is (guarded, factor 2)": lambda guess: GuardedPruner(halving(2), guess),
    "none": lambda guess: pruners.NopPruner(),
    "halving, factor 2": lambda guess: halving(2),
    "halving, factor 3": lambda guess: halving(3),
    "halving, guarded, factor 3": lambda guess: GuardedPruner(halving(3), guess),
    "Hyperband, factor 2": lambda guess: pruners.HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=2),
    "Hyperband, factor 3": lambda guess: pruners.HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=3),
    "median": lambda guess: pruners.MedianPruner(n_startup_trials=4),
    "median, patience 1": lambda guess: pruners.PatientPruner(pruners.MedianPruner(n_startup_trials=4), patience=1),
    "halving, as it is, patience 1": lambda guess: pruners.PatientPruner(GuardedPruner(halving(2), guess), patience=1),
    "Wilcoxon, p < 0.1": lambda guess: pruners.WilcoxonPruner(p_threshold=0.1),
}
"""Pruners by their names, each built for the score of a guess."""
SHARES = (HOPELESS, -math.inf, 0.1, 0.35, 0.5)
"""Shares of the best trial's progress below which a trial is hopeless; with the second, no trial is."""
TIMES = (4, 6, 9, 14)
"""Durations of a search, in those of its first trial, the baseline."""
TRIALS_IN_TIME = 40
"""More trials than fit into most of TIMES."""
Results = Mapping[tuple[str, int, int], tuple[float, float, float]]
"""Regret and test regret in points, and epochs, by task, seed and budget: a number of trials, or a duration."""


def main() -> None:
    """Print the parts that are asked for."""
    parts = {
        "samplers": compare_samplers,
        "processes": compare_processes,
        "pruners": compare_pruners,
        "hopeless": compare_shares,
        "rungs": compare_rungs,
        "prior": compare_prior,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tables = load_tables()
    for part in given.parts:
        parts[part](tables, range(given.first_seed, given.first_seed + SEEDS))


def first_tasks(tables: Mapping[str, Table]) -> list[Table]:
    """Return all tasks but the repeated one."""
    return [table for name, table in tables.items() if name != AGAIN]


def measure(
    tables: Sequence[Table], seeds: Sequence[int], make: Callable[[Table, int], Search], *, by_time: bool = False
) -> Results:
    """Replay a search for each task and seed, and return its figures at each budget, or after each duration."""
    found = {}
    for table in tables:
        for seed in seeds:
            done = make(table, seed)
            for budget in TIMES if by_time else BUDGETS:
                count = done.ended_by(budget) if by_time else budget
                found[table.task, seed, budget] = figures(done, count)
    return found


def figures(done: Search, budget: int) -> tuple[float, float, float]:
    """Return regret and test regret in points, and epochs, of a search's first trials."""
    return 100 * done.regret(budget), 100 * done.test_regret(budget), done.epochs(budget)


def show(title: str, results: Mapping[str, Results]) -> None:
    """Print a row for each side, with a cell for each budget.

    A cell has the mean regret, its difference from the first side ± the standard error over seeds, the test regret and
    its difference likewise, the epochs, and the mean rank. A seed's difference is the mean over tasks, since a seed's
    random proposals are the same for all tasks.
    """
    print(f"\n## {title}")
    reference = next(iter(results.values()))
    budgets = sorted({budget for *_, budget in reference})
    for name, found in results.items():
        cells = []
        for budget in budgets:
            keys = [key for key in found if key[2] == budget]
            parts = []
            for part in range(2):
                gaps: dict[int, list[float]] = {}
                for key in keys:
                    gaps.setdefault(key[1], []).append(found[key][part] - reference[key][part])
                means = [statistics.mean(values) for values in gaps.values()]
                error = statistics.stdev(means) / math.sqrt(len(means))
                regret = statistics.mean(found[key][part] for key in keys)
                parts.append(f"{regret:.2f} ({statistics.mean(means):+.2f} ± {error:.2f})")
            epochs = statistics.mean(found[key][2] for key in keys)
            place = statistics.mean(place_of(name, key, results) for key in keys)
            cells.append(f"{', '.join(parts)}, {epochs:.1f}, {place:.1f}")
        print(f"{name:38s} | {' | '.join(cells)}", flush=True)


def place_of(name: str, key: tuple[str, int, int], results: Mapping[str, Results]) -> float:
    """Return the rank of a side's regret among all sides in one search; equal ones share the mean of their ranks."""
    regrets = [found[key][0] for found in results.values() if key in found]
    own = results[name][key][0]
    return sum(regret < own for regret in regrets) + (1 + sum(regret == own for regret in regrets)) / 2


def compare_samplers(tables: Mapping[str, Table], seeds: Sequence[int]) -> None:
    """Compare samplers, with the default pruner."""
    tasks = first_tasks(tables)
    show("samplers", {name: measure(tasks, seeds, partial(run, trials=20, build=of)) for name, of in SAMPLERS.items()})


def compare_processes(tables: Mapping[str, Table], seeds: Sequence[int]) -> None:
    """Compare the default sampler with Gaussian processes, with fewer seeds."""
    tasks = first_tasks(tables)
    sides = {**dict(list(SAMPLERS.items())[:1]), **PROCESSES}
    found = {name: measure(tasks, seeds[:SLOW_SEEDS], partial(run, trials=20, build=of)) for name, of in sides.items()}
    show("Gaussian processes", found)


def compare_pruners(tables: Mapping[str, Table], seeds: Sequence[int]) -> None:
    """Compare pruners, with the default sampler."""
    tasks = first_tasks(tables)

    def replay(table: Table, seed: int, of: Callable[[float], pruners.BasePruner]) -> Search:
        return run(table, seed, 20, pruner=of(table.guess))

    show("pruners", {name: measure(tasks, seeds, partial(replay, of=of)) for name, of in PRUNERS.items()})


def compare_shares(tables: Mapping[str, Table], seeds: Sequence[int]) -> None:
    """Compare shares below which a trial is hopeless, after the same numbers of trials and after the same times."""
    tasks = first_tasks(tables)

    def replay(table: Table, seed: int, share: float, trials: int) -> Search:
        return run(table, seed, trials, pruner=GuardedPruner(halving(2), table.guess, share))

    for by_time, trials in ((False, BUDGETS[-1]), (True, TRIALS_IN_TIME)):
        sides = {f"share {share}": partial(replay, share=share, trials=trials) for share in SHARES}
        found = {name: measure(tasks, seeds, make, by_time=by_time) for name, make in sides.items()}
        show(f"hopeless, by {'time' if by_time else 'trials'}", found)


def compare_rungs(tables: Mapping[str, Table], seeds: Sequence[int]) -> None:
    """Print how well early validations predict the final order, and replay searches with rungs within an epoch."""
    for table in tables.values():
        curves = list(table.curves.values())
        final = [curve.final for curve in curves]
        cells = []
        for first in (0.25, 0.5, 1):
            early = [curve.accuracy[curve.rungs(first)[0][0]] for curve in curves]
            cells.append(f"{first}: {spearmanr(early, final).statistic:.2f}")
        cells.append(f"2: {spearmanr([curve.accuracy[2] for curve in curves], final).statistic:.2f}")
        print(f"{table.task:16s} Spearman by epochs {', '.join(cells)}")
    both = [[curve.final for curve in tables[name].curves.values()] for name in ("vehicles", AGAIN)]
    print(f"vehicles and {AGAIN}: {spearmanr(*both).statistic:.2f}")
    sides = {f"first rung after {first} epochs": partial(run, trials=20, first_rung=first) for first in (1, 0.5, 0.25)}
    show("rungs", {name: measure(first_tasks(tables), seeds, make) for name, make in sides.items()})


def compare_prior(tables: Mapping[str, Table], seeds: Sequence[int]) -> None:
    """Replay searches on each task with and without recipes of studies on the other tasks."""
    tasks = first_tasks(tables)
    sources = {
        "no earlier study": lambda task, other: False,
        "of all other tasks": lambda task, other: task is not other,
        "of the other kind of images only": lambda task, other: (task.task == "digits") != (other.task == "digits"),
    }
    results: dict[str, Results] = {}
    for name, takes in sources.items():
        found = {}
        for table in tasks:
            for seed in seeds:
                others = [other for other in tasks if takes(table, other)]
                for budget in BUDGETS:
                    first = list(first_recipes(table, others, seed, (budget - 1) // 3))
                    found[table.task, seed, budget] = figures(run(table, seed, budget, first=first), budget)
        results[name] = found
    show("earlier studies", results)
    for table in tasks:
        shares = []
        for name in results:
            values = [found[0] for key, found in results[name].items() if key[0] == table.task and key[2] == 12]
            shares.append(f"{name} {statistics.mean(values):.2f}")
        print(f"{table.task}, 12 trials: {', '.join(shares)}")


if __name__ == "__main__":
    main()
