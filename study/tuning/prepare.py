"""Prepare everything that the trials of one study need, in order: images, weights, MLflow's store, the record.

Knows neither how a trial trains nor which trial runs next.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol

from study.charts import figures
from study.config.manifest import Manifest
from study.config.plan import Design, Plan, StudyConfig
from study.config.search_space import Resources, SearchSpace
from study.data.audit import Audit, audit_images, drop_leaks
from study.data.decoding import Watch
from study.data.images import Dataset, Images, fingerprint
from study.data.pixel_store import PixelStore, default_directory
from study.data.sources import load_dataset
from study.data.splits import check_metric, split_validation
from study.data.stored_pixels import StoredPixels
from study.dispatch.cluster import Allotment
from study.dispatch.node_images import serve_images
from study.dispatch.searcher import Listener
from study.environment import installed_versions
from study.errors import RecordError, without_credentials
from study.models.pretrained import Pretrained, load_pretrained
from study.other_process import OtherProcess
from study.report.copies import draw_copies
from study.report.sample_batch import alike, prepare_batch
from study.results.record import Record
from study.tracking.client import SQLITE, connect, local_uri
from study.tracking.tracker import Tracker
from study.training.run_trial import Inputs
from study.tuning.finish_study import Findings
from study.verdict.judge import final_seeds
from study.verdict.rerank import rerank_seeds
from study.verdict.screen import plan_first_trials, plan_screens
from study.verdict.statistics import LOOKS

if TYPE_CHECKING:
    from study.tracking.client import MlflowClient

VALIDATION_FRACTION = 0.1
"""Fraction of the training images that a search holds out to measure its objective."""


class Observer(Listener, Watch, Protocol):
    """Callbacks for a study's setup, besides those for its trials."""

    def on_stage(self, text: str) -> None:
        """Called when something begins that may take more than a moment; `text` says what is being done."""

    def on_data(self, dataset: Dataset, manifest: Manifest) -> None:
        """Called when the images are loaded."""

    def on_audit(self, audit: Audit, *, dropped: bool) -> None:
        """Called when the images have been compared with each other; `dropped` says whether leaks were dropped then."""

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """Called when a model's weights are loaded."""

    def on_resources(self, resources: Allotment, space: SearchSpace | None) -> None:
        """Called when Ray has started; `space` is None for fixed trials."""

    def on_record(self, record: Record) -> None:
        """Called when the record is open and holds the first trials."""

    def on_findings(self, findings: Findings) -> None:
        """Called when all trials have ended, with what the study has found."""


@dataclass(frozen=True)
class Desk:
    """Everything that the trials of one study need."""

    config: StudyConfig
    design: Design
    dataset: Dataset
    parts: Sequence[Images]
    """The training images; in a search, first those that its trials train on, then those held out for validation."""
    pretrained: Mapping[str, Pretrained]
    record: Record
    tracker: Tracker
    observer: Observer
    resources: Allotment

    @property
    def listeners(self) -> Sequence[Listener]:
        """Receivers of the callbacks for trials."""
        return [self.observer, self.tracker]

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds of the trials of a search in their order; none with several models, since the next one's is unknown."""
        if self.design.space is None or len(self.design.models) > 1:
            return ()
        reranked = rerank_seeds(self.config.seed) if self.design.rerank else ()
        repeats = max(LOOKS) if self.design.repeats == "auto" else self.design.repeats
        return [self.config.seed, *reranked, *final_seeds(self.config.seed, repeats)]

    def stage(
        self, *, train: Images, validation: Images | None = None, test: Images | None = None, share: bool = False
    ) -> Iterator[Inputs]:
        """Yield the inputs of trials on these images; `share` caches the outputs of their common prefixes."""
        for images in (train, validation):
            if images is not None:
                assert images.fingerprint  # computed once, here, and sent to the trials with the images
        # The handles keep the servers alive until the trials have ended.
        servers = serve_images((train, validation, test)) if self.config.ray_address else []
        yield Inputs(
            train=train,
            validation=validation,
            test=test,
            classes=len(self.dataset.classes),
            pretrained={model: weights.arrays for model, weights in self.pretrained.items()},
            precision=self.config.precision,
            gpus_per_trial=self.resources.gpus_per_trial,
            cache_gb=self.config.cache_gb if share else 0.0,
            seeds=self.seeds,
            study=self.record.manifest.uid,
            checkpoints=self.record.checkpoints,
        )
        del servers


