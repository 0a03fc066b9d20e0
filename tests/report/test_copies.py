"""The report's section on images: counts, copies, leaks, and accuracies with and without leaked test images."""

import numpy as np
import pytest
from support.manifests import make_manifest

from study.config.manifest import Found
from study.config.plan import Plan
from study.data.audit import audit_images
from study.data.images import Dataset, Images
from study.report.copies import doubts, draw_copies, images_section
from study.results.metrics import EpochResult, Evaluation
from study.results.record import Record


@pytest.fixture
def leaky():
    """Four training and four test images in two classes; the first two test images are training images."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    train = Images(noise[:4], np.array([0, 0, 1, 1]))
    test = Images(noise[[0, 2, 4, 5]], np.array([0, 1, 0, 1]))
    return Dataset("pets", ("cat", "dog"), train, test, 1.0)


@pytest.fixture
def make_record(tmp_path, make_recipe):
    """Return a function that records a tested baseline with an audit; three of four test images are right."""
    made = []

    def make(audit, **found):
        record = Record.create(tmp_path / "one", make_manifest(found=Found(**found)))
        made.append(record)
        record.note("audit", audit)
        record.add([Plan(None, "baseline", make_recipe(), 0)])
        plan = record.next_trial()
        record.epoch(plan, EpochResult(1, 2.0, 3.0, 10.0))
        record.tested(plan, Evaluation(1.0, [[1, 1], [0, 2]], [0, 1, 1, 1]))
        record.complete(plan)
        return record, record.trials()

    yield make
    for record in made:
        record.close()


def test_leak_is_told_with_both_accuracies(make_record, leaky):
    record, tested = make_record(audit_images(leaky).summary())
    section = images_section(record, tested)
    assert "2 test images have a copy outside the test images" in section.text
    assert section.tables[1].rows == [(tested[0].plan.title, "75.00%", "50.00%")]


def test_leak_is_told_at_the_top(make_record, leaky):
    record, _ = make_record(audit_images(leaky).summary())
    assert "so the test accuracy is too good" in doubts(record)


def test_dropped_copies_are_said_to_be_dropped(make_record, leaky):
    record, tested = make_record(audit_images(leaky).summary(), leaks_dropped=2)
    assert "2 copies of them were dropped from training" in images_section(record, tested).text


def test_images_without_copies_raise_no_doubts(make_record, leaky):
    clean = Dataset("pets", ("cat", "dog"), leaky.train, leaky.test.take(np.array([2, 3])), 1.0)
    record, tested = make_record(audit_images(clean).summary())
    assert (doubts(record), images_section(record, tested).text) == ("", "No image is a copy of another.")


def test_study_of_an_earlier_version_has_no_section(tmp_path):
    with_no_audit = Record.create(tmp_path / "old", make_manifest())
    assert images_section(with_no_audit, []) is None
    with_no_audit.close()


def test_copies_are_drawn_as_a_png(leaky):
    assert draw_copies(audit_images(leaky), leaky).startswith(b"\x89PNG")
    clean = Dataset("pets", ("cat", "dog"), leaky.train, leaky.test.take(np.array([2, 3])), 1.0)
    assert draw_copies(audit_images(clean), clean) is None
