"""Show a study's progress: live lines in a terminal, plain lines elsewhere.

It only reads the record, and does not know Ray Tune. It needs a caller of `Console.on_…` for each event.
"""

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from rich.console import RenderableType

from study.config.manifest import Manifest
from study.config.plan import Plan
from study.config.search_space import Categorical, Domain, Float, Int, SearchSpace
from study.console.ending import print_findings, print_places
from study.console.tables import BEST, best_table, tally
from study.data.audit import Audit
from study.data.images import Dataset
from study.dispatch.cluster import Allotment
from study.formatting import format_duration, format_value
from study.models.pretrained import Pretrained
from study.progress import WorkScreen
from study.results.metrics import NAMES, EpochResult, Progress, format_metric, largest_class
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.ticker import Ticker
from study.tuning.finish_study import Findings, StudyResult
from study.verdict.estimate import Estimate, estimate
from study.verdict.prior import describe_proposals

STAGES = {
    "baseline": "training and testing",
    "as-written": "running the assignment's own solution",
    "probe": "probing the models",
    "screen": "probing the models",
    "search": "searching",
    "rerank": "re-ranking the best trials on other seeds and images",
    "final": "refitting the best recipe and the baseline for the verdict",
}
"""What trials are run for, by their stage."""


class Console:
    """Listener that prints the events of one study."""

    def __init__(self, weights: str, ticker: Ticker, *, busy_cores: float = 0.0) -> None:
        """Set up the lines of one study.

        Args:
            weights: source of the study's starting weights: "imagenet", a file's path, or "none".
            ticker: shows the stage and the running trials; closed at the end.
            busy_cores: number of this computer's CPU cores that other programs keep busy.
        """
        self._weights = weights
        self._busy_cores = busy_cores
        self._ticker = ticker
        self._out = ticker.screen
        self._work = WorkScreen(ticker)
        self._record: Record | None = None
        self._space: SearchSpace | None = None
        self._at_once = 1
        self._stage = ""
        self._lines: dict[str, tuple[str, str]] = {}
        """Two lines of each running trial, by the trial's key: its title and epoch, and its progress."""
        self._trials: dict[str, TrialRecord] = {}
        self._hardware: set[str] = set()
        self._failures: set[str] = set()

    def print_remarks(self, remarks: Iterable[str]) -> None:
        """Print what is special about the surroundings of this study, one line each."""
        for remark in remarks:
            self._print(f"note     {remark}")

    def on_remark(self, name: str, text: str) -> None:
        """Print a sentence on the images, such as what decoding them costs."""
        self._work.on_remark(name, text)

    def on_work(self, name: str, done: int, of: int) -> None:
        """Show the progress of work on many images."""
        self._work.on_work(name, done, of)

    def on_stage(self, text: str) -> None:
        """Show what the study does from now on, where that may take more than a moment."""
        self._work.close()
        self._ticker.begin(text)

    def on_data(self, dataset: Dataset, manifest: Manifest) -> None:
        """Print the data set's name, its number of images and classes, its split, and what was left out."""
        self._ticker.end()
        height, width = dataset.train.pixels.shape[2:]
        held_out = f", {manifest.val_images:,} validation" if manifest.val_images else ""
        self._print(
            f"data     {dataset.name}: {manifest.train_images:,} training{held_out} and {manifest.test_images:,} test"
            f" images, {len(dataset.classes)} classes, stored at {width}×{height} px,"
            f" split {manifest.split_fingerprint}"
        )
        sizes = np.bincount(dataset.test.labels, minlength=len(dataset.classes))
        largest, share = largest_class(np.diag(sizes).tolist())
        self._print(f"classes  the largest, {dataset.classes[largest]}, has {share:.2%} of the test images")
        for name, text in manifest.found.describe(searched=manifest.design.validates):
            self._print(f"{name:<8} {text}")

    def on_audit(self, audit: Audit, *, dropped: bool) -> None:
        """Print what makes results on these images doubtful."""
        for warning in audit.warnings(dropped=dropped):
            self._print(f"audit    {warning}")

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """Print the starting weights of one model."""
        origin = "" if self._weights == "none" else f"{self._weights}, "
        self._print(f"weights  {model}: {origin}{pretrained.note}")

    def on_resources(self, resources: Allotment, space: SearchSpace | None) -> None:
        """Print the search space and its budget, and the CPUs and GPUs of a trial."""
        if space:
            fields = ", ".join(f"{field} {_describe_domain(domain)}" for field, domain in space.domains.items())
            trials = f"{space.budget.trials} trial{'' if space.budget.trials == 1 else 's'}"
            limit = f" or {format_duration(space.budget.time_s)}" if space.budget.time_s else ""
            self._print(f"space    {space.name}: {fields}")
            self._print(f"budget   {trials}{limit}, pruner {space.pruner.name}")
        self._print(f"machine  {resources}")
        if resources.waits_for_others(self._busy_cores, os.cpu_count() or 1):
            self._print(
                f"busy     other programs use {self._busy_cores:.1f} CPU cores. The threads of a trial then wait for"
                " each other, and it can take ten times as long. Close those programs, or add --cpus-per-trial 1."
            )
        self._at_once = resources.concurrent

    def on_record(self, record: Record) -> None:
        """Print the study's directory, and show its trials from now on."""
        self._print(f"study    {record.directory}\n", to_paste=True)
        self._record, self._space = record, record.space
        self._trials = {trial.plan.key: trial for trial in record.all_trials()}

    def on_start(self, plan: Plan) -> None:
        """Show that a trial starts, or that it starts again because its process died."""
        assert self._record
        if plan.stage in STAGES and plan.stage != self._stage:
            self._stage = plan.stage
            self.on_stage(STAGES[plan.stage])
            if plan.stage == "search" and (proposals := describe_proposals(self._record)):
                self._print(f"prior    first proposals: {proposals}")
        self._trials[plan.key] = self._record.trial(plan)
        self._show(plan, self._title(plan), "starting again" if plan.key in self._lines else "starting")

    def on_wait(self, plan: Plan, shortage: str) -> None:
        """Show that a trial cannot start yet."""
        self._show(plan, self._title(plan), shortage)

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        """Update a trial's line during an epoch; in plain output it is only printed if nothing else was for long."""
        epochs = self._trials[plan.key].epochs
        scores = f"  {self._describe_epoch(epochs[-1])}" if epochs else ""
        left = progress.of * (plan.recipe.epochs - progress.epoch + 1) - progress.images
        self._show(
            plan,
            f"{self._title(plan)}  epoch {progress.epoch}/{plan.recipe.epochs}",
            f"{progress.images / progress.of:.0%}{scores}"
            f"  {progress.images_per_s:.1f} images/s  {format_duration(left / progress.images_per_s)} left",
            now=False,
        )

    def on_change(self, plan: Plan) -> None:
        """Update a trial's line from the record; when the trial has ended, print its outcome instead."""
        assert self._record
        before = self._trials[plan.key]
        trial = self._trials[plan.key] = self._record.trial(plan)
        if trial.facts and (hardware := f"{trial.facts['device']}, {trial.facts['precision']}") not in self._hardware:
            self._hardware.add(hardware)
            self._print(f"device   {hardware}")
        failures = {f"store    {result.store_failure}" for result in trial.epochs if result.store_failure}
        failures |= {
            f"note     no CUDA graphs for trials like {plan.title}: {result.graph_failure}"
            for result in trial.epochs[:1]
            if result.graph_failure
        }
        for failure in sorted(failures - self._failures):
            self._print(failure)
        self._failures |= failures
        if trial.finished:
            if self._lines.pop(plan.key, None):
                self._refresh()
                self._print(f"{self._title(plan)}  {_outcome(trial, self._record.manifest)}")
                if not self._ticker.moves and (estimated := self._left()):
                    self._print(f"time     {estimated}")
        elif len(trial.epochs) > len(before.epochs):
            last = trial.epochs[-1]
            left = (plan.recipe.epochs - last.epoch) * last.epoch_s
            self._show(
                plan,
                f"{self._title(plan)}  epoch {last.epoch}/{plan.recipe.epochs}",
                f"{self._describe_epoch(last)}  {last.images_per_s:.1f} images/s  {format_duration(left)} left",
            )

    def close(self) -> None:
        """Remove the live lines; safe to call twice."""
        self._work.close()
        self._ticker.close()

    def on_findings(self, findings: Findings) -> None:
        """Print what the study has found."""
        assert self._record
        self._ticker.show([])
        self._ticker.end()
        print_findings(self._out, findings, self._record)

    def print_result(self, result: StudyResult) -> None:
        """Print where the result of the study is, and what to do next."""
        assert self._record
        self._ticker.end()
        self.close()
        print_places(self._out, result, self._record, self._weights)

    def _print(self, text: str, *, to_paste: bool = False) -> None:
        """Print text; a terminal gets it wrapped at words, unless it is to be pasted and no live lines are below it.

        Above live lines, rich would crop a line that is not wrapped.
        """
        whole = to_paste or not self._out.is_terminal
        self._out.print(text, soft_wrap=whole and not self._ticker.moves)

    def _show(self, plan: Plan, head: str, rest: str, *, now: bool = True) -> None:
        """Show a trial's two lines; plain output gets them as one, at once or, unless `now`, after some silence."""
        self._lines[plan.key] = head, rest
        self._refresh()
        if now and not self._ticker.moves:
            self._print(f"{head}  {rest}")

    def _describe_epoch(self, result: EpochResult) -> str:
        """Describe an epoch's training loss, and its metric in validation, or without that its training accuracy."""
        assert self._record
        metric, accuracy, split = self._record.manifest.design.metric, result.val_accuracy, "val"
        if metric != "accuracy" and metric in result.val_metrics:
            score = f"  val {NAMES[metric]} {format_metric(metric, result.val_metrics[metric])}"
            return f"train loss {result.train_loss:.4f}{score}"
        if accuracy is None:
            accuracy, split = result.train_accuracy, "train"
        scores = "" if accuracy is None else f"  {split} accuracy {100 * accuracy:.1f} %"
        return f"train loss {result.train_loss:.4f}{scores}"

    def _title(self, plan: Plan) -> str:
        assert self._record
        return self._record.manifest.design.title(plan)

    def _left(self) -> Estimate | None:
        """Return how long the study still takes; None if that is not known."""
        if not self._record:
            return None
        design = replace(self._record.manifest.design, space=self._record.space)
        refits = {trial.plan.key: trial for trial in self._record.finals()}  # also those that wait
        trials = [*(self._trials | refits).values()]
        ended = self._record.judging or self._record.time_is_up()
        return estimate(design, trials, spent_s=self._record.spent_s, at_once=self._at_once, search_ended=ended)

    def _refresh(self) -> None:
        """Redraw the running trials, and below them a search's budget, its tally and its best trials."""
        if not self._ticker.moves:
            self._ticker.show([f"{head}  {rest}" for head, rest in self._lines.values()])
            return
        parts: list[RenderableType] = [f"{head}\n  {rest}" for head, rest in self._lines.values()]
        if self._space and self._record:
            trials = [trial for trial in self._trials.values() if trial.plan.stage == "search"]
            spent = self._record.spent_s
            left = f", {self._left() or 'time left not known yet'}"
            ended = sum(trial.finished for trial in trials)
            parts += [
                f"{ended} of {self._space.budget.trials} trials have ended; {format_duration(spent)} spent{left}",
                tally(trials),
                best_table(trials, BEST, self._record.manifest),  # last, since a low screen cuts it off
            ]
        self._ticker.show(parts)


def _describe_domain(domain: Domain) -> str:
    match domain:
        case Categorical(choices):
            return " | ".join(map(str, choices))
        case Int(low, high, log) | Float(low, high, log):
            return f"{format_value(low)} … {format_value(high)}{' (log)' if log else ''}"


def _outcome(trial: TrialRecord, manifest: Manifest) -> str:
    """Describe how a trial ended: its state, device time, metric, accuracy and reason, and if it has learnt nothing."""
    outcome = f"{trial.state} after {format_duration(trial.seconds)}"
    if trial.reused_from:
        outcome = f"{trial.state}, as study {trial.reused_from} ran it"
    if trial.confusion:
        shown = dict.fromkeys([manifest.design.metric, "accuracy"])
        values = ", ".join(f"{NAMES[name]} {format_metric(name, trial.metrics[name])}" for name in shown)
        share = largest_class(trial.confusion)[1]
        outcome += f": {'test' if trial.test else 'validation'} {values} (largest class {share:.2%})"
    if trial.reason not in (None, trial.state):
        outcome += f" ({trial.reason})"
    nothing = trial.nothing_learnt(manifest)
    return f"{outcome}; has learnt nothing: {nothing}" if nothing else outcome
