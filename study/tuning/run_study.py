"""Run a study from its configuration to its result, in order: data, weights, MLflow, record, trials.

Needs a checked StudyConfig, a Design, and a Ray that this process has joined. Knows neither how a trial trains nor
which trial runs next.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from study.charts import figures
from study.compute.sharing import gpu_memory, trials_on_cores, trials_per_gpu
from study.config.manifest import Manifest
from study.config.plan import Design, Plan, StudyConfig
from study.config.search_space import Resources, SearchSpace
from study.data.audit import Audit, audit_images, drop_leaks
from study.data.decoding import Watch
from study.data.images import Dataset, Images, fingerprint
from study.data.pixel_store import PixelStore, default_directory
from study.data.sources import find_images, load_dataset
from study.data.splits import check_metric, split_validation
from study.data.stored_pixels import StoredPixels
from study.environment import installed_versions
from study.errors import RecordError, without_credentials
from study.models.pretrained import Pretrained, load_pretrained
from study.other_process import OtherProcess
from study.report.copies import draw_copies
from study.report.sample_batch import alike, prepare_batch
from study.results.ledger import earlier_p_values
from study.results.record import Record
from study.tracking.client import SQLITE, connect, local_uri
from study.tracking.tracker import Tracker
from study.training.run_trial import Inputs
from study.tuning.cluster import Allotment, share_resources
from study.tuning.finish_study import Findings, StudyResult, conclude, read_findings
from study.tuning.keep_model import keep_model, keep_models, recipe_to_keep
from study.tuning.node_images import serve_images
from study.tuning.ray_adapters import Listener, Work, run_trials
from study.tuning.reuse_refits import reuse_refits
from study.tuning.stages import put_stages
from study.verdict.judge import final_seeds, plan_finals, reach_verdict
from study.verdict.rerank import find_winner, plan_reranks, rank_candidates, rerank_seeds
from study.verdict.screen import plan_first_trials, plan_screens, promising_models
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

    def on_audit(self, audit: Audit) -> None:
        """Called when the images have been compared with each other."""

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """Called when a model's weights are loaded."""

    def on_resources(self, resources: Allotment, space: SearchSpace | None) -> None:
        """Called when Ray has started; `space` is None for fixed trials."""

    def on_record(self, record: Record) -> None:
        """Called when the record is open and holds the first trials."""

    def on_findings(self, findings: Findings) -> None:
        """Called when all trials have ended, with what the study has found."""


@dataclass(frozen=True)
class _Desk:
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
    def work(self) -> Work:
        """What Ray Tune needs of the study."""
        stages = _search(self, self.design.space) if self.design.space else _fixed(self)
        return Work(self.record, put_stages(stages), self.listeners)

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


def run_study(
    config: StudyConfig, design: Design, observer: Observer, scratch: Path, record: Record | None = None
) -> StudyResult:
    """Run a study: fixed trials, or a search that ends in a verdict.

    Nothing is written below `config.mlruns/studies` before data, weights and the tracking store are ready.

    Args:
        config: data, weights, machines and stores of the study.
        design: recipes or search space of the study.
        observer: receiver of all callbacks.
        scratch: scratch directory of the Ray that this process has joined by `ray_session`.
        record: record of the study to resume; None to begin a new study.

    Raises:
        StudyError: the study cannot begin, or cannot resume as it began.
        KeyboardInterrupt: the user stopped the study; its runs end as KILLED.
    """
    resources = _share_resources(config, design)
    with ExitStack() as stack:
        begin = cache(lambda: stack.enter_context(_begin(config, design, observer, record, resources)))
        run_trials(lambda: begin().work, resources=resources, scratch=scratch, ahead=config.ray_address is None)
        desk = begin()
        return _conclude(observer, desk.record, desk.tracker, desk.dataset)


