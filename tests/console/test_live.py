"""What a person sees: in a terminal of 80 columns, on a pipe, and at the end, without a trial being run."""

import io
import os
import re
import shlex
from dataclasses import replace

import numpy as np
import optuna
import pytest
from support.images import make_images
from support.manifests import make_manifest, make_space

from study.config.manifest import Found
from study.config.plan import Design, Plan, Proposal, probe_recipe
from study.config.search_space import Budget, Categorical, Float, Int, Pruner, Resources, SearchSpace
from study.console.live import Console
from study.data.audit import audit_images
from study.data.images import Dataset
from study.dispatch.cluster import Allotment
from study.models.pretrained import Pretrained
from study.results.metrics import EpochResult, Evaluation, Progress
from study.results.record import Record
from study.ticker import Screen, Ticker
from study.tracking.client import local_uri
from study.tuning.finish_study import Findings, StudyResult
from study.verdict.screen import plan_first_trials, plan_screens
from study.verdict.trial_table import Row

TITLE = "#0 resnet18 · depth 1 · lr 0.001 · batch 16 · optimizer adam"
FACTS = {"device": "NVIDIA H100", "precision": "bf16"}


@pytest.fixture
def space(tmp_path, make_recipe):
    domains = {
        "lr": Float(1e-5, 1e-1, log=True),
        "unfreeze_depth": Int(0, 3),
        "optimizer": Categorical(("adam", "sgd")),
    }
    return SearchSpace("small", tmp_path, domains, make_recipe(), Budget(9, 3600.0), Pruner(), Resources())


@pytest.fixture
def record(tmp_path, space):
    """Of a search that begins with the baseline's recipe."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record.create(tmp_path / "one", make_manifest(space=space))
    record.add([Plan(None, "search", space.base, 0)])
    yield record
    record.close()


@pytest.fixture
def fixed(tmp_path, make_recipe):
    """Of a baseline, which holds no validation images out."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record.create(tmp_path / "fixed", make_manifest())
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    yield record
    record.close()


def epoch(number, right=None, **values):
    """One of 60 images a second for 2 s; `right` of ten validation images are, the six of the first class first."""
    confusion = (
        None if right is None else [[min(right, 6), 6 - min(right, 6)], [4 - max(right - 6, 0), max(right - 6, 0)]]
    )
    return EpochResult(number, 1.5 / number, 2.0, 60.0, val_confusion=confusion, **values)


_made: list[Ticker] = []


@pytest.fixture(autouse=True)
def _closed():
    """Let no ticker of a test go on."""
    yield
    while _made:
        _made.pop().close()


def ticker_on(screen):
    _made.append(Ticker(screen, tick_s=3600.0))
    return _made[-1]


def terminal(width=80, weights="none"):
    """Return a console on a terminal, and what it writes."""
    output = io.StringIO()
    screen = Screen(width=width, file=output, force_terminal=True)
    return Console(weights, ticker_on(screen)), output


def pipe(weights="none"):
    output = io.StringIO()
    return Console(weights, ticker_on(Screen(file=output))), output


