"""The report's sections: what a record says, as text, tables and pictures for the page's template.

Computes nothing of its own: values come from the record, statistics from `statistics.py`, pictures from `figures.py`
and Optuna's own plots.
"""

import base64
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.figure import Figure

from study import figures
from study.catalogue import count_operations
from study.comparison import compare, faster
from study.config import Recipe, search_spaces_directory
from study.data import Dataset
from study.design import Design
from study.record import Record
from study.samples import draw_batch, draw_originals
from study.statistics import ClassPair, accuracy_interval, hardest_pair
from study.trials import TrialRecord
from study.verdict import choose, details, recall_verdict, sentence

MOST_PLOTTED = 500
"""Trials in Optuna's plots: what it draws beyond is a blot."""
SLICES = 3
"""Fields side by side in one picture of slices: with more the page's width leaves none enough."""
FIGURE = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?( to [\d.]+| ?%)?\*?|–")
"""A cell that holds a number, an interval, or that there is none."""
COMMAND_WIDTH = 88
"""Characters of a command's line, where it can be broken."""
READ = "* Frozen blocks' outputs were read from the store, so that this is not the speed of training from the images."


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    sortable: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold figures, to be set flush right and sorted from the largest on."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [any(column) and all(FIGURE.fullmatch(cell) for cell in column) for column in columns]

    @property
    def note(self) -> str:
        """What its stars mean; empty where it has none."""
        return READ if any(cell.endswith("*") for row in self.rows for cell in row) else ""


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    title: str
    data: str
    """In base64."""


@dataclass(frozen=True)
class Section:
    """A heading, and what stands under it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=list)
    pictures: Sequence[Picture] = field(default_factory=list)
    code: str = ""


@dataclass(frozen=True)
class View:
    """A study, as the page shows it."""

    name: str
    found: str
    """Its answer, in a sentence."""
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def describe(record: Record, dataset: Dataset | None) -> View:
    """Return a study's page: its answer, what was given, how it was trained and tested, and every trial."""
    told = record.manifest
    tested = _tested(record)
    sections = [
        _results(tested, told),
        _hardest(tested, told, dataset),
        _training(tested, told),
        *(_search_sections(record) if record.space else []),
        _given(tested, dataset),
        _all_trials(record),
        _time(record),
        _again(record),
    ]
    facts = [
        ("data", f"{told['data']}: {told['train_images']:,} training, {told['val_images']:,} validation and "
                 f"{told['test_images']:,} test images in {len(told['classes'])} classes"),
        ("split", told["split_fingerprint"]),
        ("weights", told["weights"]),
        ("seed", str(told["seed"])),
        ("software", ", ".join(f"{package} {version}" for package, version in told["versions"].items())),
    ]  # fmt: skip
    return View(record.name, _answer(record), facts, [section for section in sections if section])


def compare_studies(records: Sequence[Record]) -> View:
    """Return what several studies' tested trials say together: ranked where they were tested on the same images."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if _tested(record):
            groups.setdefault((record.manifest["data_fingerprint"], *record.manifest["classes"]), []).append(record)
    sentences, sections = [], []
    for those in groups.values():
        sentences.append(_best_of(those))
        sections += _compare_group(those)
    if len(groups) > 1:
        sentences.append("The studies were not run on the same images: accuracies are ranked for each set alone.")
    answers = [(record.name, _answer(record)) for record in records]
    return View("Side by side", " ".join(sentences) or "No trial was tested.", answers, sections)


def _best_of(records: Sequence[Record]) -> str:
    """Say which of these studies' tested trials is right most often, and which model trains fastest."""
    tested = [(record, trial) for record in records for trial in _tested(record)]
    record, best = max(tested, key=lambda pair: pair[1].test.accuracy if pair[1].test else 0.0)
    assert best.test
    told = record.manifest
    return (
        f"On {told['data']}, {best.plan.title} of {record.name} is right about {best.test.accuracy:.2%} of"
        f" {told['test_images']:,} test images, the best of {len(tested)} tested trials. {_fastest(tested)}"
    ).strip()


def _fastest(tested: Sequence[tuple[Record, TrialRecord]]) -> str:
    """Rank the models' speeds, of trials that read nothing from the store; empty where there is nothing to rank."""
    fresh = [(record, trial) for record, trial in tested if not _helped(trial)]
    rows = [row for record, trial in fresh for row in compare([trial], record.manifest["classes"])]
    devices = dict.fromkeys(f"{trial.facts.get('device')}, {trial.facts.get('precision')}" for _, trial in fresh)
    said = faster(rows) or ""
    return f"{said} They ran on different devices: {'; '.join(devices)}." if said and len(devices) > 1 else said


