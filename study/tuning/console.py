"""What a person sees of a study while it runs and at its end: live lines in a terminal, plain lines elsewhere."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from study.config.manifest import Manifest
from study.config.plan import Plan
from study.config.recipe import Recipe
from study.config.search_space import Categorical, Domain, Float, Int, SearchSpace
from study.data.images import Dataset
from study.formatting import format_duration, format_value
from study.models.pretrained import Pretrained
from study.results.metrics import EpochResult, Progress
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.results.trial_table import Row, faster
from study.results.verdict import choose
from study.results.wording import details, sentence
from study.tracking.client import ui_command
from study.tuning.cluster import Allotment
from study.tuning.finish_study import StudyResult

PREDICT = "python -m study.predict IMAGE … --model {}"


def open_screen(**options: Any) -> RichConsole:
    """Return rich's console, which is to print text as it is: a path or a class may look like markup of its own."""
    return RichConsole(highlight=False, markup=False, emoji=False, **options)


class Console:
    """Observes a study for a person."""

    def __init__(self, weights: str, screen: RichConsole | None = None) -> None:
        """Print to a screen from `open_screen`, by default standard output; `weights` are the study's."""
        self._weights = weights
        self._out = screen or open_screen()
        self._live = Live(console=self._out, auto_refresh=False, transient=True)
        self._record: Record | None = None
        self._space: SearchSpace | None = None
        self._lines: dict[str, tuple[str, str]] = {}
        """Of the running trials, by key: which trial and epoch it is, and how that goes."""
        self._trials: dict[str, TrialRecord] = {}
        self._hardware: set[str] = set()
        self._store_failures: set[str] = set()

    def on_data(self, dataset: Dataset, manifest: Manifest) -> None:
        """Say which images there are, and how they are split."""
        height, width = dataset.train.pixels.shape[2:]
        held_out = f", {manifest.val_images:,} validation" if manifest.val_images else ""
        self._say(
            f"data     {dataset.name}: {manifest.train_images:,} training{held_out} and {manifest.test_images:,} test"
            f" images, {len(dataset.classes)} classes, stored {width}×{height} px, split {manifest.split_fingerprint}"
        )

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """Say what a model starts from."""
        origin = "" if self._weights == "none" else f"{self._weights}, "
        self._say(f"weights  {model}: {origin}{pretrained.note}")

    def on_resources(self, resources: Allotment, space: SearchSpace | None) -> None:
        """Say what is searched, for how long, and what a trial gets."""
        if space:
            fields = ", ".join(f"{field} {_describe_domain(domain)}" for field, domain in space.domains.items())
            limit = f" or {format_duration(space.budget.time_s)}" if space.budget.time_s else ""
            self._say(f"space    {space.name}: {fields}")
            self._say(f"budget   {space.budget.trials} trials{limit}, pruner {space.pruner.name}")
        self._say(f"machine  {resources}")

    def on_record(self, record: Record) -> None:
        """Say where the study is kept, and show its trials from now on."""
        self._say(f"study    {record.directory}\n")
        self._record, self._space = record, record.space
        self._trials = {trial.plan.key: trial for trial in record.all_trials()}
        if self._out.is_terminal:
            self._live.start()

    def on_start(self, plan: Plan) -> None:
        """Open a trial's line, or say that it starts again."""
        assert self._record
        self._trials[plan.key] = self._record.trial(plan)
        self._show(plan, plan.title, "starting again" if plan.key in self._lines else "starting")

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        """Renew a trial's line, in a terminal."""
        if not self._live.is_started:
            return
        epochs = self._trials[plan.key].epochs
        said = f"  {_describe_epoch(epochs[-1])}" if epochs else ""
        left = progress.of * (plan.recipe.epochs - progress.epoch + 1) - progress.images
        self._show(
            plan,
            f"{plan.title}  epoch {progress.epoch}/{plan.recipe.epochs}",
            f"{progress.images / progress.of:.0%}{said}"
            f"  {progress.images_per_s:.1f} images/s  {format_duration(left / progress.images_per_s)} left",
        )

    def on_change(self, plan: Plan) -> None:
        """Renew a trial's line from the record, and close it when the trial has finished."""
        assert self._record
        before = self._trials[plan.key]
        trial = self._trials[plan.key] = self._record.trial(plan)
        if trial.facts and (hardware := f"{trial.facts['device']}, {trial.facts['precision']}") not in self._hardware:
            self._hardware.add(hardware)
            self._say(f"device   {hardware}")
        failures = {result.store_failure for result in trial.epochs if result.store_failure}
        for failure in sorted(failures - self._store_failures):
            self._say(f"store    {failure}")
        self._store_failures |= failures
        if trial.finished:
            if self._lines.pop(plan.key, None):
                self._refresh()
                self._say(f"{plan.title}  {_outcome(trial)}")
        elif len(trial.epochs) > len(before.epochs):
            last = trial.epochs[-1]
            left = (plan.recipe.epochs - last.epoch) * last.epoch_s
            self._show(
                plan,
                f"{plan.title}  epoch {last.epoch}/{plan.recipe.epochs}",
                f"{_describe_epoch(last)}  {last.images_per_s:.1f} images/s  {format_duration(left)} left",
            )

    def close(self) -> None:
        """Take the live lines away; safe to call twice."""
        self._live.stop()

    def print_result(self, result: StudyResult) -> None:
        """Print what was found, what failed, and where everything is."""
        self.close()
        if result.rows:
            self._out.print(_side_by_side(result.rows))
            if statement := faster(result.rows):
                self._say(statement)
        if self._space:
            self._print_search(result)
        for trial in [*result.trials, *result.finals]:
            if trial.state == "failed":
                self._say(f"failed   {trial.plan.title}: {trial.reason}")
        if result.unsent:
            again = f"--resume {result.directory.name} sends them once it answers"
            self._say(f"unsent   {result.unsent} runs, to {result.tracking_uri}; the record has them, and {again}")
        if result.model:
            self._say(f"\nmodel    {_describe_model(result)}")
        elif result.verdict and result.verdict.decision:
            checkpoints = result.directory / "checkpoints"
            self._say(f"\nmodel    not kept: its last weights must reach {checkpoints}, which all nodes must share")
        self._say(f"\nfiles    {result.directory}\nMLflow   {ui_command(result.tracking_uri)}")

    def _print_search(self, result: StudyResult) -> None:
        self._out.print(_best(result.trials, 5))
        self._say(_tally(result.trials))
        if winner := choose(result.trials):
            self._say(f"best     #{winner.plan.key}: {_differences(winner.plan.recipe, result.trials[0].plan.recipe)}")
        if shared := _shared(result.trials):
            self._say(shared)
        for field, share in result.importances.items():
            self._say(f"  {field:<16} mattered {share:.0%}")
        if self._record and self._record.time_is_up() and not result.succeeded:
            again = f"--resume {result.directory.name} --time-budget gives it more"
            self._say(f"\nfailed   the time budget ended before any trial was complete; {again}")
        self._say(f"\nverdict  {sentence(result.verdict)}")
        if result.verdict:
            for name, text in details(result.verdict):
                self._say(f"  {name:<15} {text}")

    def _say(self, text: str) -> None:
        """Print lines whole; under live lines, which the same setting would crop, they are wrapped."""
        self._out.print(text, soft_wrap=not self._live.is_started)

    def _show(self, plan: Plan, head: str, rest: str) -> None:
        self._lines[plan.key] = head, rest
        if self._live.is_started:
            self._refresh()
        else:
            self._say(f"{head}  {rest}")

    def _refresh(self) -> None:
        """Draw the running trials anew, under a search's best trials and what it has spent."""
        if not self._live.is_started:
            return
        parts: list[RenderableType] = [f"{head}\n  {rest}" for head, rest in self._lines.values()]
        if self._space and self._record:
            trials = [trial for trial in self._trials.values() if trial.plan.stage != "final"]
            spent = self._record.spent_s
            limit = self._space.budget.time_s
            left = f", {format_duration(max(0.0, limit - spent))} left" if limit else ""
            ended = sum(trial.finished for trial in trials)
            parts += [
                _best(trials, 5),
                f"{ended} of {self._space.budget.trials} trials have ended; {format_duration(spent)} spent{left}",
                _tally(trials),
            ]
        self._live.update(Group(*parts), refresh=True)