def written(output):
    """All that was written, without the terminal's control codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())


def begin(console, record, space):
    """Let a search begin, with one trial of two cores at a time."""
    console.on_resources(Allotment(2, 0, 1), space)
    console.on_record(record)


def run(record, *accuracies, console=None):
    """Run the next trial of a search to its end; return its plan."""
    plan = record.next_trial()
    if console:
        console.on_start(plan)
    record.facts(plan, FACTS)
    for number, right in enumerate(accuracies, 1):
        if record.epoch(plan, epoch(number, right)):
            break
        if console:
            console.on_change(plan)
    else:
        record.complete(plan)
    if console:
        console.on_change(plan)
    return plan


def found(record, **more):
    return Findings(record.trials(), record.finals(), **more)


def ended(record, **more):
    return StudyResult(record.directory, found(record), local_uri(record.directory), **more)


def test_a_running_trial_tells_all_of_itself_in_80_columns(record):
    console, output = terminal()
    console.on_record(record)
    plan = record.next_trial()
    console.on_start(plan)
    record.epoch(plan, epoch(1, 7))
    console.on_change(plan)
    console.on_progress(plan, Progress(2, 30, 120, 15.0))
    seen = written(output)
    console.close()
    for line in (
        f"{TITLE}  epoch 1/2",
        "  train loss 1.5000  val accuracy 70.0 %  60.0 images/s  2s left",
        f"{TITLE}  epoch 2/2",
        "  25%  train loss 1.5000  val accuracy 70.0 %  15.0 images/s  6s left",
    ):
        assert line in [seen_line.rstrip().lstrip("\r") for seen_line in seen.splitlines()]
    assert max(len(line) for line in seen.splitlines() if str(record.directory) not in line) <= 80


def test_a_long_line_is_wrapped_and_loses_nothing(tmp_path, make_recipe):
    record = Record.create(tmp_path / "two", make_manifest())
    record.add([Plan(None, "final", make_recipe(model="mobilenet_v3_small", lr=3.1e-4, batch_size=128), 2147483647)])
    console, output = terminal()
    console.on_record(record)
    plan = record.next_trial()
    console.on_start(plan)
    console.on_progress(plan, Progress(2, 30, 120, 15.0))
    console.close()
    record.close()
    words = " ".join(written(output).split())
    assert f"{plan.title} epoch 2/2 25% 15.0 images/s 6s left" in words


@pytest.mark.parametrize("busy", [0.0, 64.0])
def test_busy_computer_is_told_with_what_helps(busy, space):
    output = io.StringIO()
    console = Console("none", ticker_on(Screen(file=output)), busy_cores=busy)
    console.on_resources(Allotment(max(2, os.cpu_count()), 0, 1), space)
    assert ("other programs use 64.0 CPU cores" in output.getvalue()) is bool(busy)
    assert ("--cpus-per-trial 1" in output.getvalue()) is bool(busy)


def test_search_shows_best_five_tally_and_time(record, space):
    console, output = terminal()
    begin(console, record, space)
    for right in (1, 2, 3, 4, 5, 6):
        run(record, right, right, console=console)
    plan = record.next_trial()
    console.on_start(plan)
    output.truncate(0)
    output.seek(0)
    console.on_progress(plan, Progress(1, 30, 120, 15.0))
    seen = written(output)
    console.close()
    assert re.findall(r"#(\d) resnet18[^│\n]*│ +(\d\d\.\d\d%)", seen) == [
        ("5", "60.00%"), ("4", "50.00%"), ("3", "40.00%"), ("2", "30.00%"), ("1", "20.00%"),
    ]  # fmt: skip
    assert re.search(r"6 of 9 trials have ended; \d+s spent, about 20s left", seen)
    assert "6 complete, 0 pruned, 0 failed; 24s of device time spent, 0s saved by pruning" in " ".join(seen.split())


def test_on_a_pipe_a_trial_is_told_in_whole_lines(record):
    console, output = pipe()
    console.on_record(record)
    run(record, 3, 7, console=console)
    assert output.getvalue().splitlines()[2:] == [
        "now      searching …",
        f"{TITLE}  starting",
        "device   NVIDIA H100, bf16",
        f"{TITLE}  epoch 1/2  train loss 1.5000  val accuracy 30.0 %  60.0 images/s  2s left",
        f"{TITLE}  epoch 2/2  train loss 0.7500  val accuracy 70.0 %  60.0 images/s  0s left",
        f"{TITLE}  complete after 4s: validation accuracy 70.00% (largest class 60.00%)",
        "time     about 40s left",
    ]


def test_progress_tells_the_metric_that_decides(tmp_path, space):
    design = Design("search", (space.base,), space, metric="macro_f1")
    record = Record.create(tmp_path / "two", make_manifest(design))
    record.add([Plan(None, "search", space.base, 0)])
    console, output = pipe()
    console.on_record(record)
    run(record, 3, 7, console=console)
    record.close()
    assert "train loss 1.5000  val macro F1 23.08%  60.0 images/s" in output.getvalue()


def test_the_hardware_is_told_once(record):
    console, output = pipe()
    console.on_record(record)
    run(record, 3, 7, console=console)
    run(record, 4, 8, console=console)
    assert output.getvalue().count("device   NVIDIA H100, bf16\n") == 1


def test_a_trial_without_validation_tells_its_accuracy_in_training(fixed):
    console, output = pipe()
    console.on_record(fixed)
    plan = fixed.next_trial()
    console.on_start(plan)
    fixed.epoch(plan, epoch(1, train_accuracy=0.412))
    console.on_change(plan)
    assert "epoch 1/2  train loss 1.5000  train accuracy 41.2 %  60.0 images/s" in output.getvalue()


def test_the_line_of_an_older_record_tells_no_accuracy(fixed):
    console, output = pipe()
    console.on_record(fixed)
    plan = fixed.next_trial()
    console.on_start(plan)
    fixed.epoch(plan, epoch(1))
    console.on_change(plan)
    assert "epoch 1/2  train loss 1.5000  60.0 images/s" in output.getvalue()


@pytest.mark.parametrize("make", [terminal, pipe])
@pytest.mark.parametrize("reason", ["[/dev/shm full]", "see /data/[old]/mlruns :smile: [red]"])
def test_what_looks_like_markup_is_printed_as_it_is(record, make, reason):
    console, output = make()
    console.on_record(record)
    plan = record.next_trial()
    console.on_start(plan)
    record.fail(plan, reason)
    console.on_change(plan)
    console.on_findings(found(record))
    assert f"failed after 0s ({reason})" in " ".join(written(output).split())
    assert f"failed {TITLE}: {reason}" in " ".join(written(output).split())


def test_classes_that_look_like_markup_stand_in_the_table(fixed):
    console, output = pipe()
    pair = "cat [tabby] → [/dog] 3"
    console.on_record(fixed)
    console.on_findings(found(fixed, rows=[Row("resnet18", 10, 1.0, 1.0, (1.0,), 0.5, pair)]))
    assert pair in output.getvalue()


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("imagenet", "weights  vgg16: imagenet, last layer is new\n"),
        ("/data/[old]/mine.pth", "weights  vgg16: /data/[old]/mine.pth, last layer is new\n"),
        ("none", "weights  vgg16: last layer is new\n"),
    ],
)
def test_weights_are_told_with_their_origin(weights, said):
    console, output = pipe(weights)
    console.on_weights("vgg16", Pretrained(None, "none", "last layer is new"))
    assert output.getvalue() == said


def test_data_is_told_with_what_was_left_out(tmp_path):
    images = make_images(16, classes=2)
    found = Found("train/, val/ and test/", True, None, {"no image (.txt)": 3, "broken": 1200}, True, [12, 4000], 0.75)
    dataset = Dataset("pets", ("cat", "dog"), images, images, 1.0, found=found)
    screen = Screen(file=io.StringIO(), width=80)
    Console("none", ticker_on(screen)).on_data(dataset, make_manifest(space=make_space(), found=found))
    assert screen.file.getvalue().splitlines()[1:] == [
        "classes  the largest, cat, has 50.00% of the test images",
        "layout   train/, val/ and test/; the search validates on val",
        "left out 3 × no image (.txt), 1,200 × broken",
        "16 bit   grey values 12 to 4,000 become 0 to 255, in predictions too",
        "cropping a typical image loses 75% to become a square; --fit pad and --fit squash keep all of it",
    ]


@pytest.mark.parametrize(("dropped", "advised"), [(False, True), (True, False)])
def test_dropping_leaks_is_advised_until_it_is_done(dropped, advised):
    images = make_images(8, classes=2)
    console, output = pipe()
    console.on_audit(audit_images(Dataset("pets", ("cat", "dog"), images, images, 1.0)), dropped=dropped)
    assert output.getvalue().startswith("audit    8 test images of 8 ")
    assert ("--leaks drop" in output.getvalue()) == advised


def test_search_is_announced_with_space_budget_and_resources(space):
    console, output = pipe()
    console.on_resources(Allotment(2, 0.5, 3), space)
    console.on_resources(Allotment(2, 0.5, 3), replace(space, budget=Budget(1)))
    *shown, again, budget, _ = output.getvalue().splitlines()
    assert (again, budget) == (shown[0], "budget   1 trial, pruner asha")
    assert shown == [
        "space    small: lr 1e-05 … 0.1 (log), unfreeze_depth 0 … 3, optimizer adam | sgd",
        "budget   9 trials or 1h00m, pruner asha",
        "machine  2 CPU cores and 0.5 GPU per trial, 3 at a time",
    ]


def test_end_of_a_search_shows_recipe_tally_and_verdict(record, space):
    console, output = pipe()
    begin(console, record, space)
    run(record, 3, 3)
    best = run(record, 6, 9)
    console.on_findings(found(record, importances={"lr": 0.75, "optimizer": 0.25}))
    seen = output.getvalue()
    assert "2 complete, 0 pruned, 0 failed; 8s of device time spent, 0s saved by pruning\n" in seen
    assert "  lr               importance 75%\n  optimizer        importance 25%\n" in seen
    assert "\nverdict  No verdict: no trial of the search" in seen
    (line,) = (line for line in seen.splitlines() if line.startswith("best "))
    changed = [field for field, value in best.recipe.to_dict().items() if value != space.base.to_dict()[field]]
    assert line.startswith(f"best     #1: {changed[0]} ")
    assert re.findall(r"(\w+) \S+ instead of", line) == changed


def test_search_that_the_baseline_won_says_so(record, space):
    console, output = pipe()
    begin(console, record, space)
    run(record, 8, 9)
    run(record, 9, 8)
    console.on_findings(found(record))
    assert "best     #0: the baseline's recipe\n" in output.getvalue()


def test_time_budget_that_no_trial_kept_is_the_reason(record, space):
    console, output = pipe()
    begin(console, record, space)
    record.set_budget(Budget(9, 1e-9))
    run(record, 5, 5, console=console)
    findings = found(record)
    console.on_findings(findings)
    reason = "failed   the time budget ended before any trial was complete; raise it with --resume one --time-budget"
    assert reason in output.getvalue().splitlines()
    assert not findings.succeeded


def test_tested_trial_says_its_test_accuracy_at_its_end(fixed):
    console, output = pipe()
    console.on_record(fixed)
    plan = fixed.next_trial()
    console.on_start(plan)
    for number in (1, 2):
        fixed.epoch(plan, epoch(number))
    fixed.tested(plan, Evaluation(1.0, np.eye(2, dtype=int).tolist(), [0, 1]))
    fixed.complete(plan)
    console.on_change(plan)
    assert output.getvalue().endswith("complete after 4s: test accuracy 100.00% (largest class 50.00%)\n")


def test_trial_that_predicts_one_class_is_marked(record):
    console, output = pipe()
    console.on_record(record)
    run(record, 3, 6, console=console)
    marked = "accuracy 60.00% (largest class 60.00%); has learnt nothing: every image is predicted as cat\n"
    assert marked in output.getvalue()


def test_close_trials_are_named_with_their_images(record, space):
    console, output = pipe()
    begin(console, record, space)
    for right in (8, 9, 5):
        run(record, 3, right)
    console.on_findings(found(record))
    assert "close    #1 and #0 differ by 1 of 10 validation images\n" in output.getvalue()


def test_table_of_the_best_shows_the_metric_that_decides(tmp_path, space):
    design = Design("search", (space.base,), space, 1, metric="macro_f1")
    record = Record.create(tmp_path / "two", make_manifest(design))
    record.add([Plan(None, "search", space.base, 0)])
    console, output = pipe()
    begin(console, record, space)
    run(record, 3, 8)
    console.on_findings(found(record))
    record.close()
    assert "Best trials by validation macro F1 (largest class 60.00%)" in output.getvalue()
    assert re.search(r"│ +76\.19% │ +80\.00% │", output.getvalue())


def test_data_is_announced_with_its_largest_class(make_images):
    console, output = pipe()
    images = make_images(8, classes=2)
    images = images.take(np.flatnonzero((images.labels == 0) | (np.arange(8) < 4)))
    console.on_data(Dataset("pets", ("cat", "dog"), images, images, 1.0), make_manifest())
    assert "classes  the largest, cat, has 66.67% of the test images\n" in output.getvalue()


def test_the_end_has_three_commands_to_paste(record, tmp_path):
    console, output = pipe()
    console.on_record(record)
    image = tmp_path / "my pets" / "cat.jpg"
    models = [record.directory / "models" / "0", record.directory / "models" / "1"]
    console.print_result(ended(record, model=models[1], models=models, example=image))
    report, ui, predict = (shlex.split(line) for line in output.getvalue().splitlines()[-3:])
    assert (report[0], report[2:]) == ("report", ["-m", "webbrowser", f"{record.directory.as_uri()}/report.html"])
    assert (ui[0], ui[2:5]) == ("MLflow", ["-m", "study.ui", "one"])
    assert (predict[0], predict[2:]) == ("predict", ["-m", "study.predict", str(image), "--model", "one"])
    assert f"model    {models[1]}, which did best on the test images; the others: 0" in output.getvalue()


@pytest.mark.parametrize("make", [terminal, pipe])
def test_stages_are_named_once_as_they_begin(record, make_recipe, make):
    console, output = make()
    console.on_record(record)
    run(record, 5, 6, console=console)
    run(record, 6, 7, console=console)
    record.add([Plan(None, "final", make_recipe(), 5)])
    console.on_start(record.next_trial())
    console.close()
    lines = [line.strip() for line in written(output).splitlines()]
    stages = re.findall(r"^now +(.+?) …", "\n".join(lines), re.MULTILINE)
    assert [*dict.fromkeys(stages)] == ["searching", "refitting the best recipe and the baseline for the verdict"]
    assert (make is terminal) == any(line.startswith("done     searching") for line in lines)


def test_first_proposals_are_named_with_their_studies(tmp_path, space, make_recipe):
    values = {"lr": 1e-4, "unfreeze_depth": 2, "optimizer": "adam"}
    design = Design("search", (space.base,), space, 1, proposals=(Proposal("pets-1", 7, values),))
    record = Record.create(tmp_path / "one", make_manifest(design))
    record.add(plan_first_trials(record))
    console, output = pipe()
    console.on_record(record)
    run(record, 5, 6, console=console)
    run(record, 6, 7, console=console)
    console.close()
    record.close()
    assert written(output).count("prior    first proposals: 1 from study pets-1 (trial 7)\n") == 1


def test_last_stage_is_done_before_the_result(record):
    console, output = terminal()
    console.on_record(record)
    console.on_stage("writing the report")
    console.print_result(ended(record))
    lines = [line.strip() for line in written(output).splitlines()]
    assert lines.index("done     writing the report") < lines.index(f"files    {record.directory}")


def test_findings_replace_the_lines_of_the_search(record, space):
    console, output = terminal()
    begin(console, record, space)
    run(record, 6, 9, console=console)
    output.truncate(0)
    output.seek(0)
    console.on_findings(found(record))
    console.on_stage("writing the report")
    console.close()
    seen = written(output)
    assert seen.index("done     searching") < seen.index("verdict  ") < seen.rindex("writing the report")
    assert seen.count("Best trials by validation accuracy") == 1


def test_live_lines_keep_their_words_in_40_columns(record, space):
    console, output = terminal(width=40)
    begin(console, record, space)
    run(record, 5, 6, console=console)
    plan = record.next_trial()
    console.on_start(plan)
    console.on_progress(plan, Progress(1, 30, 120, 15.0))
    console.close()
    lines = [line for line in written(output).splitlines() if str(record.directory)[:20] not in line]
    words = {word for line in lines for word in line.split()}
    assert {"validation", "searching", "trials", "ended;", "pruned,", "device", "images/s"} <= words


def test_end_of_a_search_breaks_no_words_in_80_columns(record, space):
    console, output = terminal()
    begin(console, record, space)
    run(record, 3, 3)
    run(record, 6, 9)
    output.truncate(0)
    output.seek(0)
    console.on_findings(found(record))
    console.print_result(ended(record, model=record.directory / "models" / "0"))
    lines = [line.rstrip() for line in written(output).splitlines()]
    to_paste = ("files ", "report ", "predict ", "MLflow ")
    assert max(len(line) for line in lines if not line.startswith(to_paste)) <= 80
    assert sum(line.startswith(to_paste) for line in lines) == 4


@pytest.mark.parametrize(("source", "shown"), [("digits", True), ("/pets", False)])
def test_the_end_of_a_demo_leads_to_own_images(tmp_path, source, shown):
    record = Record.create(tmp_path / "demo", make_manifest(source=source))
    console, output = pipe()
    console.on_record(record)
    console.print_result(ended(record))
    record.close()
    assert ("--search resnet18 --data FOLDER" in output.getvalue()) == shown
    assert ("no transfer learning" in output.getvalue()) == shown


def test_probes_before_a_search_have_their_own_stage(tmp_path):
    space = make_space(domains={"model": Categorical(("resnet18", "vgg11"))})
    record = Record.create(tmp_path / "two", make_manifest(Design("search", (space.base,), space, 1)))
    record.add(plan_screens(record.manifest.design, seed=0))
    console, output = pipe()
    console.on_record(record)
    for _ in range(2):
        run(record, 8, console=console)
    record.close()
    assert output.getvalue().count("now      probing the models …") == 1


def test_table_of_probes_keeps_the_ends_of_long_names(tmp_path, make_recipe):
    """Names of timm often differ at their ends only."""
    models = ["timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite1"]
    recipes = [probe_recipe(make_recipe(model=model)) for model in models]
    record = Record.create(tmp_path / "probe", make_manifest(Design("probe", tuple(recipes))))
    record.add(Plan(None, "probe", recipe, 0) for recipe in recipes)
    for _ in models:
        plan = record.next_trial()
        record.facts(plan, {**FACTS, "parameters": 3_400_000, "predict_images_per_s": 123.0})
        record.epoch(plan, epoch(1, 8))
        record.complete(plan)
    output = io.StringIO()
    console = Console("none", ticker_on(Screen(file=output, width=80)))
    console.on_record(record)
    console.on_findings(found(record))
    record.close()
    cells = [line.split("│")[1].strip() for line in output.getvalue().splitlines() if "│" in line]
    assert "".join(cells) == "".join(models)
