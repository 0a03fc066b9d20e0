"""Run one trial in a process of Ray Tune, and report its results or its failure.

This module knows neither Optuna nor MLflow.
"""

import gc
import time
import warnings
from functools import cache
from typing import Any

from ray import tune

from study.compute.gpu_cache import release_memory
from study.dispatch.node_images import with_local_images
from study.errors import DataError, RecordError, StudyError
from study.results.metrics import Progress
from study.training.run_trial import Facts, Failure, Inputs, Report, describe_failure, run_trial

PROGRESS_S = 2.0
"""Minimum seconds between two progress reports within an epoch."""


@cache
def _spare_collector() -> None:
    """Leave what this process has imported out of later garbage collections, which took 0.1 to 0.2 s each."""
    gc.freeze()


def trainable(config: dict[str, Any], *, inputs: Inputs) -> None:
    """Run the trial `config["plan"]` and report to Ray Tune.

    An exception is reported as a `Failure`, so Ray does not retry the trial.

    Args:
        config: Ray Tune's values of the trial; "plan" is its Plan.
        inputs: images, weights and settings that all trials share.
    """
    _spare_collector()
    facts: dict[str, Facts] = {}

    def send(report: Report) -> None:
        if isinstance(report, Facts):
            facts["facts"] = report  # sent with the next report: training does not wait for an answer of their own
        else:
            tune.report({"report": report, **facts})
            facts.clear()

    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            send(progress)

    # Ray's arrays are read-only and nothing here writes to them, so torch's warning does not apply.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    try:
        for report in run_trial(config["plan"], with_local_images(inputs), watch):
            send(report)
        return
    except RecordError as error:
        failure = Failure(f"{error} Free disk space, then use --resume.", stops_study=True)
    except DataError as error:  # the store's images are gone: every trial would fail
        failure = Failure(f"{error} Use --resume.", stops_study=True)
    except StudyError as error:
        failure = Failure(str(error))
    except Exception as error:
        # A bug or a broken installation would fail again; Ray retries only a process that died.
        failure = describe_failure(error)
    if failure.out_of_memory:
        release_memory()  # not earlier: the traceback held the trial's tensors; the next trial may need the memory
    send(failure)
