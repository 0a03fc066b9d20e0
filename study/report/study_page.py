"""Build the report of one study: the main result, test results, search results, images, trials, time and commands.

This module computes no statistics. `trial_sections.py` and `search_sections.py` build the sections on tested trials and
on the search.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from study.config.load_toml import baseline_recipe
from study.config.manifest import Manifest
from study.config.paths import search_spaces_directory
from study.config.plan import NO_PRIOR, Design
from study.config.recipe import Recipe, shown_fields
from study.data.images import Dataset
from study.formatting import format_value
from study.report.copies import images_section
from study.report.elements import Section, Table, View, draw_picture
from study.report.sample_batch import draw_batch, draw_originals
from study.report.search_sections import search_sections
from study.report.summary import answer, summarise
from study.report.trial_sections import class_table, confusions, hardest, results, starred, tested_trials, training
from study.results.metrics import largest_class
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.rerank import find_winner
from study.verdict.screen import HOPELESS_NOTE, PROBE_COLUMNS, probe_cells, probe_rows, probe_sentence


def describe(record: Record, dataset: Dataset | None) -> View:
    """Return the report of one study; without `dataset`, sample images are left out."""
    manifest = record.manifest
    tested = tested_trials(record)
    sections = [
        *(search_sections(record) if record.space else []),
        results(tested, manifest),
        confusions(tested, manifest),
        hardest(tested, manifest, dataset),
        training(tested, manifest),
        _probes(record),
        images_section(record, tested),
        _given(tested, dataset),
        class_table(record.all_trials(), manifest),
        _all_trials(record),
        _time(record),
        _particulars(record),
        _again(record),
    ]
    return View(record.name, answer(record), [section for section in sections if section], summarise(record))


def _particulars(record: Record) -> Section:
    """Return what else determines the results: data, weights, seed and versions."""
    manifest = record.manifest
    rows = [
        *manifest.found.describe(searched=manifest.design.validates),
        ("data fingerprint", manifest.data_fingerprint),
        ("split fingerprint", manifest.split_fingerprint),
        ("weights", manifest.weights),
        ("seed", str(manifest.seed)),
        ("software", ", ".join(f"{package} {version}" for package, version in manifest.versions.items())),
    ]
    return Section("Data, weights and versions", "", [Table(("", ""), rows)])


def _probes(record: Record) -> Section | None:
    """Return the section on linear probes; None if the study has none."""
    design = record.manifest.design
    rows = probe_rows(record)
    if not rows:
        return None
    text = (
        f"{probe_sentence(rows, design.metric)} Each probe is a logistic regression on the features before the"
        " network's last layer, without fine-tuning. The intervals cover images only. Each probe's penalty was chosen"
        " on the same images, so its accuracy is a little too good. Images/s are those of prediction, preprocessing"
        " included."
    )
    note = HOPELESS_NOTE if any(row.hopeless for row in rows) else ""
    cells = [[cell.replace("\n", ", ") for cell in probe_cells(row, design.metric)] for row in rows]
    return Section("Linear probes", text, [Table(PROBE_COLUMNS, cells, caption=note)])


def _given(tested: Sequence[TrialRecord], dataset: Dataset | None) -> Section:
    """Return the first training batch of each model: the stored images and the network's input."""
    title = "First training batch"
    if dataset is None:
        return Section(title, "The images of the study are missing or have changed, so no batch is shown.")
    if not tested:
        return Section(title, "No trial was tested, so no batch is shown.")
    first = {trial.plan.recipe.model: trial.plan for trial in reversed(tested)}
    pictures = []
    for model, plan in first.items():
        pictures.append(draw_picture(f"first training batch of {model}, stored images", draw_originals(plan, dataset)))
        pictures.append(draw_picture(f"first training batch of {model}, network input", draw_batch(plan, dataset)))
    return Section(title, "Each model's first training batch, as stored and as network input.", [], pictures)


def _all_trials(record: Record) -> Section:
    shown = ("model", "unfreeze_depth", "lr", "batch_size")  # in every study; other searched fields come last
    searched = [name for name in record.space.domains if name not in shown] if record.space else []
    rows = [
        (
            f"#{trial.plan.key}",
            trial.plan.recipe.model,
            str(trial.plan.recipe.unfreeze_depth),
            format_value(trial.plan.recipe.lr),
            str(trial.plan.recipe.batch_size),
            trial.state,
            str(len(trial.epochs)),
            "–" if trial.val_accuracy is None else f"{100 * trial.val_accuracy:.2f}",
            "–" if trial.test is None else f"{100 * trial.test.accuracy:.2f}",
            starred(f"{trial.seconds:.1f}", trial),
            *_other_metrics(trial),
            *(format_value(getattr(trial.plan.recipe, name)) for name in searched),
            _remarks(trial, record.manifest),
        )
        for trial in record.all_trials()
    ]
    headings = ["planned epochs" if name == "epochs" else name.replace("_", " ") for name in searched]
    columns = ("trial", "model", "unfreeze depth", "lr", "batch size", "state", "epochs")
    measured = ("validation accuracy (%)", "test accuracy (%)", "device time (s)", *OTHERS)
    marks = [trial.plan.key for trial in record.all_trials()]
    table = Table((*columns, *measured, *headings, "reason"), rows, sortable=True, marks=marks)
    return Section("All trials", "", [table])


OTHERS = ("largest class (%)", "balanced accuracy (%)", "macro F1 (%)", "log loss")
"""Columns of `_other_metrics`."""


