"""Run a study from its configuration to its result: data, weights, Ray, record, tracking, in one straight line."""

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from study import figures
from study.cluster import PLAIN_ENVIRONMENT, TRIAL_ENVIRONMENT, Allotment, ray_session, share_resources
from study.comparison import Row, compare, comparison_files, faster, search_files
from study.config import StudyConfig, local_uri
from study.data import Dataset, Images, fingerprint, load_dataset, split
from study.design import Design
from study.errors import RecordError, StudyError
from study.models import Pretrained, load_pretrained
from study.record import Record
from study.registry import Registration, log_model
from study.report import write_report
from study.samples import draw_batch
from study.saved import load_model
from study.search import Listener, run_trials
from study.search_space import SearchSpace
from study.tracking import Tracker, connect, without_credentials
from study.trainable import Inputs
from study.trials import TrialRecord
from study.verdict import Verdict, choose, judge, plan_finals, sentence, verdict_metrics
from study.winner import keep_winner

VALIDATION_FRACTION = 0.1
"""Of the training images, held out of a search's trials for its objective."""
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "scikit-learn", "numpy")


_logger = logging.getLogger(__name__)


class Observer(Listener, Protocol):
    """Whoever watches a study: besides its trials, how it begins."""

    def on_data(self, dataset: Dataset, manifest: Mapping[str, Any]) -> None:
        """The images are there."""

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """A model's weights are there."""

    def on_resources(self, resources: Allotment, space: SearchSpace | None) -> None:
        """Ray is there; a search's space has been read."""

    def on_record(self, record: Record) -> None:
        """The study has begun."""


@dataclass(frozen=True)
class StudyResult:
    """A study that has ended."""

    directory: Path
    tracking_uri: str
    trials: Sequence[TrialRecord]
    finals: Sequence[TrialRecord]
    """The verdict's trials."""
    rows: Sequence[Row]
    """A baseline's tested trials side by side."""
    importances: Mapping[str, float]
    """Of the fields that a search varied."""
    verdict: Verdict | None
    """Of a search; None where it had nothing to choose from."""
    unsent: int
    """Runs that MLflow could not be given; the record has them."""
    model: Path | None = None
    """Where a search's best recipe, trained, is kept; None where nothing is."""
    registration: Registration | None = None
    """What became of it in MLflow's registry; None where that does not answer."""

    @property
    def succeeded(self) -> bool:
        """Whether it has what it was run for: each trial of a baseline, or a verdict, or at least its own best."""
        if self.rows:
            return all(trial.state == "complete" for trial in self.trials)
        return any(trial.state == "complete" for trial in self.trials)