def _describe_epoch(result: EpochResult) -> str:
    """Say its loss, and its accuracy where that is known: on validation images, or else as it was trained."""
    accuracy, where = result.val_accuracy, ""
    if accuracy is None:
        accuracy, where = result.train_accuracy, " (training)"
    return f"loss {result.train_loss:.4f}" + ("" if accuracy is None else f"  accuracy {100 * accuracy:.1f} %{where}")


def _differences(recipe: Recipe, baseline: Recipe) -> str:
    """Say all in which a recipe differs from the baseline's."""
    before = baseline.to_dict()
    changes = [
        f"{field} {format_value(value)} instead of {format_value(before[field])}"
        for field, value in recipe.to_dict().items()
        if value != before[field]
    ]
    return ", ".join(changes) or "the baseline's recipe"


def _describe_model(result: StudyResult) -> str:
    """Say where the trained classifier is, what the registry made of it, and how to use it."""
    found = result.registration
    if found:
        said = f"{found.name} version {found.version}, {'champion: ' if found.champion else ''}{found.note}"
    else:
        said = "not registered, since MLflow did not take it; --resume tries again"
    return f"{result.model}\n  registry        {said}\n  use             {PREDICT.format(result.directory.name)}"


def _describe_domain(domain: Domain) -> str:
    match domain:
        case Categorical(choices):
            return " | ".join(map(str, choices))
        case Int(low, high, log) | Float(low, high, log):
            return f"{format_value(low)} … {format_value(high)}{' (log)' if log else ''}"


