"""A study's page: its answer, what was given, how it was trained and tested, and every trial.

Computes nothing of its own: what tested trials and a search say is put together in rooms of their own.
"""

from collections import Counter
from collections.abc import Sequence

from study.comparison import compare, faster
from study.config import Recipe
from study.data import Dataset
from study.design import Design
from study.record import Record
from study.report_page import Section, Table, View, draw_picture
from study.report_search import search_sections
from study.report_tested import hardest, results, starred, tested_trials, training
from study.rerun import run_command
from study.samples import draw_batch, draw_originals
from study.trials import TrialRecord
from study.verdict import choose, recall_verdict, sentence


def describe(record: Record, dataset: Dataset | None) -> View:
    """Return a study's page: its answer, what was given, how it was trained and tested, and every trial."""
    told = record.manifest
    tested = tested_trials(record)
    sections = [
        results(tested, told),
        hardest(tested, told, dataset),
        training(tested, told),
        *(search_sections(record) if record.space else []),
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
    return View(record.name, answer(record), facts, [section for section in sections if section])


def answer(record: Record) -> str:
    """Return what a study has found, in a sentence or two."""
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
        pictures.append(draw_picture(f"images for {model}, as stored", draw_originals(plan, dataset)))
        pictures.append(draw_picture(f"images for {model}, as it sees them", draw_batch(plan, dataset)))
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
            starred(f"{trial.seconds:.1f}", trial),
            *(_value(getattr(trial.plan.recipe, name)) for name in searched),
            trial.reason or "",
        )
        for trial in record.all_trials()
    ]
    headings = ["planned epochs" if name == "epochs" else name.replace("_", " ") for name in searched]
    columns = ("trial", "model", "depth", "lr", "batch", "state", "epochs", "validation %", "test %", "s", *headings)
    return Section("Every trial", "", [Table((*columns, "reason"), rows, sortable=True)])


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(record: Record) -> Section:
    """Where the device's time went."""
    trials = record.all_trials()
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
