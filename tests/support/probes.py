"""Write probes' results into the record of a search, without images."""

from study.results.metrics import EpochResult
from study.results.record import Record
from study.verdict.screen import plan_first_trials, plan_screens

FACTS = {"parameters": 11_000_000, "predict_images_per_s": 76.0, "device": "CPU", "precision": "fp32"}


def run_probes(record: Record, *right: int | None) -> None:
    """Run the probes, of which each classified so many of 100 images correctly, or failed if the number is None.

    Half of the images are of each of two classes, so a probe with 50 or fewer has learnt nothing.
    """
    record.add(plan_screens(record.manifest.design, seed=0) or plan_first_trials(record))
    for count in right:
        plan = record.next_trial()
        assert plan
        if count is None:
            record.fail(plan, "out of memory.")
            continue
        record.facts(plan, FACTS)
        first, second = (count + 1) // 2, count // 2
        confusion = [[first, 50 - first], [50 - second, second]]
        record.epoch(plan, EpochResult(1, 0.5, 1.0, 1.0, val_loss=1 - count / 100, val_confusion=confusion))
        record.complete(plan)
