"""The report's sections: what a record says, as text, tables and pictures for the page's template.

Computes nothing of its own: values come from the record, statistics from `statistics.py`, pictures from `figures.py`
and Optuna's own plots.
"""

import base64
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.figure import Figure

from study import figures
from study.catalogue import count_operations
from study.comparison import compare, faster
from study.data import Dataset
from study.record import Record
from study.samples import draw_batch, draw_originals
from study.statistics import accuracy_interval, hardest_pair
from study.trials import TrialRecord
from study.verdict import Verdict, choose, details, judge, sentence

MOST_PLOTTED = 500
"""Trials in Optuna's plots: what it draws beyond is a blot."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    sortable: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold figures, to be set flush right."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [all(cell[:1].isdigit() or cell[:1] in ("-", "–", "") for cell in column) for column in columns]


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
        _training(tested),
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
    """Return what several studies' tested trials say side by side."""
    rows = [
        (record.name, *_result_row(trial, record.manifest)) for record in records for trial in _tested(record)
    ]  # fmt: skip
    table = Table(("study", *RESULT_COLUMNS), rows, sortable=True)
    same = {record.manifest["data_fingerprint"] for record in records}
    text = "" if len(same) == 1 else "The studies were not run on the same images: their accuracies cannot be compared."
    answers = [(record.name, _answer(record)) for record in records]
    return View("Side by side", f"{len(records)} studies", answers, [Section("Tested", text, [table])])


def _answer(record: Record) -> str:
    if record.space:
        return sentence(_verdict(record))
    rows = compare(record.trials(), record.manifest["classes"])
    if not rows:
        return "No trial was completed."
    best = max(rows, key=lambda row: row.test_accuracy)
    said = f"{best.model} is right about {best.test_accuracy:.2%} of the test images"
    others = ", ".join(f"{row.model} about {row.test_accuracy:.2%}" for row in rows if row is not best)
    return f"{said}{f', {others}' if others else ''}. {faster(rows) or ''}".strip()


def _verdict(record: Record) -> Verdict | None:
    winner, labels = choose(record.trials()), record.noted("test_labels")
    if winner is None or labels is None:
        return None
    baseline = record.trials()[0].plan.recipe
    return judge(record.finals(), labels=labels, baseline=baseline, winner=winner, classes=record.manifest["classes"])


def _tested(record: Record) -> list[TrialRecord]:
    return [trial for trial in [*record.trials(), *record.finals()] if trial.test and trial.epochs]


RESULT_COLUMNS = ("trial", "accuracy", "95 % interval", "images/s", "seconds", "parameters", "trained")


def _result_row(trial: TrialRecord, told: dict[str, Any]) -> tuple[str, ...]:
    assert trial.test
    counts = np.asarray(trial.test.confusion)
    low, high = accuracy_interval(np.arange(counts.sum()) < np.trace(counts))
    images = sum(result.images_per_s * result.epoch_s for result in trial.epochs)
    return (
        trial.plan.title,
        f"{trial.test.accuracy:.2%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{images / trial.seconds:.1f}" if trial.seconds else "–",
        f"{trial.seconds:.1f}",
        f"{trial.facts.get('parameters', 0):,}",
        f"{trial.facts.get('trainable_parameters', 0):,}",
    )


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
    counts = np.sum([trial.test.confusion for trial in tested if trial.test], axis=0)
    pair = hardest_pair(counts)
    first, second = told["classes"][pair.first], told["classes"][pair.second]
    text = (
        f"{first} and {second}: over {len(tested)} tests, {first} was taken for {second} {pair.first_as_second} times, "
        f"and {second} for {first} {pair.second_as_first} times."
    )
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


def _training(tested: Sequence[TrialRecord]) -> Section | None:
    """Curves, seconds to given losses, and where the difference in speed comes from."""
    if not tested:
        return None
    curves = {trial.plan.title: [result.train_loss for result in trial.epochs] for trial in tested}
    epochs = range(1, max(map(len, curves.values())) + 1)
    padded = {f"{title}_loss": [*losses, *[None] * (len(epochs) - len(losses))] for title, losses in curves.items()}
    drawn = figures.learning_curve(list(epochs), padded, "training loss")
    highest = max(losses[0] for losses in curves.values())
    lowest = min(min(losses) for losses in curves.values())
    marks = [round(highest - share * (highest - lowest), 2) for share in (0.25, 0.5, 0.75)]
    speed = Table(
        ("trial", *(f"s to loss {mark:g}" for mark in marks), "million multiply-adds", "of them frozen"),
        [(trial.plan.title, *(_seconds_to(trial, mark) for mark in marks), *_operations(trial)) for trial in tested],
        caption="Seconds of training until an epoch's mean loss was that low, and one image's forward pass",
    )
    text = (
        "What is frozen is passed through forward alone, and in a search once for all trials; what is trained is passed"
        " through forward and backward, about three times the work."
    )
    return Section("How they train", text, [speed], [_picture("training loss by epoch", drawn)])