@dataclass(frozen=True)
class _Desk:
    """All that trials need, for the time of one study."""

    config: StudyConfig
    design: Design
    dataset: Dataset
    parts: Sequence[Images]
    """The training images; in a search, what its trials train on and what is held out for validation."""
    pretrained: Mapping[str, Pretrained]
    record: Record
    tracker: Tracker
    observer: Observer
    resources: Allotment
    scratch: Path
    uri: str

    def run(
        self, *, train: Images, validation: Images | None = None, test: Images | None = None, share: bool = False
    ) -> None:
        """Run what the record has to run on these images; `share` what their prefixes have in common."""
        inputs = Inputs(
            train=train,
            validation=validation,
            test=test,
            classes=len(self.dataset.classes),
            pretrained={model: found.arrays for model, found in self.pretrained.items()},
            precision=self.config.precision,
            cache_gb=self.config.cache_gb if share else 0.0,
            study=self.record.manifest["uid"],
            checkpoints=self.record.checkpoints,
        )
        run_trials(
            self.record,
            inputs,
            [self.observer, self.tracker],
            resources=self.resources,
            scratch=self.scratch,
        )

    def end(
        self,
        status: str,
        files: Mapping[str, bytes],
        metrics: Mapping[str, float],
        found: str,
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """Clear up what only running trials need, send the study's own results, and return what could not be sent."""
        shutil.rmtree(self.record.checkpoints, ignore_errors=True)
        page = write_report(self.record, self.dataset)
        return self.tracker.finish(status, {**files, page.name: page.read_bytes()}, metrics, found, tags)

    def register(self, model: Path) -> Registration | None:
        """Offer a kept classifier to MLflow's registry; None where that cannot be had, which --resume makes up for."""
        run = self.tracker.parent
        try:
            return log_model(self.tracker.client, run, load_model(model), self.dataset.test.pixels[:2]) if run else None
        except StudyError as error:
            _logger.warning(str(error))
            return None


def run_study(config: StudyConfig, design: Design, observer: Observer, record: Record | None = None) -> StudyResult:
    """Run what a study is designed to be: fixed trials, or a search that ends in a verdict.

    Nothing is written below `config.mlruns/studies` before data, weights, the tracking store and Ray are there.

    Args:
        config: what it needs.
        design: what it is.
        observer: told of all that happens.
        record: of a study that has begun before, to go on with; closed at the end.

    Raises:
        StudyError: the study cannot begin, or not go on as it began.
        KeyboardInterrupt: the user stopped it; its runs end as KILLED.
    """
    with _begin(config, design, observer, record) as desk:
        return _search(desk) if design.space else _run_fixed(desk)


def _run_fixed(desk: _Desk) -> StudyResult:
    """Train each recipe on all training images and test it once."""
    record = desk.record
    desk.run(train=desk.dataset.train, test=desk.dataset.test)
    rows = compare(record.trials(), desk.dataset.classes)
    unsent = desk.end("FINISHED" if rows else "FAILED", comparison_files(rows), {}, faster(rows) or "")
    return StudyResult(record.directory, without_credentials(desk.uri), record.trials(), [], rows, {}, None, unsent)


def _search(desk: _Desk) -> StudyResult:
    """Search a space on training and validation images, then refit and test its best recipe and the baseline.

    No trial of the search is given the test images; the verdict's are, once each.
    """
    record, dataset, design = desk.record, desk.dataset, desk.design
    baseline = design.recipes[0]
    rest, held_out = desk.parts
    if not record.judging:  # else the record has the verdict's trials to run, which need other images
        desk.run(train=rest, validation=held_out, share=True)
    importances = record.importances()
    record.note("importances", importances)
    winner = choose(record.trials())
    verdict = kept = None
    if winner:
        record.add(plan_finals(winner, baseline, desk.config.seed, design.repeats))
        desk.run(train=dataset.train, test=dataset.test, share=winner.plan.recipe != baseline)
        labels = dataset.test.labels.tolist()
        verdict = judge(record.finals(), labels=labels, baseline=baseline, winner=winner, classes=dataset.classes)
        record.note("test_labels", labels)
        record.note("verdict", asdict(verdict))
        kept = keep_winner(record, winner.plan.recipe, dataset, desk.pretrained[winner.plan.recipe.model])
    trials = record.trials()
    files = search_files(trials, importances, verdict, dataset.classes)
    complete = [trial.value for trial in trials if trial.value is not None]
    metrics = {"best_val_accuracy": max(complete)} if complete else {}
    tags = {f"best.{field}": str(value) for field, value in winner.plan.recipe.to_dict().items()} if winner else {}
    if verdict:
        metrics |= verdict_metrics(verdict)
    unsent = desk.end("FINISHED" if complete else "FAILED", files, metrics, sentence(verdict), tags)
    registration = desk.register(kept) if kept else None
    return StudyResult(
        directory=record.directory,
        tracking_uri=without_credentials(desk.uri),
        trials=trials,
        finals=record.finals(),
        rows=[],
        importances=importances,
        verdict=verdict,
        unsent=unsent,
        model=kept,
        registration=registration,
    )


@contextmanager
def _begin(config: StudyConfig, design: Design, observer: Observer, record: Record | None) -> Iterator[_Desk]:
    """Make ready all that trials need, what fails cheaply first, and end the runs of what breaks off."""
    with ExitStack() as stack:
        if record:
            stack.callback(record.close)
        _make_writable(config.mlruns)
        dataset = load_dataset(
            config.data,
            fraction=config.fraction,
            seed=config.seed,
            image_size=design.image_size,
            data_dir=config.data_dir,
        )
        parts: Sequence[Images] = [dataset.train]
        if design.space:
            parts = split(dataset.train, fraction=VALIDATION_FRACTION, seed=config.seed)
        facts = _describe_data(config, dataset, parts)
        observer.on_data(dataset, facts)
        pretrained: dict[str, Pretrained] = {}
        for model in design.models:
            pretrained[model] = load_pretrained(model, config.weights, classes=len(dataset.classes))
            observer.on_weights(model, pretrained[model])
        facts["weights_digests"] = {model: found.digest for model, found in pretrained.items()}
        if record:
            _check_same(record, facts)
        uri = config.tracking_uri or local_uri(config.mlruns)
        client = connect(uri, verbose=config.verbose)  # makes a local database, hence after all that may be missing
        environment = PLAIN_ENVIRONMENT if design.stage == "as-written" else TRIAL_ENVIRONMENT
        scratch = stack.enter_context(ray_session(config.ray_address, verbose=config.verbose, environment=environment))
        trials = design.space.budget.trials if design.space else len(design.recipes)
        resources = share_resources(config.cpus_per_trial, config.gpus_per_trial, config.concurrent, trials=trials)
        observer.on_resources(resources, design.space)
        if record is None:
            manifest = facts | _describe_study(config, design)
            record = Record.create(config.mlruns / "studies" / config.name, manifest, space=design.space)
            stack.callback(record.close)
        record.add((design.stage, recipe, config.seed) for recipe in design.recipes)
        observer.on_record(record)
        searched = replace(dataset, train=parts[0])
        tracker = Tracker(
            client,
            record,
            artifacts=config.mlruns / "artifacts" if uri.startswith("sqlite:") else None,
            samples=lambda plan: figures.png(draw_batch(plan, searched if plan.stage == "search" else dataset)),
        )
        for trial in [*record.trials(), *record.finals()]:
            if trial.state != "waiting":
                tracker.on_change(trial.plan)
        try:
            yield _Desk(config, design, dataset, parts, pretrained, record, tracker, observer, resources, scratch, uri)
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {}, {})
            raise


