"""A study as a Python object: run in a program with an event loop, interrupted, resumed, and asked for its results."""

import html
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from PIL import Image
from processes import family, wait_until_gone
from support.manifests import make_manifest, make_space
from support.probes import run_probes
from support.saved_models import make_saved

import study
from study.api.predictions import predict_pictures
from study.audit import main as audit_command
from study.config.plan import Design, Plan
from study.config.search_space import Categorical, Float
from study.errors import ConfigError, DataError
from study.results.record import Record

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and Optuna

SPACE = """
model = "resnet18"
[space]
lr = { type = "float", low = 1e-4, high = 1e-2, log = true }
[fixed]
image_size = 32
batch_size = 8
epochs = 1
"""
PROGRAM = """
import asyncio, json, os, signal, sys
import numpy as np, study
before = dict(os.environ)
options = dict(weights="none", image_size=32, epochs=1)
images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
data = {"train": (images[:16], [0, 1] * 8), "test": (images[16:], [0, 1] * 4)}

async def search():  # as in a notebook's kernel, where an event loop runs
    return study.search("small.toml", data=data, trials=2, repeats=1, name="one", **options)

found = asyncio.run(search())
probed = study.probe("resnet18", data=data, name="three", weights="none", image_size=32)
print("searched", flush=True)
try:
    study.baseline("resnet18", data=data, name="two", **{**options, "epochs": 100000})
except KeyboardInterrupt as interruption:
    print("said", interruption, flush=True)
import ray
left = {key for key in os.environ.keys() | before if os.environ.get(key) != before.get(key)}
kept = signal.getsignal(signal.SIGINT) is signal.default_int_handler
rows = found.trials_dataframe()
print("facts", json.dumps({
    "ray": ray.is_initialized(), "left": sorted(left), "handler": kept, "state": study.load("two").state,
    "names": [one.name for one in study.list_studies()], "stages": [*rows.stage], "decided": bool(found.verdict),
    "lr": found.best_recipe.lr in [*rows.lr], "predicted": found.predict(images[0])[0].label,
    "report": found.report.is_file(), "html": found._repr_html_(), "inputs": len(os.listdir("mlruns/inputs")),
    "best": study.load("two").best_recipe, "probed": [*probed.ranking.model, *probed.trials_dataframe().stage],
}))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Run a search, a probe and an interrupted baseline in one program; return what it printed, and its facts."""
    room = tmp_path_factory.mktemp("program")
    (room / "small.toml").write_text(SPACE)
    environment = {**os.environ, "XDG_CACHE_HOME": str(room / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=room, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        searched, seen = False, []
        for line in process.stdout:
            seen.append(line)
            searched = searched or line == "searched\n"
            if searched and "epoch 1/" in line:
                ours = family(process.pid)
                process.send_signal(signal.SIGINT)
                searched = False
    facts = next(json.loads(line[6:]) for line in seen if line.startswith("facts "))
    assert wait_until_gone(ours, 20) == []
    return SimpleNamespace(room=room, output="".join(seen), **facts)


@pytest.mark.slow
def test_search_in_an_event_loop_has_results(program):
    assert program.stages[:2] == ["search", "search"]
    assert program.decided and program.lr and program.report
    assert program.predicted in ("0", "1")


@pytest.mark.slow
def test_study_displays_its_verdict_in_notebooks(program):
    assert "<style" in program.html and "one" in program.html


@pytest.mark.slow
def test_interrupt_leaves_the_process_as_it_was(program):
    assert (program.ray, program.left, program.handler) == (False, [], True)
    assert "said interrupted; the record is kept. To continue: study.load('two').resume()" in program.output


@pytest.mark.slow
def test_interrupted_baseline_selects_nothing_and_is_listed(program):
    assert (program.state, program.best, program.names) == ("interrupted", None, ["two", "three", "one"])


@pytest.mark.slow
def test_probe_ranks_models_without_fine_tuning(program):
    assert program.probed == ["resnet18", "probe"]


@pytest.mark.slow
def test_images_in_memory_are_written_once(program):
    assert program.inputs == 1


def test_import_loads_nothing_heavy():
    code = (
        "import sys, study; study.baseline; study.Study\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_module_offers_only_what_it_names():
    assert {*study.__all__} <= {*dir(study)}
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = study.serach


def test_mistake_is_an_exception_that_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"^trials: must be at least 1, but got 0\."):
        study.search("resnet18", data=(images, [0, 1, 0, 1]), trials=0)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def screened(tmp_path):
    """A search whose record holds the probes of its two models."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = make_space(domains={"model": Categorical(("resnet18", "vgg11"))})
    design = Design("search", (space.base,), space, 1, metric="macro_f1")
    record = Record.create(tmp_path / "mlruns" / "studies" / "pets", make_manifest(design))
    run_probes(record, 80, 90)
    record.close()
    return study.load(record.directory)


def test_dataframe_has_searched_fields_where_they_are_off(tmp_path):
    space = make_space(domains={"mixup": Categorical((0.0, 0.4)), "lr": Float(1e-5, 1.0)})
    record = Record.create(tmp_path / "one", make_manifest(space=space))
    record.add([Plan(None, "search", replace(space.base, mixup=mixup), 0) for mixup in (0.0, 0.4)])
    record.close()
    rows = study.load(record.directory).trials_dataframe()
    assert [*rows.mixup] == [0.0, 0.4]
    assert "cutmix" not in rows


def test_ranking_has_the_best_probe_first(screened):
    ranking = screened.ranking
    assert [*ranking] == ["model", "accuracy", "macro_f1", "low", "high", "seconds", "parameters", "images_per_s"]
    assert [*zip(ranking.model, ranking.accuracy, strict=True)] == [("vgg11", 0.9), ("resnet18", 0.8)]
    assert ((ranking.low < ranking.accuracy) & (ranking.accuracy < ranking.high)).all()


def test_ranking_of_a_study_without_probes_is_empty(tmp_path):
    Record.create(tmp_path / "one", make_manifest()).close()
    assert len(study.load(tmp_path / "one").ranking) == 0


def test_load_suggests_a_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "mlruns" / "studies" / "pets-1"
    directory.mkdir(parents=True)
    (directory / "journal.log").touch()
    with pytest.raises(ConfigError, match="Did you mean 'pets-1'"):
        study.load("pest-1")
    assert study.load("latest").directory == study.load(directory).directory == directory


def test_load_takes_names_and_paths_only():
    with pytest.raises(ConfigError, match=r"^name: must be a string or a path, but got None\."):
        study.load(None)


def test_resume_elsewhere_names_the_directory(tmp_path, monkeypatch):
    directory = tmp_path / "there" / "mlruns" / "studies" / "one"
    directory.mkdir(parents=True)
    (directory / "journal.log").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"one: must be resumed in {tmp_path / 'there'}")):
        study.load(directory).resume()


def test_audit_data_refuses_an_empty_name():
    with pytest.raises(ConfigError, match=r"^data: must not be empty\.$"):
        study.audit_data("")


def test_audit_data_finds_leaks_and_names_the_keyword(image_folder):
    audit = study.audit_data(image_folder)
    assert len(audit.audit.leaks) == 8
    assert "8 test images of 8 are also among the training images" in repr(audit)
    assert audit.warnings[0].endswith("leaks='drop' leaves the copies out of training")


def test_printed_audit_names_keywords_in_the_place_of_flags(image_folder):
    audit = study.audit_data(image_folder)
    for shown in (str(audit), repr(audit), html.unescape(audit._repr_html_())):
        assert "leaks='drop' leaves the copies out of training" in shown
        assert "--" not in shown


def test_audit_command_names_flags(image_folder, capsys):
    assert audit_command([str(image_folder)]) == 0
    assert "--leaks drop leaves the copies out of training" in capsys.readouterr().out


def test_predict_gives_pictures_the_answers_of_their_files(tmp_path):
    saved = make_saved(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    by_file, by_array, by_pil = predict_pictures(saved, [tmp_path / "one.png", pixels, Image.fromarray(pixels)])
    assert by_file.top == by_array.top == by_pil.top
    assert [str(one.image) for one in (by_array, by_pil)] == ["image 1", "image 2"]


def test_predict_takes_one_picture_alone(tmp_path):
    saved = make_saved(tmp_path / "model")
    (alone,) = predict_pictures(saved, np.zeros((40, 50), np.uint8))
    assert alone.label == alone.top[0][0] and alone.probability == alone.top[0][1]


def test_predict_refuses_what_is_no_picture(tmp_path):
    saved = make_saved(tmp_path / "model")
    for nothing in (None, 3):
        with pytest.raises(DataError, match=r"^images: must be paths, PIL images or arrays, but got (NoneType|int)\."):
            predict_pictures(saved, nothing)


def test_predict_names_every_unreadable_image(tmp_path):
    saved = make_saved(tmp_path / "model")
    with pytest.raises(DataError) as caught:
        predict_pictures(saved, [tmp_path / "a.png", tmp_path / "b.png"])
    assert len(str(caught.value).splitlines()) == 2
