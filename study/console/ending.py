"""Print what a study has found, where its files are, and the commands to paste next.

It reads the record and the result, and does not know how either came about.
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from study.config.recipe import Recipe
from study.console.tables import BEST, baseline_table, best_table, probe_table, tally
from study.environment import python_command
from study.formatting import format_value
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.ticker import Screen
from study.tracking.client import ui_command
from study.tuning.finish_study import Findings, StudyResult
from study.verdict.rerank import find_winner
from study.verdict.screen import probe_rows, probe_sentence
from study.verdict.trial_table import faster
from study.verdict.wording import describe_closeness, details, sentence


def print_findings(screen: Screen, findings: Findings, record: Record) -> None:
    """Print what a study has found, and the trials that have failed; a terminal gets lines wrapped at words."""
    for line in _findings(findings, record):
        screen.print(line, soft_wrap=not screen.is_terminal)


def print_places(screen: Screen, result: StudyResult, record: Record, weights: str) -> None:
    """Print the places of the model, the files and the MLflow UI.

    Args:
        screen: screen without live lines; a terminal gets lines wrapped at words, unless they are to be pasted.
        result: result of the study.
        record: record of the study.
        weights: source of the study's starting weights: "imagenet", a file's path, or "none".
    """
    for line in _remains(result):
        screen.print(line, soft_wrap=not screen.is_terminal)
    if (record.manifest.source, weights) == ("digits", "none"):
        screen.print("\ndemo     untrained networks on scikit-learn's digits: no transfer learning")
        screen.print("yours    python -m study.run --search resnet18 --data FOLDER")
        screen.print("         with a folder of images for each class in FOLDER")
    screen.print(f"\nfiles    {result.directory}", soft_wrap=True)
    for line in _next_commands(result):
        screen.print(line, soft_wrap=True)


def _findings(findings: Findings, record: Record) -> Iterator[RenderableType]:
    """Yield what probes, tested trials and a search have shown, and which trials have failed."""
    if probes := probe_rows(record):
        yield probe_table(probes, record.manifest.design.metric)
        yield probe_sentence(probes, record.manifest.design.metric)
    if findings.rows:
        yield baseline_table(findings.rows)
        if statement := faster(findings.rows):
            yield statement
        yield f"test images {findings.looks}"
    if record.space:
        yield from _search_findings(findings, record)
    for trial in [*findings.trials, *findings.finals]:
        if trial.state == "failed":
            yield f"failed   {record.manifest.design.title(trial.plan)}: {trial.reason}"


def _search_findings(findings: Findings, record: Record) -> Iterator[RenderableType]:
    trials = findings.trials
    yield best_table(trials, BEST, record.manifest)
    yield tally(trials)
    if winner := find_winner(record):
        yield f"best     #{winner.plan.key}: {_differences(winner.plan.recipe, trials[0].plan.recipe)}"
    if closeness := describe_closeness(trials, record.manifest.design.metric):
        yield f"close    {closeness}"
    if shared := _describe_sharing(trials):
        yield shared
    for field, share in findings.importances.items():
        yield f"  {field:<16} importance {share:.0%}"
    if record.time_is_up() and not findings.succeeded:
        hint = f"raise it with --resume {record.name} --time-budget"
        yield f"\nfailed   the time budget ended before any trial was complete; {hint}"
    yield f"\nverdict  {sentence(findings.verdict)}"
    if findings.verdict:
        for name, text in details(findings.verdict):
            yield f"  {name:<15} {text}"


def _remains(result: StudyResult) -> Iterator[str]:
    """Yield what was not sent, and where the model is."""
    findings = result.findings
    if result.unsent:
        hint = f"send them with --resume {result.directory.name}"
        runs = "1 run" if result.unsent == 1 else f"{result.unsent} runs"
        sending = f"{runs} could not be sent completely to {result.tracking_uri}"
        yield f"unsent   {sending}; the record keeps them: {hint}"
    if result.model:
        yield f"\nmodel    {_describe_model(result)}"
    elif findings.verdict and findings.verdict.decision:
        reason = "no refit is complete"
        if any(final.state == "complete" for final in findings.finals):
            reason = f"the final weights are not in {result.directory / 'checkpoints'}, which all nodes must share"
        yield f"\nmodel    not kept: {reason}"


def _next_commands(result: StudyResult) -> Iterator[str]:
    """Yield the commands that open the report, open MLflow and use the model, ready to be pasted into a shell."""
    python = shlex.quote(python_command())
    yield f"report   {python} -m webbrowser {(result.directory / 'report.html').absolute().as_uri()}"
    yield f"MLflow   {ui_command(result.tracking_uri, result.directory.name)}"
    if result.model:
        image = shlex.quote(str(result.example or "photo.jpg"))
        yield f"predict  {python} -m study.predict {image} --model {result.directory.name}"


def _differences(recipe: Recipe, baseline: Recipe) -> str:
    """Describe each field in which a recipe differs from the baseline's."""
    changes = [
        f"{field} {format_value(value)} instead of {format_value(getattr(baseline, field))}"
        for field, value in recipe.changes_from(baseline).items()
    ]
    return ", ".join(changes) or "the baseline's recipe"


def _describe_model(result: StudyResult) -> str:
    """Describe where the trained classifiers are, and a search's registered version."""
    if not result.findings.verdict:
        others = [path.name for path in result.models if path != result.model]
        more = f", which did best on the test images; the others: {', '.join(others)}" if others else ""
        return f"{result.model}{more}"
    version = result.registration
    if version:
        entry = f"{version.name} version {version.version}, {'champion: ' if version.champion else ''}{version.note}"
    else:
        entry = "not registered, because MLflow did not accept it; --resume tries again"
    return f"{result.model}\n  registry        {entry}"


def _describe_sharing(trials: Sequence[TrialRecord]) -> str | None:
    """Describe how the frozen blocks' outputs were obtained; None if the trials shared none."""
    images = sum((trial.features for trial in trials), Counter[str]())
    if not images:
        return None
    sources = {
        "read": "read from the store",
        "stored": "computed and stored",
        "computed": "only computed, because storing would not save time",
        "unstored": "only computed, because the store failed",
    }
    shares = [f"{images[key] / images.total():.0%} {text}" for key, text in sources.items() if images[key]]
    return f"frozen blocks' outputs: {', '.join(shares)}"
