"""Show a study's record in MLflow: one experiment per data set, one run per study and one child run per trial.

A Tracker sends only the data that MLflow lacks, so sending twice does no harm and each trial has exactly one run. It
works in its own thread, so a slow or absent server never delays a trial. It needs a client from `connect`. It knows no
registered models (`registry.py`), and the record holds nothing of MLflow: runs are found by their tags.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from study.config.plan import Plan
from study.files import scratch_directory
from study.other_process import Call
from study.results.metrics import Progress, largest_class
from study.results.record import Record
from study.results.trial_record import TrialRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient  # for modules that pass on the client of `connect`

from study.tracking.artifacts import epoch_metrics, extra_metrics, trial_files
from study.tracking.client import VIEW

STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}

RETRY_S = 5.0
"""Seconds between a failed send and the next try."""
PAUSE_S = 0.2
"""Seconds between a change and its sending: a trial has just ended, and drawing it would delay the next one's start."""

COLUMNS = (
    "metrics.val_accuracy", "metrics.test_accuracy", "metrics.train_loss", "metrics.val_loss",
    "params.unfreeze_depth", "params.lr", "params.batch_size", "tags.study.state", "metrics.device_s",
)  # fmt: skip
"""Columns of an experiment's table of runs, beside those that MLflow always shows: name, creation and duration."""

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the UI opens a table of runs, not of traces
    # The UI has no setting for the columns of an experiment, but a link may name a view that a tag describes.
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {"selectedColumns": [f"{kind}.`{name}`" for kind, _, name in (column.partition(".") for column in COLUMNS)]}
    ),
    "mlflow.note.content": "Each study is a parent run, each trial a child run. Select the trials of a study and press "
    "Compare to see parallel coordinates of recipe and accuracy, and the learning curves side by side. "
    "Under Models, the alias champion marks the best model so far of a data set and a network.",
}

PARENT_NOTE = (
    "Open report.html among the artifacts first: it reports the result and shows every trial. The trials are the child "
    "runs of this run."
)

_logger = logging.getLogger(__name__)