def _compare_group(records: Sequence[Record]) -> list[Section]:
    """Tables, the hardest pair and curves of studies that were tested on the same images."""
    told = records[0].manifest
    tested = {f"{record.name} {trial.plan.title}": trial for record in records for trial in _tested(record)}
    rows = [(record.name, *_result_row(trial, told)) for record in records for trial in _tested(record)]
    place = f"{told['data']}, {told['test_images']:,} test images"
    _, hardest = _hardest_pair([*tested.values()], told)
    curves, different = _curves(tested)
    return [
        Section(
            f"How right they are: {place}",
            f"All were tested on the same images, {told['data_fingerprint']} by their fingerprint.",
            [Table(("study", *RESULT_COLUMNS), rows, sortable=True)],
        ),
        Section(f"Hardest to tell apart: {place}", hardest),
        Section(f"How they train: {place}", different, pictures=[curves]),
    ]


def _answer(record: Record) -> str:
    if record.space:
        return sentence(recall_verdict(record)) if _judged(record) else "The verdict has not been reached."
    rows = compare(record.trials(), record.manifest["classes"])
    if not rows:
        return "No trial was completed."
    best = max(rows, key=lambda row: row.test_accuracy)
    said = f"{best.model} is right about {best.test_accuracy:.2%} of the test images"
    others = ", ".join(f"{row.model} about {row.test_accuracy:.2%}" for row in rows if row is not best)
    return f"{said}{f', {others}' if others else ''}. {faster(rows) or ''}".strip()


def _judged(record: Record) -> bool:
    """Tell whether a search has its verdict, or has ended without anything to judge."""
    if record.noted("test_labels") is not None:
        return True
    return record.noted("importances") is not None and choose(record.trials()) is None


def _tested(record: Record) -> list[TrialRecord]:
    return [trial for trial in [*record.trials(), *record.finals()] if trial.test and trial.epochs]


RESULT_COLUMNS = ("trial", "accuracy", "95 % interval", "images/s", "training s", "parameters", "trained")


def _result_row(trial: TrialRecord, told: dict[str, Any]) -> tuple[str, ...]:
    assert trial.test
    counts = np.asarray(trial.test.confusion)
    low, high = accuracy_interval(np.arange(counts.sum()) < np.trace(counts))
    images = sum(result.images_per_s * result.epoch_s for result in trial.epochs)
    return (
        trial.plan.title,
        f"{trial.test.accuracy:.2%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        _starred(f"{images / trial.training_s:.1f}" if trial.training_s else "–", trial),
        _starred(f"{trial.training_s:.1f}", trial),
        f"{trial.facts.get('parameters', 0):,}",
        f"{trial.facts.get('trainable_parameters', 0):,}",
    )


def _starred(figure: str, trial: TrialRecord) -> str:
    """Mark a speed that the store helped to; the table says below what the star means."""
    return f"{figure}*" if _helped(trial) and figure != "–" else figure


def _helped(trial: TrialRecord) -> bool:
    """Tell whether it trained on outputs from the store.

    Each trial reads there, from its second epoch on, what it has itself made of the validation images; its seconds are
    of training alone.
    """
    return any((result.features or {}).get("read", 0) > np.sum(result.val_confusion or 0) for result in trial.epochs)


def _results(tested: Sequence[TrialRecord], told: dict[str, Any]) -> Section | None:
    """Accuracy with its interval, and the confusion matrix of each."""
    if not tested:
        return None
    pictures = []
    for trial in tested:
        assert trial.test
        drawn = figures.confusion_matrix(np.asarray(trial.test.confusion), told["classes"], trial.plan.title)
        pictures.append(_picture(f"confusion matrix of {trial.plan.title}", drawn))
    table = Table(RESULT_COLUMNS, [_result_row(trial, told) for trial in tested], sortable=True)
    text = "Each was trained on all training images and tested once. The interval is Wilson's, over test images alone."
    return Section("How right they are", text, [table], pictures)


