"""Run a study from its configuration to its result: prepare it, run its trials stage by stage, and conclude.

Needs a checked StudyConfig, a Design, and a Ray that this process has joined. Knows neither how a trial trains nor
which trial runs next.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from study.compute.sharing import gpu_memory, trials_on_cores, trials_per_gpu
from study.config.plan import Design, StudyConfig
from study.config.search_space import SearchSpace
from study.data.images import Dataset
from study.data.sources import find_images
from study.dispatch.cluster import Allotment, share_resources
from study.dispatch.run_trials import run_trials
from study.dispatch.searcher import Work
from study.dispatch.stages import put_stages
from study.errors import RecordError
from study.results.ledger import earlier_p_values
from study.results.optuna_adapters import rank_fields
from study.results.record import Record
from study.tracking.client import connect
from study.tracking.tracker import Tracker
from study.training.run_trial import Inputs
from study.tuning.finish_study import StudyResult, conclude, read_findings
from study.tuning.keep_model import keep_model, keep_models, recipe_to_keep
from study.tuning.prepare import Desk, Observer, pixel_store, prepare, split_parts, store_uri, track
from study.tuning.reuse_refits import reuse_refits
from study.verdict.judge import plan_finals, reach_verdict
from study.verdict.rerank import find_winner, plan_reranks, rank_candidates
from study.verdict.screen import plan_first_trials, promising_models


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
        begin = cache(lambda: stack.enter_context(prepare(config, design, observer, record, resources)))
        run_trials(lambda: _work(begin()), resources=resources, scratch=scratch, ahead=config.ray_address is None)
        desk = begin()
        return _conclude(observer, desk.record, desk.tracker, desk.dataset)


def rebuild_study(config: StudyConfig, observer: Observer, record: Record) -> StudyResult:
    """Conclude an ended study again from its record; its images, if present, only illustrate the result.

    Raises:
        RecordError: a new place of the images is given, but they are not there.
    """
    observer.on_stage("opening MLflow's store and reading the images")
    client = connect(store_uri(config), verbose=config.verbose)
    observer.on_record(record)
    given = replace(record.manifest, source=config.data, data_dir=str(config.data_dir))
    dataset = find_images(given, pixel_store(config))
    if dataset:
        record.set_places(source=given.source, data_dir=given.data_dir)
    elif given.source != record.manifest.source:
        raise RecordError(
            f"data: must hold the images of study {record.name!r}, but {config.data} does not. Leave it out, or give"
            " the place where they are."
        )
    with track(config, record, dataset, client) as tracker:
        return _conclude(observer, record, tracker, dataset)


def _conclude(observer: Observer, record: Record, tracker: Tracker, dataset: Dataset | None) -> StudyResult:
    findings = read_findings(record)
    observer.on_findings(findings)  # at once: what follows takes seconds
    observer.on_stage("writing the report, sending results to MLflow, registering")
    return conclude(findings, record, tracker, dataset)


def _work(desk: Desk) -> Work:
    """Return what Ray Tune needs of a study."""
    stages = _search(desk, desk.design.space) if desk.design.space else _fixed(desk)
    return Work(desk.record, put_stages(stages), desk.listeners)


def _fixed(desk: Desk) -> Iterator[Inputs]:
    """Yield the inputs of fixed trials; the classifiers that a baseline's have trained are kept."""
    if desk.design.validates:
        yield from desk.stage(train=desk.parts[0], validation=desk.parts[1], share=True)
    else:
        yield from desk.stage(train=desk.dataset.train, test=desk.dataset.test)
        keep_models(desk.record, desk.dataset, desk.pretrained)


def _search(desk: Desk, space: SearchSpace) -> Iterator[Inputs]:
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
        rest, held_out = split_parts(dataset, plans[0].seed)
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
    record.note("importances", rank_fields(record.optuna_study, space))  # takes half a second, so not while trials wait
    if winner:
        verdict = reach_verdict(record, winner, labels, rank_candidates(record))
        kept = recipe_to_keep(record, verdict, winner=winner.plan.recipe, baseline=baseline)
        keep_model(record, kept, dataset, desk.pretrained[kept.model])


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
