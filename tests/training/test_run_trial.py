"""A trial of the study as one line of reports, and how it fails."""

import dataclasses
import pickle
import re
import threading
import warnings

import numpy as np
import pytest
import torch
from support.weights import CountCopies

from study.compute.gpu_cache import device_memory
from study.config.plan import Plan
from study.dispatch.trainable import trainable
from study.errors import TrialError
from study.models.classifier import build
from study.results.metrics import EpochResult, Evaluation
from study.training.run_trial import Facts, Failure, Inputs, OpensTest, describe_failure, run_trial


@pytest.fixture
def inputs(make_images):
    return Inputs(
        train=make_images(24),
        validation=None,
        test=make_images(9, seed=1),
        classes=3,
        pretrained={"resnet18": None},
        precision="fp32",
    )


def test_run_trial_reports_facts_then_each_epoch_then_the_test(inputs, make_recipe):
    reports = list(run_trial(Plan(0, "baseline", make_recipe(), 0), inputs))
    assert [type(report) for report in reports] == [Facts, EpochResult, EpochResult, OpensTest, Evaluation]
    assert reports[0].trainable_parameters == 8_393_728 + 3 * 513
    assert len(reports[-1].predictions) == 9


def test_run_trial_repeats_itself_in_a_warm_process(inputs, make_recipe):
    """Ray Tune reuses processes: what ran before in one must not show."""
    plan = Plan(0, "baseline", make_recipe(), 0)
    outcomes = []
    for _ in range(2):
        _, *epochs, _, test = run_trial(plan, inputs)
        outcomes.append(([result.train_loss for result in epochs], test))
        list(run_trial(Plan(1, "baseline", make_recipe(unfreeze_depth=3, lr=0.1), 4), inputs))
    assert outcomes[0] == outcomes[1]


def test_run_trial_gives_the_same_with_and_without_the_store(inputs, make_recipe, tmp_path):
    plan = Plan(0, "search", make_recipe(), 0)
    shared = dataclasses.replace(inputs, cache_gb=0.1)
    outcomes, sources = [], []
    for given in (inputs, shared, shared):
        _, *epochs, _, test = run_trial(plan, given)
        outcomes.append(([result.train_loss for result in epochs], test))
        sources.append([result.features for result in epochs])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert sources == [[None] * 2, [{"stored": 24}] * 2, [{"read": 24}] * 2]
    assert list((tmp_path / "cache" / "study" / "features").glob("*.safetensors"))


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "timm/test_efficientnet"])
def test_building_the_next_network_meanwhile_changes_no_result(model, inputs, make_recipe):
    """Another thread draws initial values while this one draws its dropout, and the next trial is as if alone."""
    state = build(model, classes=3, unfreeze_depth=0, pretrained=None, seed=9).network.state_dict()
    recipe = make_recipe(model=model, epochs=4)
    given = dataclasses.replace(inputs, pretrained={model: {name: tensor.numpy() for name, tensor in state.items()}})
    outcomes = []
    for seeds in ((), (5, 6), (5, 6)):
        for seed in (5, 6):
            _, *epochs, _, test = run_trial(Plan(0, "final", recipe, seed), dataclasses.replace(given, seeds=seeds))
            outcomes.append(([result.train_loss for result in epochs], test.loss))
    assert outcomes[:2] == outcomes[2:4] == outcomes[4:]
    assert outcomes[0] != outcomes[1]


def test_next_network_is_ready_when_a_trial_stops_early(inputs, make_recipe):
    state = build("resnet18", classes=3, unfreeze_depth=0, pretrained=None, seed=9).network.state_dict()
    given = dataclasses.replace(inputs, pretrained={"resnet18": {name: value.numpy() for name, value in state.items()}})
    trial = run_trial(Plan(0, "search", make_recipe(), 0), given)
    next(trial), next(trial)  # the facts and the first epoch
    for thread in threading.enumerate():
        if thread.name == "next network":
            thread.join()
    trial.close()
    weights = {name: torch.from_numpy(array) for name, array in given.pretrained["resnet18"].items()}
    with CountCopies() as counter:
        build("resnet18", classes=3, unfreeze_depth=5, pretrained=weights, seed=0)
    assert counter.copies == 0


def test_next_network_does_not_hold_up_the_first_step(inputs, make_recipe):
    running = []

    def watch(_):
        running.append("next network" in [thread.name for thread in threading.enumerate()])

    recipe = make_recipe(batch_size=4)
    for number in (0, 1):
        [*run_trial(Plan(number, "search", recipe, 0), inputs, watch)]
        assert not running[0]
        running.clear()


def test_run_trial_never_tests_without_a_test_set(inputs, make_recipe):
    sealed = dataclasses.replace(inputs, test=None)
    assert {Evaluation, OpensTest}.isdisjoint(
        type(report) for report in run_trial(Plan(0, "search", make_recipe(), 0), sealed)
    )


def test_run_trial_takes_shared_arrays_that_nobody_may_write(inputs, make_recipe):
    """As Ray's object store gives them: a trial trains all the same, and leaves them as they were."""
    state = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=9).network.state_dict()
    arrays = {name: tensor.numpy().copy() for name, tensor in state.items()}
    kept = {name: array.copy() for name, array in arrays.items()}
    for array in (*arrays.values(), inputs.train.pixels):
        array.setflags(write=False)
    shared = dataclasses.replace(inputs, pretrained={"resnet18": arrays})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        list(run_trial(Plan(0, "baseline", make_recipe(), 0), shared))
    for name, array in arrays.items():
        assert np.array_equal(array, kept[name]), name