def rebuild_study(config: StudyConfig, observer: Observer, record: Record) -> StudyResult:
    """Conclude an ended study again from its record; its images, if present, only illustrate the result."""
    observer.on_stage("opening MLflow's store and reading the images")
    client = connect(_store(config), verbose=config.verbose)
    observer.on_record(record)
    dataset = find_images(record, _pixel_store(config))
    with _tracking(config, record, dataset, client) as tracker:
        return _conclude(observer, record, tracker, dataset)


def _conclude(observer: Observer, record: Record, tracker: Tracker, dataset: Dataset | None) -> StudyResult:
    findings = read_findings(record)
    observer.on_findings(findings)  # at once: what follows takes seconds
    observer.on_stage("writing the report, sending results to MLflow, registering")
    return conclude(findings, record, tracker, dataset)


def _fixed(desk: _Desk) -> Iterator[Inputs]:
    """Yield the inputs of fixed trials; the classifiers that a baseline's have trained are kept."""
    if desk.design.validates:
        yield from desk.stage(train=desk.parts[0], validation=desk.parts[1], share=True)
    else:
        yield from desk.stage(train=desk.dataset.train, test=desk.dataset.test)
        keep_models(desk.record, desk.dataset, desk.pretrained)


def _search(desk: _Desk, space: SearchSpace) -> Iterator[Inputs]:
    """Search a space on training and validation images, then refit and test its best recipe and the baseline.

    Yields the inputs of each stage once the record holds its first trials, and goes on when all of them have ended.
    No trial of the search or of the re-ranking gets the test images. Each trial of the verdict opens them once.
    """
    record, dataset, design = desk.record, desk.dataset, desk.design
    baseline = design.recipes[0]
    rest, held_out = desk.parts
    if not record.judging:  # else the search has ended, and the verdict's trials need other images
        if design.screened:
            yield from desk.stage(train=rest, validation=held_out, share=True)
            record.keep_models(promising_models(record))
            record.add(plan_first_trials(record))
        yield from desk.stage(train=rest, validation=held_out, share=True)
    while plans := plan_reranks(record, desk.config.seed):
        record.add(plans)
        rest, held_out = _parts(dataset, plans[0].seed)
        yield from desk.stage(train=rest, validation=held_out, share=True)
    winner = find_winner(record)
    labels = dataset.test.labels.tolist()
    if winner:
        next_plans = partial(plan_finals, winner=winner, baseline=baseline, labels=labels, seed=desk.config.seed)
        earlier = earlier_p_values(record)
        while plans := next_plans(record.finals(), repeats=design.repeats, earlier=earlier, metric=design.metric):
            record.add(plans)
            reuse_refits(record, baseline, desk.listeners)
            yield from desk.stage(train=dataset.train, test=dataset.test, share=winner.plan.recipe != baseline)
    record.note("importances", record.importances())  # takes half a second, so not while trials wait
    if winner:
        verdict = reach_verdict(record, winner, labels, rank_candidates(record))
        kept = recipe_to_keep(record, verdict, winner=winner.plan.recipe, baseline=baseline)
        keep_model(record, kept, dataset, desk.pretrained[kept.model])