class Tracker:
    """Keep the MLflow runs of one study in step with its record."""

    def __init__(
        self,
        client: "MlflowClient",
        record: Record,
        *,
        artifacts: Path | None,
        samples: Callable[[Plan], bytes | None],
        call: Call,
    ) -> None:
        """Start the thread that sends data to MLflow.

        Args:
            client: MLflow client from `connect`.
            record: record of the study; its manifest names the data, the classes and the split.
            artifacts: artifact directory of a local store; None for a server, which has its own.
            samples: function that draws a plan's first training batch as the model sees it, as a PNG, or returns None.
            call: function that calls those that draw: in another process, so that training does not wait for Python.
        """
        self.client = client
        self.call = call
        self._record = record
        self._manifest = record.manifest
        self._artifacts = artifacts
        self._samples = samples
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._epochs_sent: dict[str, set[int]] = {}
        self._changed: dict[str, Plan] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def on_start(self, plan: Plan) -> None:
        """Queue a trial that has started."""
        self.on_change(plan)

    def on_wait(self, plan: Plan, shortage: str) -> None:
        """Do nothing: a trial that waits has nothing to send."""

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        """Do nothing: MLflow gets the results of whole epochs only."""

    def on_change(self, plan: Plan) -> None:
        """Queue a trial whose record has changed."""
        with self._wake:
            self._changed[plan.key] = plan
            self._wake.notify()

    def finish(
        self,
        status: str,
        files: Mapping[str, bytes],
        metrics: Mapping[str, float],
        found: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """Send all remaining data, end all runs, and return the number of runs that could not be sent.

        Args:
            status: status of the parent run and of unfinished trials: FINISHED, FAILED or KILLED.
            files: artifacts of the parent run by name.
            metrics: metrics of the parent run by name.
            found: result of the study in one sentence, for the description of the parent run.
            tags: tags of the parent run by name.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        unsent = len(self._changed)
        try:
            trials = self._record.all_trials()
            for trial in trials:
                if trial.state == "running" and trial.plan.key not in self._changed:
                    self.client.set_terminated(self._run_of(trial), status)
            parent = self._parent()
            ended_ms = max((trial.ended_ms or 0 for trial in trials), default=0)
            for name, value in metrics.items():
                self.client.log_metric(parent, name, value, timestamp=ended_ms, step=0)
            for key, text in {**(tags or {}), "mlflow.note.content": f"{found} {PARENT_NOTE}".strip()}.items():
                self.client.set_tag(parent, key, text)
            self._send_files(parent, files)
            self.client.set_terminated(parent, status)
        except Exception:  # any error, as in `connect`; nothing is lost, since the record has all data
            _logger.debug("the parent run could not be sent", exc_info=True)
            unsent += 1
        return unsent

    @property
    def parent(self) -> str | None:
        """Id of the study's parent run; None before the first contact with MLflow."""
        return self._runs.get("parent")

    def _work(self) -> None:
        """Send changed trials until closed; while the store does not answer, try again every RETRY_S seconds."""
        last = False
        while not last:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._closing)
                self._wake.wait_for(lambda: self._closing, timeout=PAUSE_S)
                last = self._closing  # no trial changes any more: a trial that cannot be sent now stays unsent
                changed, self._changed = self._changed, {}
            unsent = self._send_all(changed)
            if unsent and last:  # one more try: the server may have just come back
                unsent = self._send_all(unsent)
            with self._wake:
                self._changed = unsent | self._changed
                if unsent and not last:
                    self._wake.wait_for(lambda: self._closing, timeout=RETRY_S)

    def _send_all(self, changed: Mapping[str, Plan]) -> dict[str, Plan]:
        """Send the new data of these trials and return the trials that could not be sent.

        If the store does not answer, the remaining trials are not tried: each request may take its whole timeout.
        """
        unsent: dict[str, Plan] = {}
        for number, (key, plan) in enumerate(changed.items(), start=1):
            if not self._try_to_send(plan):
                unsent[key] = plan
                if not self._answers():
                    return unsent | dict(list(changed.items())[number:])
        return unsent

    def _answers(self) -> bool:
        try:
            self.client.search_experiments(max_results=1)
        except Exception:  # any error, as in `connect`
            return False
        return True

    def _try_to_send(self, plan: Plan) -> bool:
        try:
            self._send(self._record.trial(plan))
        except Exception:  # any error, as in `connect`: training must go on
            _logger.debug("trial %s could not be sent", plan.key, exc_info=True)
            self._forget()  # some of the data may have arrived: ask MLflow again
            return False
        return True

    def _forget(self) -> None:
        self._experiment, self._runs, self._ended, self._epochs_sent = "", {}, {}, {}

    def _send(self, trial: TrialRecord) -> None:
        """Send the data of a trial that MLflow lacks."""
        from mlflow.entities import Metric

        run = self._run_of(trial)
        key = trial.plan.key
        if self._ended.get(key) == trial.state:
            return
        if key not in self._epochs_sent:  # the tracker's first send of this trial, or the first after a failed send
            if key in self._ended:  # its run was ended when the study was interrupted
                self.client.update_run(run, "RUNNING")
            self._log_params(run, {**trial.plan.recipe.to_dict(), "seed": trial.plan.seed})
            self._log_dataset(run)
            self._epochs_sent[key] = {metric.step for metric in self.client.get_metric_history(run, "train_loss")}
        for result, ended_ms in zip(trial.epochs, trial.epoch_ends_ms, strict=True):
            if result.epoch not in self._epochs_sent[key]:
                values = {name: value for name, value in epoch_metrics(result).items() if value is not None}
                metrics = [Metric(name, value, ended_ms, result.epoch) for name, value in values.items()]
                self.client.log_batch(run, metrics=metrics)
                self._epochs_sent[key].add(result.epoch)
        if trial.finished:
            self._send_end(run, trial)

    def _send_end(self, run: str, trial: TrialRecord) -> None:
        """Send the final results of a finished trial, and end its run."""
        from mlflow.entities import Metric, RunTag

        assert trial.ended_ms
        last = len(trial.epochs)
        tags = {"study.state": trial.state, **{f"study.{name}": str(value) for name, value in trial.facts.items()}}
        if trial.reason:
            tags["study.reason"] = trial.reason
        if nothing := trial.nothing_learnt(self._manifest):
            tags["study.learnt_nothing"] = nothing
        if trial.confusion:
            largest, share = largest_class(trial.confusion)
            tags["study.largest_class"] = f"{self._manifest.classes[largest]} ({share:.2%})"
        metrics = {"device_s": trial.seconds, "saved_s": trial.saved_s}
        metrics |= {f"features_{source}": float(images) for source, images in trial.features.items()}
        if trial.test:
            metrics |= {"test_accuracy": trial.test.accuracy, "test_loss": trial.test.loss}
            metrics |= extra_metrics("test", trial.metrics)
            metrics |= {"tests_opened": float(trial.tests_opened)}
        self.client.log_batch(
            run,
            metrics=[Metric(name, value, trial.ended_ms, last) for name, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        files = self.call(trial_files, trial, self._manifest.classes)
        if drawn := self._samples(trial.plan):
            files["samples.png"] = drawn
        self._send_files(run, files)
        self.client.set_terminated(run, STATUS[trial.state], trial.ended_ms)  # last, so that an ended run is complete
        self._ended[trial.plan.key] = trial.state

    def _send_files(self, run: str, files: Mapping[str, bytes]) -> None:
        """Send the artifacts of a run.

        For a local file, MLflow makes all missing parents, which would make a moved store's old path anew. So the files
        of a local store are written here, and no directory above `artifacts` is made.
        """
        uri = self.client.get_run(run).info.artifact_uri
        if self._artifacts and uri.startswith(f"{self._artifacts.as_uri()}/"):
            directory = Path(url2pathname(urlsplit(uri).path))
            for made in reversed((directory, *directory.parents)):
                if made.is_relative_to(self._artifacts):
                    made.mkdir(exist_ok=True)
            _write(directory, files)
        else:
            with scratch_directory() as folder:
                _write(folder, files)
                self.client.log_artifacts(run, str(folder))

    def _parent(self) -> str:
        """Return the study's parent run; create the run and the experiment if they are missing."""
        if not self._experiment:
            experiment = self._open_experiment()
            self._find_runs(experiment)
            self._experiment = experiment
            if "parent" in self._runs:
                self.client.update_run(self._runs["parent"], "RUNNING", name=self._record.name)
                self.client.set_tag(self._runs["parent"], "study.name", self._record.name)  # it may have been renamed
            else:
                self._create_run("parent", self._record.name, None, {"mlflow.note.content": PARENT_NOTE})
            facts = {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in self._manifest.to_dict().items()
            }
            self._log_params(self._runs["parent"], facts)
            if self._record.space:  # a tag, since the budget may change and a parameter cannot
                self.client.set_tag(self._runs["parent"], "study.budget", json.dumps(asdict(self._record.space.budget)))
        return self._runs["parent"]

    def _run_of(self, trial: TrialRecord) -> str:
        """Return the run of a trial; create the run if it is missing."""
        parent = self._parent()
        plan = trial.plan
        if plan.key not in self._runs:
            tags = {"mlflow.parentRunId": parent, "study.trial": plan.key, "study.stage": plan.stage}
            self._create_run(plan.key, plan.short_title, trial.started_ms, tags)
        return self._runs[plan.key]

    def _create_run(self, key: str, name: str, started_ms: int | None, tags: Mapping[str, str]) -> None:
        run = self.client.create_run(self._experiment, started_ms, {**self._common_tags(), **tags}, run_name=name)
        self._runs[key] = run.info.run_id

    def _log_params(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in values.items()])

    def _open_experiment(self) -> str:
        """Return the id of the data set's experiment; create the experiment if it is missing."""
        name = self._manifest.data
        if experiment := self.client.get_experiment_by_name(name):
            if experiment.lifecycle_stage == "deleted":  # MLflow reserves the name until the experiment is purged
                self.client.restore_experiment(experiment.experiment_id)
            for key in EXPERIMENT_TAGS.keys() - experiment.tags.keys():  # made by an earlier version, or by somebody
                self.client.set_experiment_tag(experiment.experiment_id, key, EXPERIMENT_TAGS[key])
            return str(experiment.experiment_id)
        location = (self._artifacts / name).as_uri() if self._artifacts else None
        return str(self.client.create_experiment(name, location, EXPERIMENT_TAGS))

    def _find_runs(self, experiment: str) -> None:
        """Read the study's runs in MLflow, by 'parent' or the trial's key, and the states of the ended runs.

        A request that was answered too late was sent again and may have created a second run, which is deleted here.
        """
        token = None
        while True:
            mine = f"tags.`study.uid` = '{self._record.uid}'"
            page = self.client.search_runs([experiment], mine, order_by=["attributes.start_time ASC"], page_token=token)
            for run in page:
                key = run.data.tags.get("study.trial", "parent")
                if self._runs.setdefault(key, run.info.run_id) != run.info.run_id:
                    self.client.delete_run(run.info.run_id)
                elif run.info.status != "RUNNING":
                    complete = run.info.status in STATUS.values()
                    self._ended[key] = run.data.tags.get("study.state", "") if complete else run.info.status
            token = page.token
            if not token:
                return

    def _common_tags(self) -> dict[str, str]:
        tags = {"study.uid": self._record.uid, "study.name": self._record.name}
        tags |= {f"study.{key}": getattr(self._manifest, key) for key in ("data_fingerprint", "split_fingerprint")}
        tags |= {f"version.{name}": version for name, version in self._manifest.versions.items()}
        if commit := self._manifest.git_commit:
            tags["mlflow.source.git.commit"] = commit
        return tags

    def _log_dataset(self, run: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        sizes = {"train_images": self._manifest.train_images, "test_images": self._manifest.test_images}
        dataset = Dataset(
            name=self._manifest.data,
            digest=self._manifest.data_fingerprint,
            source_type="local",
            source=json.dumps({"source": self._manifest.source, "fraction": self._manifest.fraction}),
            profile=json.dumps({**sizes, "classes": len(self._manifest.classes)}),
        )
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)