@contextmanager
def prepare(
    config: StudyConfig, design: Design, observer: Observer, record: Record | None, resources: Allotment
) -> Iterator[Desk]:
    """Prepare everything that trials need, cheap checks first; if the study breaks off, end its MLflow runs.

    Args:
        config: data, weights, machines and stores of the study.
        design: recipes or search space of the study.
        observer: receiver of all callbacks.
        record: record of the study to resume; None to begin a new study.
        resources: CPUs and GPUs of one trial, and the number of concurrent trials.

    Raises:
        StudyError: the study cannot begin, or cannot resume as it began.
    """
    with ExitStack() as stack:
        observer.on_stage("reading the images")
        dataset = load_dataset(
            config.data,
            fraction=config.fraction,
            seed=config.seed,
            image_size=design.image_size,
            data_dir=config.data_dir,
            fit=design.fit,
            test_fraction=config.test_fraction,
            skip_broken=config.skip_broken,
            store=pixel_store(config),
            watch=observer,
        )
        audit = audit_images(dataset, observer)
        copies = draw_copies(audit, dataset) if record is None else None  # before any image is dropped
        if config.leaks == "drop":
            dataset = drop_leaks(dataset, audit)
        parts = split_parts(dataset, config.seed) if design.validates else [dataset.train]
        measured = {"test": dataset.test} | ({"validation": parts[1]} if design.validates else {})
        check_metric(design.metric, dataset.classes, measured)
        _watch_fingerprints(dataset, parts, observer)
        manifest = _describe(config, design, dataset, parts)
        observer.on_data(dataset, manifest)
        observer.on_audit(audit, dropped=config.leaks == "drop")
        observer.on_stage("loading the weights")
        pretrained: dict[str, Pretrained] = {}
        for model in design.models:
            pretrained[model] = load_pretrained(model, config.weights, classes=len(dataset.classes))
            observer.on_weights(model, pretrained[model])
        manifest = replace(manifest, weights_digests={model: weights.digest for model, weights in pretrained.items()})
        if record:
            _check_same(record, manifest, dataset)
            record.set_places(source=manifest.source, data_dir=manifest.data_dir, weights=manifest.weights)
        # This creates a local database, so it comes after every check for missing data and weights.
        observer.on_stage("opening MLflow's store")
        client = connect(store_uri(config), verbose=config.verbose)
        observer.on_resources(resources, design.space)
        if record is None:
            record = Record.create(config.mlruns / "studies" / config.name, manifest)
            stack.callback(record.close)
            record.keep_audit(audit.summary(), copies)
        record.add(plan_screens(design, config.seed) or plan_first_trials(record))
        observer.on_record(record)
        tracker = stack.enter_context(track(config, record, dataset, client))
        yield Desk(config, design, dataset, parts, pretrained, record, tracker, observer, resources)


@contextmanager
def track(config: StudyConfig, record: Record, dataset: Dataset | None, client: "MlflowClient") -> Iterator[Tracker]:
    """Keep MLflow in step with the record, beginning with its present trials; on an error, end the runs."""
    parts = lru_cache(maxsize=1)(split_parts)
    artifacts = config.mlruns / "artifacts" if store_uri(config).startswith(SQLITE) else None
    with OtherProcess() as call:

        @lru_cache(maxsize=8)
        def draw(plan: Plan) -> bytes | None:
            if dataset is None:
                return None
            searched = plan.validates and record.manifest.design.validates
            train = parts(dataset, plan.seed)[0] if searched else dataset.train
            return call(figures.draw_png, prepare_batch(plan, replace(dataset, train=train)))

        tracker = Tracker(client, record, artifacts=artifacts, samples=lambda plan: draw(alike(plan)), call=call)
        for trial in record.all_trials():
            if trial.state != "waiting":
                tracker.on_change(trial.plan)
        try:
            yield tracker
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {}, {})
            raise


def pixel_store(config: StudyConfig) -> PixelStore | None:
    """Return the store of decoded images; None if the user wants no caches."""
    return None if config.cache_gb == 0 else PixelStore(default_directory())


def store_uri(config: StudyConfig) -> str:
    """Return the URI of MLflow's store."""
    return config.tracking_uri or local_uri(config.mlruns)


def split_parts(dataset: Dataset, seed: int) -> Sequence[Images]:
    """Return the images that a search's trials train on, and those held out or given for validation."""
    return split_validation(dataset, fraction=VALIDATION_FRACTION, seed=seed)


def _check_same(record: Record, manifest: Manifest, dataset: Dataset) -> None:
    """Check that a resumed study has the images and the weights that it began with.

    Raises:
        RecordError: images, class names, split or weights differ.
    """
    if dataset.has_fingerprint(record.manifest.data_fingerprint):
        manifest = replace(manifest, data_fingerprint=record.manifest.data_fingerprint)
    for key in ("classes", "data_fingerprint", "split_fingerprint", "weights_digests"):
        then, now = getattr(record.manifest, key), getattr(manifest, key)
        if then != now:
            raise RecordError(
                f"{record.directory}: {key.replace('_', ' ')} must stay {then}, but got {now}."
                " Restore the original files, or begin a new study."
            )


def _watch_fingerprints(dataset: Dataset, parts: Sequence[Images], watch: Watch) -> None:
    """Show the progress where fingerprints are slow: where all images of the store are read for the first time."""
    if isinstance(dataset.train.pixels, StoredPixels):
        for images, classes in (([dataset.train, dataset.test], dataset.classes), (parts, ())):
            fingerprint(*images, classes=classes, watch=partial(watch.on_work, "check"))


def _describe(config: StudyConfig, design: Design, dataset: Dataset, parts: Sequence[Images]) -> Manifest:
    """Describe a study before its weights are loaded."""
    return Manifest(
        design=design,
        data=dataset.name,
        source=config.data,
        data_dir=str(config.data_dir),
        classes=tuple(dataset.classes),
        fraction=dataset.fraction,
        image_size=design.image_size,
        train_images=len(parts[0]),
        val_images=sum(len(part) for part in parts[1:]),
        test_images=len(dataset.test),
        data_fingerprint=dataset.fingerprint,
        split_fingerprint=fingerprint(*parts),
        test_fingerprint=dataset.test.fingerprint,
        weights=config.weights,
        weights_digests={},
        seed=config.seed,
        precision=config.precision,
        tracking_uri=config.tracking_uri and without_credentials(config.tracking_uri),
        versions=installed_versions(),
        git_commit=_git_commit(),
        found=dataset.found,
        resources=Resources(config.cpus_per_trial, config.gpus_per_trial, config.concurrent),
    )


def _git_commit() -> str | None:
    """Return the commit of the git checkout in the current directory; None if there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