def _hardest(tested: Sequence[TrialRecord], told: dict[str, Any], dataset: Dataset | None) -> Section | None:
    """The two classes that are hardest to tell apart, over all tests, and the images mistaken most often."""
    if not tested:
        return None
    pair, text = _hardest_pair(tested, told)
    pictures = []
    if dataset:
        mistaken = np.zeros(len(dataset.test), dtype=int)
        for trial in tested:
            assert trial.test
            seen, true = np.asarray(trial.test.predictions), dataset.test.labels
            mistaken += ((true == pair.first) & (seen == pair.second)) | ((true == pair.second) & (seen == pair.first))
        often = np.argsort(-mistaken, kind="stable")[:16]
        often = often[mistaken[often] > 0]
        if len(often):
            chosen = dataset.test.take(often)
            labels = [told["classes"][label] for label in chosen.labels]
            names = [f"{name} ({times}×)" for name, times in zip(labels, mistaken[often], strict=True)]
            colours = chosen.pixels.astype(np.float32) / 255
            drawn = figures.samples(colours, range(len(often)), names, "mistaken most often, with their class")
            pictures.append(_picture("the images that were mistaken most often", drawn))
    return Section("Hardest to tell apart", text, [], pictures)


def _hardest_pair(tested: Sequence[TrialRecord], told: Mapping[str, Any]) -> tuple[ClassPair, str]:
    """Return the pair that all tests together confuse most, and a sentence of it."""
    pair = hardest_pair(np.sum([trial.test.confusion for trial in tested if trial.test], axis=0))
    first, second = told["classes"][pair.first], told["classes"][pair.second]
    said = (
        f"{first} and {second}: over {len(tested)} tests, {first} was taken for {second} {pair.first_as_second} times"
    )
    return pair, f"{said}, and {second} for {first} {pair.second_as_first} times."


def _training(tested: Sequence[TrialRecord], told: Mapping[str, Any]) -> Section | None:
    """Curves, seconds to given losses, and where the difference in speed comes from."""
    if not tested:
        return None
    curves, different = _curves({trial.plan.title: trial for trial in tested})
    marks = [] if different else _loss_marks(tested)
    digits = next(digits for digits in range(3, 18) if len({f"{mark:.{digits}g}" for mark in marks}) == len(marks))
    seconds = "Seconds of training until an epoch's mean loss was that low, and one" if marks else "One"
    speed = Table(
        ("trial", *(f"s to loss {mark:.{digits}g}" for mark in marks), "million multiply-adds", "of them frozen"),
        [
            (trial.plan.title, *(_seconds_to(trial, mark) for mark in marks), *_operations(trial, told))
            for trial in tested
        ],
        caption=f"{seconds} image's forward pass",
    )
    text = (
        "What is frozen is passed through forward alone, and in a search once for all trials; what is trained is passed"
        f" through forward and backward, about three times the work. {different}"
    )
    return Section("How they train", text.strip(), [speed], [curves])


def _curves(tested: Mapping[str, TrialRecord]) -> tuple[Picture, str]:
    """Draw training losses by epoch, and say where they are not of one kind."""
    curves = {title: [result.train_loss for result in trial.epochs] for title, trial in tested.items()}
    epochs = range(1, max(map(len, curves.values())) + 1)
    padded = {f"{title}_loss": [*losses, *[None] * (len(epochs) - len(losses))] for title, losses in curves.items()}
    drawn = _picture("training loss by epoch", figures.learning_curve(list(epochs), padded, "training loss"))
    smoothing = sorted({trial.plan.recipe.label_smoothing for trial in tested.values()})
    if len(smoothing) == 1:
        return drawn, ""
    values = ", ".join(f"{value:.3g}" for value in smoothing)
    return drawn, (
        f"The trials' label smoothing differs ({values}) and is part of their losses: the curves' heights are not to be"
        " compared, and no seconds to one loss are given."
    )


def _loss_marks(tested: Sequence[TrialRecord]) -> list[float]:
    """Return losses a quarter, half and three quarters of the way from the highest first one to the lowest."""
    highest = max(trial.epochs[0].train_loss for trial in tested)
    lowest = min(result.train_loss for trial in tested for result in trial.epochs)
    return list(dict.fromkeys(highest - share * (highest - lowest) for share in (0.25, 0.5, 0.75)))


def _seconds_to(trial: TrialRecord, loss: float) -> str:
    spent = accumulate(result.epoch_s for result in trial.epochs)
    reached = (seconds for seconds, result in zip(spent, trial.epochs, strict=True) if result.train_loss <= loss)
    return _starred(next((f"{seconds:.1f}" for seconds in reached), "–"), trial)


def _operations(trial: TrialRecord, told: Mapping[str, Any]) -> tuple[str, str]:
    recipe = trial.plan.recipe
    frozen, trained = count_operations(
        recipe.model,
        image_size=recipe.image_size,
        unfreeze_depth=recipe.unfreeze_depth,
        classes=len(told["classes"]),
    )
    return f"{(frozen + trained) / 1e6:,.0f}", f"{frozen / (frozen + trained):.0%}"