def test_inputs_travel_as_shared_memory(inputs):
    """Ray shares what pickles out of band: the pixels must, or each trial would have a copy."""
    shared = []
    rest = pickle.dumps(inputs, protocol=5, buffer_callback=shared.append)
    assert inputs.train.pixels.nbytes in {buffer.raw().nbytes for buffer in shared}
    assert len(rest) < 2_000


def test_inputs_take_a_fingerprint_along_that_was_computed_before(inputs):
    """Or each trial would read all pixels for it again."""
    assert inputs.train.fingerprint
    there = pickle.loads(pickle.dumps(inputs, protocol=5))
    there.train.pixels[:] = 0
    assert there.train.fingerprint == inputs.train.fingerprint


def test_run_trial_as_written_reports_like_any_other(inputs, make_recipe):
    plan = Plan(0, "as-written", make_recipe(epochs=1), 0)
    reports = list(run_trial(plan, inputs))
    assert [type(report) for report in reports] == [Facts, EpochResult, OpensTest, Evaluation]
    assert reports[0].precision == "fp32"
    assert 0 <= reports[1].train_accuracy <= 1
    assert reports[-1].seconds > 0
    assert np.sum(reports[-1].confusion) == 9


def test_run_trial_as_written_tells_how_far_it_is(inputs, make_recipe):
    seen = []
    list(run_trial(Plan(0, "as-written", make_recipe(epochs=1), 0), inputs, seen.append))
    assert [(progress.epoch, progress.images, progress.of) for progress in seen] == [(1, 16, 24), (1, 24, 24)]


@pytest.mark.parametrize("stage", ["baseline", "as-written"])
def test_run_trial_fails_where_the_test_loss_is_not_finite(inputs, make_recipe, stage):
    """The last step may spoil the weights after the last loss of training was taken."""
    recipe = make_recipe(lr=1e30, optimizer="sgd", unfreeze_depth=5, epochs=1, batch_size=24)
    with pytest.raises(TrialError, match=r"test_loss: must stay finite, but got \w+ in epoch 1"):
        list(run_trial(Plan(0, stage, recipe, 0), inputs))


def test_run_trial_raises_what_the_record_keeps_as_reason(inputs, make_recipe):
    plan = Plan(0, "baseline", make_recipe(lr=1e30, optimizer="sgd", unfreeze_depth=5), 0)
    with pytest.raises(TrialError, match="train_loss: must stay finite"):
        list(run_trial(plan, inputs))


@pytest.fixture
def sent(monkeypatch):
    """What a trial reports to Ray Tune."""
    reports = []
    monkeypatch.setattr("study.dispatch.trainable.tune.report", lambda metrics: reports.append(metrics["report"]))
    return reports


@pytest.mark.parametrize("allocate", [lambda: np.empty(2**50), lambda: torch.empty(2**50)], ids=["numpy", "torch"])
def test_trainable_frees_memory_before_it_reports_a_lack(inputs, make_recipe, sent, allocate):
    class Huge(dict):
        def __getitem__(self, model):
            allocate()

    before = device_memory(torch.device("cpu"))
    trainable({"plan": Plan(0, "baseline", make_recipe(), 0)}, inputs=dataclasses.replace(inputs, pretrained=Huge()))
    (failure,) = sent
    assert failure.out_of_memory
    assert failure.reason.startswith("out of memory: ")
    assert device_memory(torch.device("cpu")) is not before


def test_facts_are_reported_with_the_first_result(inputs, make_recipe, monkeypatch):
    reports = []
    monkeypatch.setattr("study.dispatch.trainable.tune.report", reports.append)
    trainable({"plan": Plan(0, "baseline", make_recipe(epochs=2), 0)}, inputs=inputs)
    assert [sorted(report) for report in reports[:2]] == [["facts", "report"], ["report"]]
    assert reports[0]["facts"].precision == inputs.precision
    assert [report["report"].epoch for report in reports[:2]] == [1, 2]


def test_trainable_reports_a_bug_as_a_failure(inputs, make_recipe, sent):
    trainable({"plan": Plan(0, "baseline", make_recipe(), 0)}, inputs=dataclasses.replace(inputs, pretrained={}))
    assert sent == [Failure("KeyError: 'resnet18'")]


def test_trainable_opens_no_test_on_a_full_disk(inputs, make_recipe, sent, small_disk):
    inputs = dataclasses.replace(inputs, checkpoints=small_disk / "checkpoints")
    trainable({"plan": Plan(0, "final", make_recipe(epochs=1), 0)}, inputs=inputs)
    *_, last = sent
    assert last.stops_study
    assert re.fullmatch(
        r".*/checkpoints/.*: must have room, but got: .*No space.*\. Free disk space, then use --resume\.", last.reason
    )
    assert not any(isinstance(report, OpensTest | Evaluation) for report in sent)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (OSError(2, "No such file or directory"), False),
    ],
)
def test_describe_failure_knows_when_memory_was_too_small(error, expected):
    assert describe_failure(error).out_of_memory is expected


def test_run_trial_goes_on_from_its_checkpoint(inputs, make_recipe, tmp_path):
    """The verdict's trials leave their last weights, with which a process that died before the test only tests."""
    plan = Plan(0, "final", make_recipe(), 0)
    kept = dataclasses.replace(inputs, study="one", checkpoints=tmp_path)
    _, *epochs, opens, test = run_trial(plan, kept)
    assert len(epochs) == 2
    _, *again = run_trial(plan, kept)
    assert again == [opens, test]
    _, *others = run_trial(plan, dataclasses.replace(kept, study="another"))
    assert len(others) == 4