def _seconds_to(trial: TrialRecord, loss: float) -> str:
    spent = accumulate(result.epoch_s for result in trial.epochs)
    reached = (seconds for seconds, result in zip(spent, trial.epochs, strict=True) if result.train_loss <= loss)
    return next((f"{seconds:.1f}" for seconds in reached), "–")


def _operations(trial: TrialRecord) -> tuple[str, str]:
    recipe = trial.plan.recipe
    frozen, trained = count_operations(recipe.model, image_size=recipe.image_size, unfreeze_depth=recipe.unfreeze_depth)
    return f"{(frozen + trained) / 1e6:,.0f}", f"{frozen / (frozen + trained):.0%}"


def _search_sections(record: Record) -> list[Section]:
    """The verdict's figures, and what the search itself shows of what helps."""
    trials = record.trials()
    scored = [trial for trial in trials if trial.value is not None]
    verdict = _verdict(record)
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
    plots: dict[str, Callable[..., Any]] = {
        "optimization history": optuna.visualization.matplotlib.plot_optimization_history,
        "parallel coordinates": optuna.visualization.matplotlib.plot_parallel_coordinate,
        "slices along each hyperparameter": optuna.visualization.matplotlib.plot_slice,
    }
    pictures = []
    if len(scored) > 1 and len(trials) <= MOST_PLOTTED:
        pictures = [_plot(title, plot, record.optuna_study) for title, plot in plots.items()]
    sections.append(Section("What helps, by the search itself", text, [best] if by_depth else [], pictures))
    return sections


def _given(tested: Sequence[TrialRecord], dataset: Dataset | None) -> Section:
    """The first training batch of each model, before and after augmentation."""
    title = "What the models were given"
    if dataset is None:
        return Section(title, "The images are no longer where the study found them.")
    first = {trial.plan.recipe.model: trial.plan for trial in reversed(tested)}
    pictures = []
    for model, plan in first.items():
        pictures.append(_picture(f"images for {model}, as stored", draw_originals(plan, dataset)))
        pictures.append(_picture(f"images for {model}, as it sees them", draw_batch(plan, dataset)))
    return Section(title, "The first training batch, as stored and as the network sees it.", [], pictures)


def _all_trials(record: Record) -> Section:
    rows = [
        (
            f"#{trial.plan.key}",
            trial.plan.recipe.model,
            str(trial.plan.recipe.unfreeze_depth),
            f"{trial.plan.recipe.lr:.3g}",
            str(trial.plan.recipe.batch_size),
            trial.state,
            str(len(trial.epochs)),
            "–" if trial.val_accuracy is None else f"{100 * trial.val_accuracy:.2f}",
            "–" if trial.test is None else f"{100 * trial.test.accuracy:.2f}",
            f"{trial.seconds:.1f}",
            trial.reason or "",
        )
        for trial in [*record.trials(), *record.finals()]
    ]
    columns = ("trial", "model", "depth", "lr", "batch", "state", "epochs", "validation %", "test %", "s", "reason")
    return Section("Every trial", "", [Table(columns, rows, sortable=True)])


def _time(record: Record) -> Section:
    """Where the device's time went."""
    trials = [*record.trials(), *record.finals()]
    rows = []
    for state in ("complete", "pruned", "failed", "running"):
        those = [trial for trial in trials if trial.state == state]
        if those:
            spent = sum(trial.seconds for trial in those)
            rows.append((state, str(len(those)), f"{spent:,.1f}", f"{sum(trial.saved_s for trial in those):,.1f}"))
    shared = sum((trial.features for trial in trials), start=trials[0].features) if trials else None
    tables = [Table(("trials", "number", "seconds spent", "seconds saved"), rows)]
    text = ""
    if shared:
        parts = ", ".join(f"{count / shared.total():.0%} {source}" for source, count in shared.items())
        text = f"The frozen blocks' outputs, by image: {parts}."
    return Section("Where the time went", text, tables)


def _again(record: Record) -> Section:
    commands = [f"python -m study.report {record.name}", f"python -m study.run --resume {record.name}"]
    if (record.directory / "model").is_dir():
        commands += [
            f"python -m study.run --reproduce {record.name}",
            f"python -m study.predict IMAGE … --model {record.name}",
        ]
    winner = choose(record.trials()) if record.space else None
    recipe = winner.plan.recipe if winner else record.trials()[0].plan.recipe
    table = Table(("field", "value"), [(name, str(value)) for name, value in recipe.to_dict().items()])
    title = "The best recipe, and how to have it again" if winner else "The recipe, and how to have it again"
    return Section(title, "", [table], [], "\n".join(commands))


def _plot(title: str, plot: Callable[..., Any], study: optuna.Study) -> Picture:
    """Draw one of Optuna's own plots, which come as axes or arrays of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = plot(study)
        figure = np.ravel(axes)[0].figure
        figure.set_size_inches(11 if "slices" in title else 8, 4.2)
        figure.set_facecolor("white")
        figure.tight_layout()
        drawn = _picture(title, figure)
    plt.close(figure)
    return drawn


def _picture(title: str, figure: Figure) -> Picture:
    return Picture(title, base64.b64encode(figures.png(figure)).decode())
