"""Run the trials of a study's record on Ray Tune, which only places trials and watches processes.

Processes of trials start, and import what trials need, while the study is still being prepared. Needs a Ray that this
process has joined.
"""

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ray import tune
from ray.exceptions import OutOfMemoryError, RayError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import ProgressReporter

from study.dispatch.cluster import Allotment, describe_shortage
from study.dispatch.scheduler import RecordScheduler, RecordStopper
from study.dispatch.searcher import PastTune, RecordSearcher, Work
from study.dispatch.stages import with_inputs
from study.dispatch.trainable import trainable


class SilentReporter(ProgressReporter):
    """Reporter that shows nothing; Ray Tune's own for notebooks clears the cell's output, even with verbose=0."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Return False."""
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        """Show nothing."""


def run_trials(
    prepare: Callable[[], Work],
    *,
    resources: Allotment,
    scratch: Path,
    ahead: bool = False,
    function: Callable[..., None] = trainable,
) -> None:
    """Prepare a study and run all trials that its record has waiting or proposes, on the Ray that this process joined.

    Processes of trials live on from stage to stage.

    Args:
        prepare: function that prepares the study; it is called once.
        resources: CPUs and GPUs of one trial, and the number of concurrent trials.
        scratch: directory for Ray Tune's own files, which nobody reads.
        ahead: whether the processes of trials start before the study is prepared. They take their CPUs and GPUs, so
            nobody else may need those.
        function: trainable that runs each trial, with the trial's configuration and its `inputs`.

    Raises:
        RecordError: the record, or a checkpoint that must be kept, can no longer be written.
        Exception: what `prepare` or the study's stages raise.
    """
    searcher = RecordSearcher(prepare, ahead=resources.concurrent if ahead else 0)
    try:
        while not searcher.finished:
            _run_tune(searcher, resources, scratch, function)
            searcher.end_waiting()
    finally:
        gc.unfreeze()


def _run_tune(searcher: RecordSearcher, resources: Allotment, scratch: Path, function: Callable[..., None]) -> None:
    """Run trials until all stages have ended, or the stopper ends the search, or Ray Tune gives up.

    Where Ray's memory monitor ends a process, or Ray loses one in another rare way, Ray Tune gives up all trials. The
    searcher will then hand them out again.
    """
    tuner = tune.Tuner(
        tune.with_resources(with_inputs(function), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RecordScheduler(searcher, resources.concurrent),
            num_samples=-1,
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=tempfile.mkdtemp(dir=scratch),
            stop=RecordStopper(searcher, partial(describe_shortage, resources)),
            verbose=0,
            progress_reporter=SilentReporter(),
        ),
    )
    try:
        tuner.fit()
    except PastTune as past:
        raise past.error from None
    except RuntimeError as error:
        if not isinstance(error.__cause__, RayError):
            raise
        searcher.take_back(out_of_memory=isinstance(error.__cause__, OutOfMemoryError))
