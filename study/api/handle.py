"""Give a study as a Python object: its state, verdict, trials, report and predictions, read from its record."""

import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from study.api.keywords import ResumeOptions, read_options, worded_for_python
from study.api.planning import plan_resumption
from study.api.running import run_here
from study.config.recipe import shown_fields
from study.errors import ConfigError, RecordError

if TYPE_CHECKING:
    import pandas as pd

    from study.api.predictions import Picture, Prediction
    from study.config.recipe import Recipe
    from study.models.saved_model import SavedModel
    from study.results.record import Record
    from study.results.trial_record import TrialRecord
    from study.verdict.verdict import Verdict


class Study:
    """A study on disk. Each property reads its record, so it is up to date even while another process runs it."""

    def __init__(self, directory: Path) -> None:
        """Use `study.load`, which finds a study by its name."""
        self.directory = directory
        self._models: dict[str, SavedModel] = {}

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.directory.name

    @property
    def state(self) -> str:
        """complete, failed, running (in any process) or interrupted."""
        return state_of(self._record())

    @property
    def verdict(self) -> "Verdict | None":
        """Comparison of a search's best recipe with the baseline; None without a search, or before its end."""
        from study.verdict.verdict import stored_verdict

        return stored_verdict(self._record())

    @property
    def best_recipe(self) -> "Recipe | None":
        """Recipe that wins the search, so far if it has not ended; None if no trial has a result.

        None for a baseline as well: its trials are measured on test images, and nothing is selected on these.
        """
        best = self._best()
        return best.plan.recipe if best else None

    def trials_dataframe(self) -> "pd.DataFrame":
        """Return a row for each trial, refits included: stage, state, metrics, recipe, seed, seconds.

        Metrics are in [0, 1], except a log loss. The recipe has the fields that are searched, or in use in any trial.
        """
        import pandas as pd

        record = self._record()
        trials = record.all_trials()
        searched = record.space.domains if record.space else {}
        fields = shown_fields((trial.plan.recipe for trial in trials), searched)
        rows = []
        for trial in trials:
            validation = trial.epochs[-1].val_metrics if trial.epochs else {}
            rows.append(
                {
                    "trial": trial.plan.key,
                    "stage": trial.plan.stage,
                    "state": trial.state,
                    **{f"val_{name}": value for name, value in validation.items()},
                    **{f"test_{name}": value for name, value in (trial.test.metrics if trial.test else {}).items()},
                    "seed": trial.plan.seed,
                    **{field: getattr(trial.plan.recipe, field) for field in fields},
                    "epochs_run": len(trial.epochs),
                    "seconds": trial.seconds,
                    "reason": trial.reason,
                }
            )
        return pd.DataFrame(rows)

    @property
    def ranking(self) -> "pd.DataFrame":
        """Linear probes, the best model first: a study's own, or those before a search; no rows if there are none.

        Columns: model; accuracy in [0, 1] on validation images, and the metric that ranks, if it is another one; low
        and high, the accuracy's 95 % interval (Wilson); seconds of the probe; parameters of the network; images_per_s
        of its prediction.
        """
        import pandas as pd

        from study.verdict.screen import probe_rows

        record = self._record()
        values = dict.fromkeys(("accuracy", record.manifest.design.metric))
        columns = ("model", *values, "low", "high", "seconds", "parameters", "images_per_s")
        rows = [
            (row.model, *(row.metrics[name] for name in values), row.low, row.high, row.seconds, row.parameters,
             row.predict_images_per_s)
            for row in probe_rows(record)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    @property
    def report(self) -> Path:
        """Path of the HTML report.

        Raises:
            RecordError: the study has not ended, so there is no report yet.
        """
        from study.report.render import REPORT_FILE

        file = self.directory / REPORT_FILE
        if not file.is_file():
            raise RecordError(f"{file}: must be the study's report, but is missing. Resume the study to its end.")
        return file

    def open_report(self) -> None:
        """Open the report in a browser of this computer."""
        webbrowser.open(self.report.as_uri())

    def predict(self, images: "Picture | Iterable[Picture]", model: str = "") -> "list[Prediction]":
        """Classify images with a model that the study kept.

        Args:
            images: an image or several: paths, PIL images, or uint8 arrays (height, width, 3) or (height, width).
            model: name of the network, if the study has several; "" for the one that `study.predict` takes.

        Raises:
            ConfigError: the study has no such model, or has not ended.
            DataError: an image cannot be read.
        """
        from study.api.predictions import predict_pictures
        from study.models.saved_model import find_model, load_model

        with worded_for_python():
            if model not in self._models:
                self._models[model] = load_model(find_model(self.directory, model))
            return predict_pictures(self._models[model], images)

    def resume(self, **options: Unpack[ResumeOptions]) -> "Study":
        """Go on with the study until its end, and return it; an ended study gets its report and its runs again.

        Raises:
            StudyError: the study cannot go on.
            KeyboardInterrupt: the user stopped it again; the record is kept.
        """
        with worded_for_python():
            if self.directory.parent != Path("mlruns/studies").absolute():
                here = self.directory.parents[2]
                raise ConfigError(f"{self.name}: must be resumed in {here}, but the current directory is {Path.cwd()}.")
            read = read_options("resume", self.name, ResumeOptions, options)
            run_here(lambda: plan_resumption(read))
            self._models.clear()
        return self

    def __repr__(self) -> str:
        """Describe the study in a few lines."""
        return "\n".join(f"{name:<10} {text}" for name, text in self._summary())

    def _repr_html_(self) -> str:
        """Show the first screen of the report in a notebook."""
        from study.report.render import summary_html

        return summary_html(self._record())

    def _summary(self) -> list[tuple[str, str]]:
        from study.results.metrics import NAMES, format_metric
        from study.verdict.wording import sentence

        record = self._record()
        manifest, trials = record.manifest, record.trials()
        ended = sum(trial.finished for trial in trials)
        of = record.space.budget.trials if record.space else len(manifest.design.recipes)
        lines = [("study", f"{self.name}, {state_of(record)}"), ("data", manifest.data)]
        lines.append(("trials", f"{ended} of {of} have ended"))
        if record.space:
            if best := self._best():
                metric = manifest.design.metric
                value = best.metrics.get(metric)
                shown = f": validation {NAMES[metric]} {format_metric(metric, value)}" if value is not None else ""
                lines.append(("best", f"#{best.plan.key}{shown}"))
            if self.verdict:
                lines.append(("verdict", sentence(self.verdict)))
        else:
            for trial in trials:
                accuracy = trial.metrics.get("accuracy")
                kind = "test" if trial.test else "validation"
                result = trial.state if accuracy is None else f"{kind} accuracy {accuracy:.2%}"
                lines.append((f"#{trial.plan.key}", f"{trial.plan.recipe.model}: {result}"))
        return [*lines, ("files", str(self.directory))]

    def _best(self) -> "TrialRecord | None":
        from study.verdict.rerank import find_winner

        record = self._record()
        return find_winner(record) if record.space and record.trials() else None

    def _record(self) -> "Record":
        from study.results.record import Record

        return Record.read(self.directory)


def state_of(record: "Record") -> str:
    """Return the state of a study: complete, failed, running or interrupted."""
    from study.tuning.finish_study import has_ended

    if is_running(record.directory):
        return "running"
    if not has_ended(record):
        return "interrupted"
    return "complete" if any(trial.state == "complete" for trial in record.trials()) else "failed"


def is_running(directory: Path) -> bool:
    """Return whether a process runs the study in `directory`."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(directory / "lock", timeout=0):
            return False
    except Timeout:
        return True