def _best(trials: Sequence[TrialRecord], number: int) -> Table:
    """Return the table of the best trials by validation accuracy, the complete ones first."""
    scored = [trial for trial in trials if trial.val_accuracy is not None]
    scored.sort(key=lambda trial: (trial.state == "complete", trial.val_accuracy), reverse=True)
    table = Table(title="Best on the validation images", title_justify="left")
    for heading in ("trial", "accuracy", "epochs", "state"):
        table.add_column(heading, justify="left" if heading in {"trial", "state"} else "right")
    for trial in scored[:number]:
        table.add_row(trial.plan.title, f"{trial.val_accuracy:.2%}", str(len(trial.epochs)), trial.state)
    return table


def _tally(trials: Sequence[TrialRecord]) -> str:
    counts = Counter(trial.state for trial in trials)
    spent, saved = sum(trial.seconds for trial in trials), sum(trial.saved_s for trial in trials)
    states = ", ".join(f"{counts[state]} {state}" for state in ("complete", "pruned", "failed"))
    return f"{states}; {format_duration(spent)} of device time spent, {format_duration(saved)} saved by pruning"


def _shared(trials: Sequence[TrialRecord]) -> str | None:
    """Say where the frozen blocks' outputs came from; None where trials shared nothing."""
    images = sum((trial.features for trial in trials), Counter[str]())
    if not images:
        return None
    said = {
        "read": "read from the store",
        "stored": "computed and stored",
        "computed": "computed alone, since storing would not have paid",
        "unstored": "computed alone, since the store did not work",
    }
    shares = [f"{images[key] / images.total():.0%} {text}" for key, text in said.items() if images[key]]
    return f"frozen blocks: {', '.join(shares)}"


def _side_by_side(rows: Sequence[Row]) -> Table:
    """Return the table of a baseline: a column a model, a line a figure."""
    table = Table(title="Trained on all training images, tested once", title_justify="left")
    table.add_column()
    for row in rows:
        table.add_column(row.model, justify="right")
    table.add_row("trainable parameters", *(f"{row.trainable_parameters:,}" for row in rows))
    table.add_row("training", *(f"{row.seconds:.1f} s" for row in rows))
    table.add_row("images/s", *(f"{row.images_per_s:.1f}" for row in rows))
    for epoch in range(max(len(row.losses) for row in rows)):
        table.add_row(f"loss of epoch {epoch + 1}", *(f"{row.losses[epoch]:.4f}" for row in rows))
    table.add_row("test accuracy", *(f"{row.test_accuracy:.2%}" for row in rows))
    table.add_row("hardest pair", *(row.hardest_pair for row in rows))
    return table


def _outcome(trial: TrialRecord) -> str:
    """Say how a trial ended."""
    said = f"{trial.state} after {format_duration(trial.seconds)}"
    if trial.test:
        said += f": test accuracy {trial.test.accuracy:.2%}"
    elif trial.val_accuracy is not None:
        said += f": validation accuracy {trial.val_accuracy:.2%}"
    return f"{said} ({trial.reason})" if trial.reason not in (None, trial.state) else said