def _other_metrics(trial: TrialRecord) -> tuple[str, ...]:
    """Return the cells of OTHERS, on the images of the test, or else of the validation."""
    if not trial.confusion:
        return ("–",) * len(OTHERS)
    shares = largest_class(trial.confusion)[1], *(trial.metrics[name] for name in ("balanced_accuracy", "macro_f1"))
    loss = trial.metrics.get("log_loss")
    return *(f"{100 * share:.2f}" for share in shares), "–" if loss is None else f"{loss:.4f}"


def _remarks(trial: TrialRecord, manifest: Manifest) -> str:
    nothing = trial.nothing_learnt(manifest) if trial.finished else None
    return "; ".join(filter(None, [trial.reason, nothing and f"has learnt nothing: {nothing}"]))


def _time(record: Record) -> Section:
    """Return the device time by trial state, and the sources of the frozen blocks' outputs."""
    trials = record.all_trials()
    rows = []
    for state in ("complete", "pruned", "failed", "running"):
        group = [trial for trial in trials if trial.state == state]
        if group:
            spent = sum(trial.seconds for trial in group)
            rows.append((state, str(len(group)), f"{spent:,.1f}", f"{sum(trial.saved_s for trial in group):,.1f}"))
    tables = [Table(("state", "trials", "device time (s)", "saved by pruning (s)"), rows)]
    sources = sum((trial.features for trial in trials), Counter[str]())
    text = ""
    if sources:
        parts = ", ".join(f"{count / sources.total():.0%} {source}" for source, count in sources.most_common())
        text = (
            f"Sources of the frozen blocks' outputs, counted by training and validation image: {parts}. The time saved"
            " by reading outputs is not known, because reading and computing are not timed separately."
        )
    return Section("Device time", text, tables)


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
    title, recipes = "Recipes and commands", _recipes(record)
    rows = [
        (name, *(format_value(getattr(recipe, name)) for recipe in recipes.values()))
        for name in shown_fields(recipes.values())
    ]
    table = Table(("field", *recipes), rows)
    return Section(title, "", [table], [], "\n".join(commands))


def _recipes(record: Record) -> dict[str, Recipe]:
    """Return the recipes by column heading: the baseline and the best one of a search, or all fixed trials."""
    recipes = record.manifest.design.recipes
    if record.space is None:
        return {f"#{number}": recipe for number, recipe in enumerate(recipes)}
    winner = find_winner(record)
    chosen = {f"#{winner.plan.key} (best)": winner.plan.recipe} if winner else {}
    return {"#0 (baseline)": recipes[0]} | {name: best for name, best in chosen.items() if best != recipes[0]}


COMMAND_WIDTH = 88
"""Characters per line of the command; a flag with its value is never split."""


def run_command(record: Record) -> str:
    """Return the command that runs the study again, with all flags that determine its results.

    Flags that do not determine the results are left out: those for hardware, cluster, cache, name and directories.
    """
    manifest, space = record.manifest, record.space
    design, found = manifest.design, manifest.found
    flags: dict[str, object] = {
        "data": manifest.source,
        "fraction": manifest.fraction,
        "weights": manifest.weights,
        "seed": manifest.seed,
        "precision": manifest.precision,
    }
    if found.test_fraction is not None:
        flags["test-fraction"] = found.test_fraction
    if found.leaks != "keep":
        flags["leaks"] = found.leaks
    flags |= _recipe_flags(design)
    if design.metric != "accuracy":
        flags["metric"] = design.metric
    if space:
        shipped = search_spaces_directory() / f"{space.name}.toml" == Path(space.file)
        earlier = dict.fromkeys(proposal.study for proposal in design.proposals)
        what = ["--search", space.name if shipped else str(space.file), "--prior", *(earlier or [NO_PRIOR])]
        flags |= {"trials": space.budget.trials, "pruner": space.pruner.name, "repeats": design.repeats}
        flags["rerank"] = design.rerank
        if space.budget.time_s is not None:
            flags["time-budget"] = f"{space.budget.time_s:.0f}s"
    else:
        what = [
            f"--{'probe' if design.stage == 'probe' else 'baseline'}",
            *design.models,
            *(["--as-written"] if design.stage == "as-written" else []),
        ]
    what += ["--demo"] if _is_demo(design) else []
    what += ["--skip-broken"] if found.skip_broken else []
    lines = [shlex.join(["python", "-m", "study.run", *what])]
    for part in (shlex.join([f"--{name}", str(value)]) for name, value in flags.items()):
        if len(lines[-1]) + len(part) < COMMAND_WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def _recipe_flags(design: Design) -> dict[str, object]:
    """Return the flags that change every recipe of a design, and their values."""
    flags: dict[str, object] = {}
    recipe, space = design.recipes[0], design.space
    if recipe.fit != "crop":
        flags["fit"] = recipe.fit
    for name in ("epochs", "image_size")[design.stage == "probe" :]:
        value = getattr(recipe, name)
        same = all(getattr(other, name) == value for other in design.recipes)  # if not, each has its model's own
        # A flag sets a field in both the baseline's recipe and the space's base. If these differ, no flag was given.
        if same and (space is None or (name not in space.domains and getattr(space.base, name) == value)):
            flags[name.replace("_", "-")] = value
    return flags


def _is_demo(design: Design) -> bool:
    """Return whether recipes have values that no flag but --demo gives them."""
    usual = [baseline_recipe(recipe.model) for recipe in design.recipes]
    pairs = [*zip(design.recipes, usual, strict=True)]
    if design.stage != "probe":  # a probe augments no image
        return any(recipe.augmentation != other.augmentation for recipe, other in pairs)
    sizes = {recipe.image_size for recipe in design.recipes}
    return len(sizes) > 1 and any(recipe.image_size != other.image_size for recipe, other in pairs)
