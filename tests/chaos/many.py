"""Run a search of thousands of trials that do nothing, and check each: `python tests/chaos/many.py [TRIALS]`.

It also prints how the driver's memory grows. The exit code is 1 if a trial is not exact, if a run was not sent to
MLflow, or if the driver grows by more than `MOST_BYTES` per trial.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from support.calls import call_here

from study.bench.orchestration import ONE_PIXEL, make_manifest, own_bytes
from study.bench.training import make_images
from study.config.load_toml import load_space
from study.config.plan import Plan
from study.config.search_space import Budget
from study.dispatch.cluster import ray_session, share_resources
from study.dispatch.run_trials import run_trials
from study.dispatch.searcher import Work
from study.dispatch.stages import put_stages
from study.results.metrics import EpochResult, Progress
from study.results.record import Record
from study.tracking.client import connect, local_uri
from study.tracking.tracker import Tracker
from study.training.run_trial import Inputs

EVERY = 100
MOST_BYTES = 150_000
"""Most bytes by which the driver may grow per trial, for its record and for what Ray Tune and Optuna keep."""


class Watch:
    """Listener that prints the number of started trials and the driver's memory."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        """Memory of the driver in bytes, at the start of every 100th trial."""
        self._started: set[str] = set()
        self._since = time.monotonic()

    def on_start(self, plan: Plan) -> None:
        self._started.add(plan.key)
        if len(self._started) % EVERY == 0:
            self.bytes.append(own_bytes(os.getpid()))
            seconds, self._since = time.monotonic() - self._since, time.monotonic()
            print(f"trial {len(self._started)}: driver {self.bytes[-1] / 1e6:.0f} MB, {seconds:.0f} s more", flush=True)

    def on_wait(self, plan: Plan, shortage: str) -> None:
        pass

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        pass

    def on_change(self, plan: Plan) -> None:
        pass


def value_of(number: int) -> float:
    """Return the validation accuracy that a trial must report."""
    return (10 + number % 11) / 20


def report_number(config: dict[str, Any], *, inputs: Inputs) -> None:
    """Report one epoch whose accuracy differs from that of the neighbouring trials."""
    right = config["plan"].number % 11
    confusion = [[right, 10 - right], [0, 10]]
    tune.report({"report": EpochResult(1, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=confusion)})


def main() -> int:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory(prefix="many-") as folder:
        room = Path(folder)
        space = load_space("resnet18")
        space = replace(space, base=replace(space.base, epochs=1), budget=Budget(trials))
        record = Record.create(room / "studies" / "many", make_manifest(space))
        client = connect(local_uri(room), verbose=False)
        tracker = Tracker(client, record, artifacts=room / "artifacts", samples=lambda plan: ONE_PIXEL, call=call_here)
        inputs = Inputs(make_images(2), None, None, 2, {}, "auto")
        with ray_session(None, verbose=False) as scratch:
            resources = share_resources(1, None, 2, trials=trials)
            watch = Watch()
            work = Work(record, put_stages([inputs]), [tracker, watch])
            run_trials(lambda: work, resources=resources, scratch=scratch, function=report_number)
        unsent = tracker.finish("FINISHED", {}, {})
        faults = find_faults(record, client, trials)
        record.close()
    steps = len(watch.bytes) - 1
    grown = (watch.bytes[-1] - watch.bytes[0]) / (EVERY * steps) if steps > 0 else 0.0
    print(f"{trials} trials, {unsent} runs unsent, {len(faults)} faults: {faults[:5]}")
    print(f"driver: {grown / 1e3:.0f} kB per trial")
    return 1 if faults or unsent or grown > MOST_BYTES else 0


def find_faults(record: Record, client: Any, trials: int) -> list[str]:
    """Return each trial and value that the journal or MLflow lacks or must not have."""
    wanted = Counter({(str(number), value_of(number)): 1 for number in range(trials)})
    recorded = Counter((trial.plan.key, trial.value) for trial in record.trials() if trial.state == "complete")
    experiment = client.get_experiment_by_name(record.manifest.data).experiment_id
    runs, token = [], None
    while True:
        page = client.search_runs([experiment], "tags.`study.stage` = 'search'", page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    shown = Counter((run.data.tags["study.trial"], run.data.metrics.get("val_accuracy")) for run in runs)
    return [str(fault) for found in (recorded, shown) for fault in ((found - wanted) + (wanted - found))]


if __name__ == "__main__":
    sys.exit(main())