def _search_sections(record: Record) -> list[Section]:
    """The verdict's figures, and what the search itself shows of what helps."""
    trials = record.trials()
    scored = [trial for trial in trials if trial.state == "complete"]
    verdict = recall_verdict(record)
    sections = []
    if verdict:
        rows = [tuple(line) for line in details(verdict)]
        sections.append(Section("The verdict", sentence(verdict), [Table(("", ""), rows)]))
    importances = record.noted("importances") or {}
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in importances.items())
    by_depth = {}
    for trial in sorted(scored, key=lambda trial: trial.value or 0.0):
        by_depth[trial.plan.recipe.unfreeze_depth] = trial
    best = Table(
        ("unfreeze depth", "best trial", "validation accuracy"),
        [(str(depth), trial.plan.title, f"{trial.value:.2%}") for depth, trial in sorted(by_depth.items())],
        caption="The best recipe by unfreeze depth, on the validation images",
    )
    text = f"Of the differences in validation accuracy between complete trials: {shares}." if shares else ""
    pictures = []
    if len(trials) > MOST_PLOTTED:
        text += f" Beyond {MOST_PLOTTED} trials the search's plots would be blots, so there are none."
    elif len(scored) > 1:
        pictures = _plots(record.optuna_study, list(record.space.domains) if record.space else [])
    sections.append(Section("What helps, by the search itself", text.strip(), [best] if by_depth else [], pictures))
    return sections


def _plots(study: optuna.Study, fields: Sequence[str]) -> list[Picture]:
    """Draw Optuna's own plots, the slices so many fields at a time that they can be read."""
    draw = optuna.visualization.matplotlib
    name = "validation accuracy"
    pictures = [
        _plot("optimization history", 8, lambda: draw.plot_optimization_history(study, target_name=name), "tight"),
        _plot(
            "parallel coordinates",
            max(8, 1.3 * len(fields)),
            lambda: draw.plot_parallel_coordinate(study, target_name=name),
            "tight",
        ),
    ]
    for start in range(0, len(fields), SLICES):
        some = list(fields[start : start + SLICES])
        title = f"slices along {', '.join(some).replace('_', ' ')}"
        plot = partial(draw.plot_slice, study, some, target_name=name)
        pictures.append(_plot(title, 1.5 + 2.8 * len(some), plot, "constrained" if len(some) > 1 else "tight"))
    return pictures


def _given(tested: Sequence[TrialRecord], dataset: Dataset | None) -> Section:
    """The first training batch of each model, before and after augmentation."""
    title = "What the models were given"
    if dataset is None:
        return Section(title, "The images are no longer where the study found them.")
    if not tested:
        return Section(title, "No trial has been tested, so that no batch is shown.")
    first = {trial.plan.recipe.model: trial.plan for trial in reversed(tested)}
    pictures = []
    for model, plan in first.items():
        pictures.append(_picture(f"images for {model}, as stored", draw_originals(plan, dataset)))
        pictures.append(_picture(f"images for {model}, as it sees them", draw_batch(plan, dataset)))
    return Section(title, "The first training batch, as stored and as the network sees it.", [], pictures)


def _all_trials(record: Record) -> Section:
    shown = ("unfreeze_depth", "lr", "batch_size")  # of every study; a search's further fields follow behind
    searched = [name for name in record.space.domains if name not in shown] if record.space else []
    rows = [
        (
            f"#{trial.plan.key}",
            trial.plan.recipe.model,
            str(trial.plan.recipe.unfreeze_depth),
            _value(trial.plan.recipe.lr),
            str(trial.plan.recipe.batch_size),
            trial.state,
            str(len(trial.epochs)),
            "–" if trial.val_accuracy is None else f"{100 * trial.val_accuracy:.2f}",
            "–" if trial.test is None else f"{100 * trial.test.accuracy:.2f}",
            _starred(f"{trial.seconds:.1f}", trial),
            *(_value(getattr(trial.plan.recipe, name)) for name in searched),
            trial.reason or "",
        )
        for trial in [*record.trials(), *record.finals()]
    ]
    headings = ["planned epochs" if name == "epochs" else name.replace("_", " ") for name in searched]
    columns = ("trial", "model", "depth", "lr", "batch", "state", "epochs", "validation %", "test %", "s", *headings)
    return Section("Every trial", "", [Table((*columns, "reason"), rows, sortable=True)])


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(record: Record) -> Section:
    """Where the device's time went."""
    trials = [*record.trials(), *record.finals()]
    rows = []
    for state in ("complete", "pruned", "failed", "running"):
        those = [trial for trial in trials if trial.state == state]
        if those:
            spent = sum(trial.seconds for trial in those)
            rows.append((state, str(len(those)), f"{spent:,.1f}", f"{sum(trial.saved_s for trial in those):,.1f}"))
    tables = [Table(("trials", "number", "seconds spent", "seconds saved by stopping early"), rows)]
    shared = sum((trial.features for trial in trials), Counter[str]())
    text = ""
    if shared:
        parts = ", ".join(f"{count / shared.total():.0%} {source}" for source, count in shared.most_common())
        text = (
            f"The frozen blocks' outputs, by image, those of validation included: {parts}. What reading them saved in"
            " seconds is not known: reading and computing are not timed apart."
        )
    return Section("Where the time went", text, tables)


