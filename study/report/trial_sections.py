"""Build the report sections on tested trials: test accuracy, most confused classes, training loss and speed.

Values come from the trials' records, statistics from `statistics.py` and figures from `figures.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from study.charts import figures
from study.charts.confusion import MOST_DRAWN, draw_confusion, largest_confusions
from study.charts.curves import draw_curves
from study.config.manifest import Manifest
from study.config.plan import METRICS
from study.config.recipe import Recipe
from study.data.images import Dataset
from study.formatting import format_value
from study.networks.operations import count_operations
from study.report.elements import Chart, Section, Table, draw_picture
from study.results.metrics import add_up, class_scores, count_images, count_right, format_metric, largest_class
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.statistics import ClassPair, accuracy_interval, hardest_pair


def tested_trials(record: Record) -> list[TrialRecord]:
    """Return all tested trials; the refits for the verdict come last."""
    return [trial for trial in record.all_trials() if trial.test and trial.epochs]


RESULT_COLUMNS = (
    "trial", "test accuracy", "95 % interval", "largest class", "balanced accuracy", "macro F1", "log loss", "images/s",
    "training time (s)", "parameters", "trainable parameters",
)  # fmt: skip


def result_row(trial: TrialRecord, manifest: Manifest) -> tuple[str, ...]:
    """Return a tested trial's cells in the order of RESULT_COLUMNS."""
    assert trial.test
    low, high = accuracy_interval(count_right(trial.test.confusion), count_images(trial.test.confusion))
    images = sum(result.images_per_s * result.epoch_s for result in trial.epochs)
    return (
        manifest.design.title(trial.plan),
        f"{trial.test.accuracy:.2%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{largest_class(trial.test.confusion)[1]:.2%}",
        *(format_metric(name, trial.metrics[name]) for name in METRICS[1:]),
        starred(f"{images / trial.training_s:.1f}" if trial.training_s else "–", trial),
        starred(f"{trial.training_s:.1f}", trial),
        f"{trial.facts.get('parameters', 0):,}",
        f"{trial.facts.get('trainable_parameters', 0):,}",
    )


def starred(figure: str, trial: TrialRecord) -> str:
    """Mark a time or speed with a star if the feature store helped; a note below the table explains the star."""
    return f"{figure}*" if is_helped(trial) and figure != "–" else figure


def is_helped(trial: TrialRecord) -> bool:
    """Return whether a trial trained on outputs that were read from the feature store.

    From its second epoch on, each trial reads the outputs for validation images that it stored itself. These reads do
    not count: times and speeds cover training only.
    """
    validated = next((count_images(result.val_confusion) for result in trial.epochs if result.val_confusion), 0)
    return any((result.features or {}).get("read", 0) > validated for result in trial.epochs)


def results(tested: Sequence[TrialRecord], manifest: Manifest) -> Section | None:
    """Return the section with the accuracy, its interval, the speed and the confusion matrix of each trial."""
    if not tested:
        return None
    table = Table(
        RESULT_COLUMNS,
        [result_row(trial, manifest) for trial in tested],
        sortable=True,
        marks=[trial.plan.key for trial in tested],
    )
    text = (
        "Each trial trained on all training images and was tested once. Wilson's interval covers images, not seeds. A"
        f" classifier that always predicts the largest class is right as often as that class's share says."
        f" {warn_of_nothing(tested, manifest)}"
    ).strip()
    return Section("Test accuracy", text, [table])


MOST_MATRICES = 6
"""Largest number of confusion matrices on the page, those of the best recipes."""
LARGEST = 12
"""Largest number of confusions in the table."""


def confusions(tested: Sequence[TrialRecord], manifest: Manifest) -> Section | None:
    """Return the confusion matrix of each recipe, summed over its seeds, and the best one's largest confusions."""
    recipes: dict[tuple[Recipe, str], list[TrialRecord]] = {}
    for trial in tested:
        recipes.setdefault((trial.plan.recipe, trial.plan.stage), []).append(trial)
    groups = sorted(recipes.values(), key=lambda trials: -_mean_accuracy(trials))[:MOST_MATRICES]
    if not groups:
        return None
    sums = {_title_of(trials, manifest): _sum_confusions(trials) for trials in groups}
    charts = []
    if len(manifest.classes) <= MOST_DRAWN:
        charts = [
            Chart(title, draw_confusion(counts, manifest.classes, title), full=len(counts) > 10, scrolls=True)
            for title, counts in sums.items()
        ]
    best = next(iter(sums))
    rows = [
        (true, predicted, f"{count:,}", f"{share:.1%}")
        for true, predicted, count, share in largest_confusions(sums[best], manifest.classes, LARGEST)
    ]
    columns = ("true class", "predicted class", "images", "share of the true class")
    tables = [Table(columns, rows, f"Largest confusions of {best}", sortable=True)] if rows else []
    parts = ["Rows are true classes and columns predicted classes; counts are test images, summed over seeds."]
    if len(manifest.classes) > MOST_DRAWN:
        parts = [f"With more than {MOST_DRAWN} classes, no matrix is drawn. Counts are test images, summed over seeds."]
    elif len(recipes) > len(groups):
        parts.append(f"The {len(groups)} most accurate of {len(recipes)} recipes are shown.")
    return Section("Confusion", " ".join(parts), tables, charts=charts)


