"""What a person sees of a study while it runs and at its end: live lines in a terminal, plain lines elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

from study.cluster import Resources
from study.comparison import Row, faster
from study.config import Plan
from study.data import Dataset
from study.models import Pretrained
from study.record import Record, TrialRecord
from study.tracking import ui_command
from study.training import Progress
from study.tuner import StudyResult


class Console:
    """Observes a study for a person."""

    def __init__(self) -> None:
        """Print to standard output."""
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._live = Live(console=self._out, auto_refresh=False, transient=True)
        self._record: Record | None = None
        self._running: dict[int, str] = {}
        self._plans: dict[int, Plan] = {}
        self._epochs: dict[int, int] = {}

    def on_data(self, dataset: Dataset, manifest: Mapping[str, Any]) -> None:
        """Say which images there are."""
        height, width = dataset.train.pixels.shape[2:]
        self._out.print(
            f"data     {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images, "
            f"{len(dataset.classes)} classes, stored {width}×{height} px, fingerprint {manifest['data_fingerprint']}"
        )

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """Say what a model starts from."""
        self._out.print(f"weights  {model}: {pretrained.note}")

    def on_resources(self, resources: Resources) -> None:
        """Say what a trial gets."""
        self._out.print(f"device   {resources}")

    def on_record(self, record: Record) -> None:
        """Say where the study is kept, and show its trials from now on."""
        self._out.print(f"study    {record.directory}\n")
        self._record = record
        if self._out.is_terminal:
            self._live.start()

    def on_start(self, plan: Plan) -> None:
        """Open a trial's line."""
        self._plans[plan.number] = plan
        self._show(plan.number, "starting")

    def on_progress(self, number: int, progress: Progress) -> None:
        """Renew a trial's line."""
        recipe = self._plans[number].recipe
        left = progress.of * (recipe.epochs - progress.epoch + 1) - progress.images
        epochs = self._record.trial(number).epochs if self._record else ()
        loss = f"  loss {epochs[-1].train_loss:.4f}" if epochs else ""
        self._show(
            number,
            f"epoch {progress.epoch}/{recipe.epochs} {progress.images / progress.of:4.0%}{loss}"
            f"  {progress.images_per_s:.1f} images/s  {_duration(left / progress.images_per_s)} left",
            live_only=True,
        )

    def on_change(self, number: int) -> None:
        """Renew a trial's line from the record, and close it when the trial has finished."""
        assert self._record
        trial = self._record.trial(number)
        if trial.finished:
            self._running.pop(number, None)
            self._print(f"{trial.plan.title}  {_outcome(trial)}")
        elif len(trial.epochs) > self._epochs.get(number, 0):
            self._epochs[number] = len(trial.epochs)
            last = trial.epochs[-1]
            accuracy = "" if last.val_accuracy is None else f"  accuracy {last.val_accuracy:.2%}"
            left = (trial.plan.recipe.epochs - last.epoch) * last.epoch_s
            self._show(
                number,
                f"epoch {last.epoch}/{trial.plan.recipe.epochs}  loss {last.train_loss:.4f}{accuracy}"
                f"  {last.images_per_s:.1f} images/s  {_duration(left)} left",
            )

    def close(self) -> None:
        """Take the live lines away; safe to call twice."""
        self._live.stop()

    def print_result(self, result: StudyResult) -> None:
        """Print the models side by side, what failed, and where everything is."""
        self.close()
        if result.rows:
            self._out.print(_side_by_side(result.rows))
            if statement := faster(result.rows):
                self._out.print(statement)
        for trial in result.trials:
            if trial.state == "failed":
                self._out.print(f"failed: {trial.plan.title}: {trial.reason}")
        if result.unsent:
            self._out.print(f"{result.unsent} runs could not be sent to {result.tracking_uri}; the record has them.")
        self._out.print(f"\nfiles    {result.directory}\nMLflow   {ui_command(result.tracking_uri)}")

    def _show(self, number: int, text: str, *, live_only: bool = False) -> None:
        self._running[number] = f"{self._plans[number].title}  {text}"
        if self._live.is_started:
            self._live.update("\n".join(self._running.values()), refresh=True)
        elif not live_only:
            self._out.print(self._running[number])

    def _print(self, line: str) -> None:
        if self._live.is_started:
            self._live.update("\n".join(self._running.values()), refresh=True)
        self._out.print(line)


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
    if trial.value is None:
        return f"{trial.state}: {trial.reason}" if trial.reason else trial.state
    split = "test" if trial.test else "validation"
    seconds = sum(result.epoch_s for result in trial.epochs)
    return f"{trial.state}: {split} accuracy {trial.value:.2%} after {_duration(seconds)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