def _check_same(record: Record, facts: Mapping[str, Any]) -> None:
    """Make sure that a study goes on with what it began with.

    Raises:
        RecordError: images or weights are others.
    """
    for key in ("data_fingerprint", "split_fingerprint", "weights_digests"):
        if facts[key] != record.manifest[key]:
            raise RecordError(
                f"{record.directory}: {key.replace('_', ' ')} must stay {record.manifest[key]}, but got {facts[key]}."
                " Put the files back that the study began with, or begin a new one."
            )


def _make_writable(mlruns: Path) -> None:
    """Make the directory of all runs, and make sure of it before anything slow."""
    try:
        mlruns.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=mlruns):
            pass
    except OSError as error:
        raise RecordError(f"{mlruns}: must be writable, but {error.strerror}. Run where you may write.") from None


def _describe_data(config: StudyConfig, dataset: Dataset, parts: Sequence[Images]) -> dict[str, Any]:
    return {
        "data": dataset.name,
        "source": config.data,
        "classes": list(dataset.classes),
        "fraction": dataset.fraction,
        "train_images": len(parts[0]),
        "val_images": sum(len(part) for part in parts[1:]),
        "test_images": len(dataset.test),
        "data_fingerprint": fingerprint(dataset.train, dataset.test),
        "split_fingerprint": fingerprint(*parts),
    }


def _describe_study(config: StudyConfig, design: Design) -> dict[str, Any]:
    return {
        "kind": "search" if design.space else "baseline",
        **design.to_dict(),
        "image_size": design.image_size,
        "seed": config.seed,
        "weights": config.weights,
        "precision": config.precision,
        "data_dir": str(config.data_dir),
        "tracking_uri": config.tracking_uri and without_credentials(config.tracking_uri),
        "versions": {package: version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that the command was run in, if any."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