def _sum_confusions(trials: Sequence[TrialRecord]) -> NDArray[np.int64]:
    return add_up(trial.test.confusion for trial in trials if trial.test)


def _mean_accuracy(trials: Sequence[TrialRecord]) -> float:
    return fmean(trial.metrics["accuracy"] for trial in trials)


def _title_of(trials: Sequence[TrialRecord], manifest: Manifest) -> str:
    """Return a trial's title, or for several seeds of a recipe a title without trial and seed."""
    title = manifest.design.title(trials[0].plan)
    if len(trials) == 1:
        return title
    return f"{title.partition(' ')[2].removesuffix(f' · seed {trials[0].plan.seed}')} · {len(trials)} seeds"


def warn_of_nothing(trials: Sequence[TrialRecord], manifest: Manifest) -> str:
    """Return a sentence for each trial that has learnt nothing; empty if all have learnt something."""
    reasons = [(trial.plan, trial.nothing_learnt(manifest)) for trial in trials if trial.finished]
    title = manifest.design.title
    return " ".join(f"{title(plan)} has learnt nothing: {reason}." for plan, reason in reasons if reason)


MOST_SCORES = 200
"""Largest number of lines in the table of classes; with more, only the most accurate tested trials are shown."""


def class_table(trials: Sequence[TrialRecord], manifest: Manifest) -> Section | None:
    """Return the section with precision and recall of each class, for each trial that was validated or tested."""
    shown = [trial for trial in trials if trial.confusion]
    text = "Precision: share of the images predicted as this class that are of it. Recall: share of its images found."
    if len(shown) * len(manifest.classes) > MOST_SCORES:
        shown = sorted((trial for trial in shown if trial.test), key=lambda trial: -trial.metrics["accuracy"])
        fitting = max(1, MOST_SCORES // len(manifest.classes))
        if len(shown) > fitting:
            text += f" Shown: {'the most accurate trial' if fitting == 1 else f'the {fitting} most accurate trials'}."
            shown = shown[:fitting]
    rows = [
        (
            manifest.design.title(trial.plan),
            "test" if trial.test else "validation",
            name,
            str(scores.images),
            *(f"{100 * value:.2f}" for value in (scores.precision, scores.recall, scores.f1)),
        )
        for trial in shown
        for name, scores in zip(manifest.classes, class_scores(trial.confusion or []), strict=False)
    ]
    columns = ("trial", "images of the", "class", "images", "precision (%)", "recall (%)", "F1 (%)")
    return Section("Precision and recall by class", text, [Table(columns, rows, sortable=True)]) if rows else None


def hardest(tested: Sequence[TrialRecord], manifest: Manifest, dataset: Dataset | None) -> Section | None:
    """Return the two classes that are confused most often over all tests, and the images confused most often."""
    if not tested:
        return None
    pair, text = hardest_pair_of(tested, manifest)
    pictures = []
    if dataset and pair:
        errors = np.zeros(len(dataset.test), dtype=int)
        for trial in (trial for trial in tested if not trial.nothing_learnt(manifest)):
            assert trial.test
            seen, true = np.asarray(trial.test.predictions), dataset.test.labels
            errors += ((true == pair.first) & (seen == pair.second)) | ((true == pair.second) & (seen == pair.first))
        worst = np.argsort(-errors, kind="stable")[:16]
        worst = worst[errors[worst] > 0]
        if len(worst):
            labels = [manifest.classes[label] for label in dataset.test.labels[worst]]
            names = [f"{name} ({times}×)" for name, times in zip(labels, errors[worst], strict=True)]
            colours = dataset.test.pixels[worst].astype(np.float32) / 255
            title = "Images of these classes that are confused most often: true class (number of errors)"
            drawn = figures.samples(colours, range(len(worst)), names, title)
            pictures.append(draw_picture("test images that are confused most often", drawn))
    return Section("Most confused classes", text, [], pictures)


def hardest_pair_of(tested: Sequence[TrialRecord], manifest: Manifest) -> tuple[ClassPair | None, str]:
    """Return the two classes that are confused most often in all tests together, and a text on them.

    Trials that have learnt nothing do not count: what they confuse says nothing about the classes.
    """
    tested = [trial for trial in tested if not trial.nothing_learnt(manifest)]
    if not tested:
        return None, "No tested trial has learnt anything, so none shows which classes are hard to tell apart."
    pair = hardest_pair(_sum_confusions(tested))
    first, second = manifest.classes[pair.first], manifest.classes[pair.second]
    tests = "one test" if len(tested) == 1 else f"{len(tested)} tests"
    text = f"Classes: {first} and {second}. Wrong predictions over {tests}: {pair.first_as_second} of class {first} as"
    return pair, f"{text} {second}, {pair.second_as_first} of class {second} as {first}."


def training(tested: Sequence[TrialRecord], manifest: Manifest) -> Section | None:
    """Return the loss curves, the training time to given losses, and the operation counts that explain the speed."""
    if not tested:
        return None
    curves, different = draw_losses({manifest.design.title(trial.plan): trial for trial in tested})
    marks = [] if different else _loss_marks(tested)
    digits = next(digits for digits in range(3, 18) if len({f"{mark:.{digits}g}" for mark in marks}) == len(marks))
    start = "Training time until an epoch's mean loss reached the value; multiply-adds" if marks else "Multiply-adds"
    speed = Table(
        ("trial", *(f"seconds to loss {mark:.{digits}g}" for mark in marks), "million multiply-adds", "frozen share"),
        [
            (
                manifest.design.title(trial.plan),
                *(_seconds_to(trial, mark) for mark in marks),
                *_operations(trial, manifest),
            )
            for trial in tested
        ],
        caption=f"{start} of one image's forward pass",
    )
    text = (
        "Frozen blocks need the forward pass only; in a search, their outputs are computed once for all trials. Trained"
        f" blocks also need the backward pass, in total about three times the work. {different}"
    )
    return Section("Training loss and speed", text.strip(), [speed], charts=[curves])


def draw_losses(tested: Mapping[str, TrialRecord]) -> tuple[Chart, str]:
    """Draw the training loss by epoch; also return a warning if the losses are not comparable, or an empty text."""
    curves = {
        title: [(float(result.epoch), result.train_loss) for result in trial.epochs] for title, trial in tested.items()
    }
    drawn = Chart("", draw_curves(curves, "epoch", "training loss"), full=True)
    recipes = [trial.plan.recipe for trial in tested.values()]
    for field in ("label_smoothing", "class_weights", "mixup", "cutmix"):
        values = sorted({getattr(recipe, field) for recipe in recipes})
        if len(values) > 1:
            shown = ", ".join(map(format_value, values))
            return drawn, (
                f"The trials' {field.replace('_', ' ')} differ{'s' * (field != 'class_weights')} ({shown}), which"
                " changes their losses. So the heights of the curves are not comparable, and times to a given loss are"
                " not shown."
            )
    return drawn, ""


def _loss_marks(tested: Sequence[TrialRecord]) -> list[float]:
    """Return the losses at 1/4, 1/2 and 3/4 of the way from the highest first-epoch loss to the lowest loss."""
    highest = max(trial.epochs[0].train_loss for trial in tested)
    lowest = min(result.train_loss for trial in tested for result in trial.epochs)
    return list(dict.fromkeys(highest - share * (highest - lowest) for share in (0.25, 0.5, 0.75)))


def _seconds_to(trial: TrialRecord, loss: float) -> str:
    spent = accumulate(result.epoch_s for result in trial.epochs)
    reached = (seconds for seconds, result in zip(spent, trial.epochs, strict=True) if result.train_loss <= loss)
    return starred(next((f"{seconds:.1f}" for seconds in reached), "–"), trial)


def _operations(trial: TrialRecord, manifest: Manifest) -> tuple[str, str]:
    recipe = trial.plan.recipe
    frozen, trained = count_operations(
        recipe.model,
        image_size=recipe.image_size,
        unfreeze_depth=recipe.unfreeze_depth,
        classes=len(manifest.classes),
    )
    return f"{(frozen + trained) / 1e6:,.0f}", f"{frozen / (frozen + trained):.0%}"