def _again(record: Record) -> Section:
    commands = [
        run_command(record),
        f"python -m study.run --resume {record.name}",
        f"python -m study.report {record.name}",
    ]
    if (record.directory / "model").is_dir():
        commands += [
            f"python -m study.run --reproduce {record.name}",
            f"python -m study.predict IMAGE … --model {record.name}",
        ]
    title, recipes = "The recipes, and how to have them again", _recipes(record)
    fields = [recipe.to_dict() for recipe in recipes.values()]
    table = Table(("field", *recipes), [(name, *(_value(values[name]) for values in fields)) for name in fields[0]])
    return Section(title, "", [table], [], "\n".join(commands))


def _recipes(record: Record) -> dict[str, Recipe]:
    """Return a search's recipe to beat and its best one, or all of a baseline's, by heading."""
    recipes = Design.from_dict(record.manifest).recipes
    if record.space is None:
        return {f"#{number}": recipe for number, recipe in enumerate(recipes)}
    winner = choose(record.trials())
    chosen = {f"#{winner.plan.key}, the best": winner.plan.recipe} if winner else {}
    return {"#0, the baseline's": recipes[0]} | {name: best for name, best in chosen.items() if best != recipes[0]}


def run_command(record: Record) -> str:
    """Return the command that runs the study once more, with all that makes its results what they are.

    Machines and records are whoever's who runs it; so is the place of downloads.
    """
    told, space = record.manifest, record.space
    design = Design.from_dict(told)
    recipe = design.recipes[0]
    flags: dict[str, object] = {
        "data": told["source"],
        "fraction": told["fraction"],
        "weights": told["weights"],
        "seed": told["seed"],
        "precision": told["precision"],
    }
    # A flag sets a field in the baseline's recipe and in the space's base alike: where these differ, none was given.
    for name in ("epochs", "image_size"):
        value = getattr(recipe, name)
        if space is None or (name not in space.domains and getattr(space.base, name) == value):
            flags[name.replace("_", "-")] = value
    if space:
        shipped = search_spaces_directory() / f"{space.name}.toml" == Path(space.file)
        what = ["--search", space.name if shipped else str(space.file)]
        flags |= {"trials": space.budget.trials, "pruner": space.pruner.name, "repeats": design.repeats}
        if space.budget.time_s is not None:
            flags["time-budget"] = f"{space.budget.time_s:.0f}s"
    else:
        what = ["--baseline", *design.models, *(["--as-written"] if design.stage == "as-written" else [])]
    lines = [shlex.join(["python", "-m", "study.run", *what])]
    for part in (shlex.join([f"--{name}", str(value)]) for name, value in flags.items()):
        if len(lines[-1]) + len(part) < COMMAND_WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def _plot(title: str, width: float, plot: Callable[[], Any], layout: Literal["constrained", "tight"]) -> Picture:
    """Draw one of Optuna's own plots, which come as axes or arrays of them, `width` inches wide.

    A colour bar beside several axes keeps off them in the constrained layout alone, one beside a single axes in the
    tight one, as do parallel coordinates.
    """
    # Optuna styles the whole process, in which MLflow's thread may be drawing: so only for as long as it must be.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        figure = np.ravel(plot())[0].figure
    plt.close(figure)
    figure.set_size_inches(width, 4.2)
    figure.set_facecolor("white")
    figure.set_layout_engine(layout)
    return _picture(title, figure)


def _picture(title: str, figure: Figure) -> Picture:
    return Picture(title, base64.b64encode(figures.png(figure)).decode())