@contextmanager
def _begin(
    config: StudyConfig, design: Design, observer: Observer, record: Record | None, resources: Allotment
) -> Iterator[_Desk]:
    """Prepare everything that trials need, cheap checks first; if the study breaks off, end its MLflow runs."""
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
            store=_pixel_store(config),
            watch=observer,
        )
        audit = audit_images(dataset, observer)
        copies = draw_copies(audit, dataset) if record is None else None  # before any image is dropped
        if config.leaks == "drop":
            dataset = drop_leaks(dataset, audit)
        parts = _parts(dataset, config.seed) if design.validates else [dataset.train]
        measured = {"test": dataset.test} | ({"validation": parts[1]} if design.validates else {})
        check_metric(design.metric, dataset.classes, measured)
        _watch_fingerprints(dataset, parts, observer)
        manifest = _describe(config, design, dataset, parts)
        observer.on_data(dataset, manifest)
        observer.on_audit(audit)
        observer.on_stage("loading the weights")
        pretrained: dict[str, Pretrained] = {}
        for model in design.models:
            pretrained[model] = load_pretrained(model, config.weights, classes=len(dataset.classes))
            observer.on_weights(model, pretrained[model])
        manifest = replace(manifest, weights_digests={model: weights.digest for model, weights in pretrained.items()})
        if record:
            _check_same(record, manifest, dataset)
        # This creates a local database, so it comes after every check for missing data and weights.
        observer.on_stage("opening MLflow's store")
        client = connect(_store(config), verbose=config.verbose)
        observer.on_resources(resources, design.space)
        if record is None:
            record = Record.create(config.mlruns / "studies" / config.name, manifest)
            stack.callback(record.close)
            record.keep_audit(audit.summary(), copies)
        record.add(plan_screens(design, config.seed) or plan_first_trials(record))
        observer.on_record(record)
        tracker = stack.enter_context(_tracking(config, record, dataset, client))
        yield _Desk(config, design, dataset, parts, pretrained, record, tracker, observer, resources)


@contextmanager
def _tracking(
    config: StudyConfig, record: Record, dataset: Dataset | None, client: "MlflowClient"
) -> Iterator[Tracker]:
    """Keep MLflow in step with the record, beginning with its present trials; on an error, end the runs."""
    parts = lru_cache(maxsize=1)(_parts)

    @lru_cache(maxsize=8)
    def draw(plan: Plan) -> bytes | None:
        if dataset is None:
            return None
        searched = plan.validates and record.manifest.design.validates
        train = parts(dataset, plan.seed)[0] if searched else dataset.train
        return call(figures.draw_png, prepare_batch(plan, replace(dataset, train=train)))

    artifacts = config.mlruns / "artifacts" if _store(config).startswith(SQLITE) else None
    with OtherProcess() as call:
        tracker = Tracker(client, record, artifacts=artifacts, samples=lambda plan: draw(alike(plan)), call=call)
        for trial in record.all_trials():
            if trial.state != "waiting":
                tracker.on_change(trial.plan)
        try:
            yield tracker
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {}, {})
            raise


def _share_resources(config: StudyConfig, design: Design) -> Allotment:
    """Divide the joined Ray's CPU cores and GPUs among the trials of a study."""
    return share_resources(
        config.cpus_per_trial,
        config.gpus_per_trial,
        config.concurrent,
        trials=design.space.budget.trials if design.space else len(design.recipes),
        per_gpu=_trials_per_gpu(config, design),
        on_cores=partial(_trials_on_cores, config, design),
    )


def _trials_per_gpu(config: StudyConfig, design: Design) -> int:
    """Return how many trials may share a GPU; 1 on a cluster, whose GPUs this computer cannot ask."""
    if config.ray_address or config.gpus_per_trial is not None or design.stage == "as-written":
        return 1
    return trials_per_gpu(
        design.models,
        image_size=design.image_size,
        batch_size=design.batch_size,
        gpu_bytes=gpu_memory(),
    )


def _trials_on_cores(config: StudyConfig, design: Design, cores: int) -> int:
    """Return how many trials share a node's cores; 1 if they are fixed, or on a cluster, whose memory is not known."""
    if config.ray_address or design.space is None:
        return 1
    return trials_on_cores(
        design.models,
        image_size=design.image_size,
        batch_size=design.batch_size,
        trials=design.space.budget.trials,
        cores=cores,
    )


def _pixel_store(config: StudyConfig) -> PixelStore | None:
    return None if config.cache_gb == 0 else PixelStore(default_directory())


def _store(config: StudyConfig) -> str:
    return config.tracking_uri or local_uri(config.mlruns)


def _parts(dataset: Dataset, seed: int) -> Sequence[Images]:
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
