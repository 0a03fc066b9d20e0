"""Studies get names that nothing else has, and searches the recipes of earlier ones."""

import dataclasses

import pytest
from support.manifests import make_manifest

from study.api.planning import default_name, plan_searches
from study.config.flags import build_parser
from study.config.plan import STUDY_NAME, Design, Plan
from study.results.metrics import EpochResult
from study.results.record import Record


def test_default_names_never_collide():
    assert len({default_name("baseline") for _ in range(1000)}) == 1000


@pytest.mark.parametrize("space", ["my space", "поиск", "x" * 100, "..", "a/b"])
def test_default_name_is_allowed_for_every_space(space):
    assert STUDY_NAME.fullmatch(default_name(space))


def plan_search(*flags):
    (job,) = plan_searches(build_parser().parse_args(["--search", "resnet18", "--data", "digits", *flags]))
    return job


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A directory with the study one, whose second trial beats the baseline, and the study two, which has not ended."""
    monkeypatch.chdir(tmp_path)
    space = plan_search().design.space
    for name in ("one", "two"):
        design = Design("search", (space.base,), space, 1)
        record = Record.create(tmp_path / "mlruns" / "studies" / name, make_manifest(design))
        record.add(Plan(None, "search", dataclasses.replace(space.base, lr=lr), 0) for lr in (1e-3, 1e-4))
        for right in (5, 9):
            plan = record.next_trial()
            confusion = [[right, 10 - right], [0, 0]]
            for epoch in range(1, space.base.epochs + 1):
                record.epoch(plan, EpochResult(epoch, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=confusion))
            record.complete(plan)
        if name == "one":
            record.note("verdict", {})
        record.close()


@pytest.mark.usefixtures("earlier")
def test_search_is_planned_with_recipes_of_earlier_studies():
    job = plan_search()
    (proposal,) = job.design.proposals
    assert (proposal.study, proposal.trial, proposal.values["lr"]) == ("one", 1, 1e-4)
    assert job.remarks == ("study two is left out of the first proposals, since it has not ended",)


@pytest.mark.usefixtures("earlier")
def test_search_without_prior_reads_no_earlier_study():
    job = plan_search("--prior", "none")
    assert (job.design.proposals, job.remarks) == ((), ())


SPACE = """
model = "resnet18"
[space]
lr = { type = "float", low = 1e-4, high = 1e-2, log = true }
[fixed]
image_size = 64
"""


@pytest.mark.parametrize(("flags", "sizes"), [([], (224, 64)), (["--image-size", "96"], (96, 96))])
def test_fixed_field_of_a_space_leaves_the_baseline_alone(tmp_path, monkeypatch, flags, sizes):
    """The baseline of every verdict is the assignment's recipe, unless a flag changes both sides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SPACE)
    options = build_parser().parse_args(["--search", "small.toml", "--data", "digits", *flags])
    (job,) = plan_searches(options)
    assert (job.design.recipes[0].image_size, job.design.space.base.image_size) == sizes
