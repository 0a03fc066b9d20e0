"""Kept classifiers in MLflow's registry: which is champion, what is served, and what comes back."""

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import unicodedata
import urllib.request
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from support.saved_models import CLASSES, make_card, make_saved

from study import predict
from study.data.image_files import read_image
from study.errors import ConfigError, TrackingError
from study.models.saved_model import load_model
from study.tracking.client import connect, existing_store, local_uri
from study.tracking.registry import download_model, log_model, registered_name

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, SQLAlchemy and what they import

EXAMPLE = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 36), dtype=np.uint8)
NAME = "pets-mobilenet_v3_small"


@pytest.fixture(scope="module")
def one_model(tmp_path_factory):
    """A store with one registered model, made once: migrations and the export take seconds."""
    folder = tmp_path_factory.mktemp("one")
    client = connect(local_uri(folder), verbose=False)
    saved = make_saved(folder / "model")
    registration = log_model(client, new_run(client, folder), saved, EXAMPLE)
    return folder, saved, registration


@pytest.fixture
def store(one_model, tmp_path):
    """A copy of that store, to register more in."""
    folder, _, _ = one_model
    return Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True))


def new_run(client, folder):
    experiment = client.create_experiment("pets", (folder / "artifacts").as_uri())
    return client.create_run(experiment).info.run_id


def register(store, **changes):
    client = connect(local_uri(store), verbose=False)
    run = client.search_runs([client.get_experiment_by_name("pets").experiment_id])[0].info.run_id
    return log_model(client, run, make_saved(store / "model", **changes), EXAMPLE), client


def pixels(count):
    """Coloured squares, (count, 3, 32, 36), which the classifier tells apart."""
    squares = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(squares, (32, 36)).to(torch.uint8)


@pytest.mark.slow
def test_data_set_of_other_classes_gets_another_name(store):
    registration, _ = register(store, study="two", uid="v" * 32, classes=["ant", "bee", "wasp"])
    assert registration.name.startswith(f"{NAME}-")
    again, _ = register(store, study="three", uid="w" * 32, classes=["ant", "bee", "wasp"])
    assert (again.name, again.version) == (registration.name, "2")


@pytest.mark.slow
def test_other_images_of_equal_classes_get_another_name(store):
    elsewhere, _ = register(store, study="two", uid="v" * 32, source="/other/pets", data_fingerprint="e" * 16)
    assert elsewhere.name.startswith(f"{NAME}-")


@pytest.mark.slow
def test_moved_or_grown_data_set_keeps_its_name(store):
    moved, _ = register(store, study="two", uid="v" * 32, source="/other/pets")
    grown, _ = register(store, study="three", uid="w" * 32, data_fingerprint="e" * 16)
    assert (moved.name, moved.version, grown.name, grown.version) == (NAME, "2", NAME, "3")


def test_renamed_study_is_not_registered_again(store):
    registration, _ = register(store, study="renamed")
    assert (registration.name, registration.version) == (NAME, "1")


def test_full_temporary_directory_is_named(store, small_disk, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(TrackingError, match=rf"temporary directory {small_disk} must have \d+ MB free, but has 0\."):
        register(store, study="two", uid="v" * 32)


@pytest.mark.slow
def test_the_first_model_of_its_name_becomes_champion(one_model):
    folder, saved, registration = one_model
    assert (registration.name, registration.version, registration.champion) == (NAME, "1", True)
    version = connect(local_uri(folder), verbose=False).get_model_version_by_alias(NAME, "champion")
    assert version.tags["study.test_fingerprint"] == saved.card.test_fingerprint
    assert float(version.tags["study.test_accuracy"]) == saved.card.test_accuracy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "champion", "note"),
    [
        (
            {"confusion": [[4, 0, 0], [0, 4, 0], [0, 0, 4]]},
            True,
            "beats version 1: test accuracy 100.00% against 83.33%",
        ),
        (
            {"confusion": [[3, 1, 0], [0, 4, 0], [1, 0, 3]]},
            False,
            "version 1 stays champion: test accuracy 83.33% against 83.33%",
        ),
        (
            {"confusion": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], "test_fingerprint": "o" * 16},
            False,
            "version 1 stays champion: it was tested on other images",
        ),
        (
            {"confusion": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], "metric": "macro_f1"},
            False,
            "version 1 stays champion: accuracy decided its study, not macro F1",
        ),
        (
            {"confusion": [[4, 0, 0], [4, 0, 0], [4, 0, 0]]},
            False,
            "not champion: it has learnt nothing, since every image is predicted as cat",
        ),
    ],
)
def test_champion_changes_only_for_a_better_model(store, changes, champion, note):
    registration, client = register(store, uid="another", **changes)
    assert registration.champion is champion
    assert note in registration.note
    holder = client.get_registered_model(NAME).aliases["champion"]
    assert (registration.version, str(holder)) == ("2", "2" if champion else "1")


@pytest.mark.slow
def test_first_model_is_no_champion_if_it_has_learnt_nothing(store):
    registration, client = register(store, uid="another", data="birds", confusion=[[4, 0, 0]] * 3)
    assert (registration.version, registration.champion) == ("1", False)
    assert client.get_registered_model("birds-mobilenet_v3_small").aliases == {}


@pytest.mark.slow
def test_champion_of_a_log_loss_has_the_lower_one(store):
    losses = {"data": "birds", "metric": "log_loss"}
    notes = [register(store, uid=str(loss), test_loss=loss, **losses)[0].note for loss in (0.5, 0.4, 0.6)]
    assert notes[1:] == [
        "beats version 1: test log loss 0.4000 against 0.5000 on the same images",
        "version 2 stays champion: test log loss 0.6000 against 0.4000 on the same images",
    ]


def test_a_model_that_was_registered_before_is_not_registered_again(store):
    registration, client = register(store)
    assert (registration.version, registration.champion) == ("1", True)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


def test_model_without_a_version_is_replaced(store):
    client = connect(local_uri(store), verbose=False)
    (logged,) = search_models(client)
    client.delete_model_version(NAME, "1")
    registration, _ = register(store)
    assert registration.version == "2"
    (replaced,) = search_models(client)
    assert replaced.model_id != logged.model_id


def search_models(client):
    return client.search_logged_models([client.get_experiment_by_name("pets").experiment_id])


def test_a_champion_that_no_study_made_stays(store):
    client = connect(local_uri(store), verbose=False)
    version = client.get_model_version(NAME, "1")
    for tag in list(version.tags):
        client.delete_model_version_tag(NAME, "1", tag)
    registration, _ = register(store, uid="another")
    assert (registration.version, registration.champion) == ("2", False)


def test_model_of_another_network_has_another_name():
    name = registered_name(make_card(model="resnet18", data="my pets: 2/3 @home"))
    assert re.fullmatch(r"my-pets-2-3-home-[0-9a-f]{8}-resnet18", name)


def test_data_sets_in_any_script_have_different_names():
    names = [registered_name(make_card(data=data)) for data in ("猫と犬", "鳥と魚", "кошки", "my pets", "my-pets")]
    assert len({*names}) == 5
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names)


def test_unicode_forms_of_a_name_are_one():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert registered_name(make_card(data=composed)) == registered_name(make_card(data=decomposed))


def test_the_run_and_the_model_lead_to_each_other(one_model):
    folder, _, registration = one_model
    client = connect(local_uri(folder), verbose=False)
    version = client.get_model_version(NAME, registration.version)
    run = client.get_run(version.run_id)
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == "READY"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": version.version}]
    assert model.params["unfreeze_depth"] == "1"


def model_directory(folder):
    """Where the artifacts of the first version lie."""
    location = connect(local_uri(folder), verbose=False).get_model_version_download_uri(NAME, "1")
    return Path(location.removeprefix("file://"))


@pytest.mark.parametrize("images", [1, 5])
def test_logged_model_answers_as_the_kept_one(one_model, monkeypatch, images):
    folder, saved, _ = one_model
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    served = mlflow.pyfunc.load_model(str(model_directory(folder)))
    answer = served.predict(pixels(images).permute(0, 2, 3, 1).numpy())
    assert np.allclose(answer, saved.probabilities(pixels(images)).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["timm/resnet10t.c3_in1k", "timm/test_vit.r160_in1k"])
def test_logged_network_of_timm_answers_as_the_kept_one(store, model):
    registration, client = register(store, model=model, uid="v" * 32)
    assert registration.name == f"pets-{model.replace('/', '-')}"
    saved = load_model(store / "model")
    location = client.get_model_version_download_uri(registration.name, registration.version)
    answer = mlflow.pyfunc.load_model(location).predict(pixels(5).permute(0, 2, 3, 1).numpy())
    assert np.allclose(answer, saved.probabilities(pixels(5)).numpy(), atol=1e-5)


def test_the_logged_model_refuses_images_of_another_size(one_model):
    folder, _, _ = one_model
    served = mlflow.pyfunc.load_model(str(model_directory(folder)))
    with pytest.raises(mlflow.MlflowException, match="32, 36, 3"):
        served.predict(np.zeros((1, 40, 40, 3), np.uint8))


def test_the_logged_model_says_what_it_takes_and_tells_apart(one_model):
    folder, _, _ = one_model
    described = mlflow.models.Model.load(model_directory(folder))
    assert described.signature.inputs.inputs[0].shape == (-1, 32, 36, 3)
    assert described.signature.inputs.inputs[0].type == np.uint8
    assert described.metadata == {"classes": CLASSES}
    assert described.load_input_example(model_directory(folder)).shape == (2, 32, 36, 3)


def test_the_logged_model_holds_weights_card_and_no_pickled_code(one_model):
    folder, saved, _ = one_model
    directory = model_directory(folder)
    for file in ("model.safetensors", "model.json"):
        assert (directory / file).read_bytes() == (saved.directory / file).read_bytes()
    assert {path.suffix for path in directory.rglob("*")} & {".pth", ".pkl", ".pickle", ".py"} == set()
    assert zipfile.is_zipfile(directory / "data" / "model.pt2")


@pytest.mark.parametrize("reference", [f"models:/{NAME}@champion", f"models:/{NAME}/1"])
def test_download_model_brings_what_was_kept(one_model, tmp_path, reference):
    folder, saved, _ = one_model
    download_model(reference, local_uri(folder), tmp_path)
    assert load_model(tmp_path).card == saved.card
    assert torch.equal(load_model(tmp_path).probabilities(pixels(3)), saved.probabilities(pixels(3)))


def test_download_model_never_reads_mlflows_own_files(one_model, tmp_path):
    folder, _, _ = one_model
    graph = model_directory(folder) / "data" / "model.pt2"
    content = graph.read_bytes()
    try:
        graph.write_bytes(pickle.dumps(os.mkdir))
        download_model(f"models:/{NAME}@champion", local_uri(folder), tmp_path)
    finally:
        graph.write_bytes(content)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/pets-mobilenet_v3_smal@champion", f"unknown registered model .* Did you mean '{NAME}'"),
        (f"models:/{NAME}@champ", "unknown alias 'champ'. Did you mean 'champion'"),
        (f"models:/{NAME}/7", "unknown version '7'.* Known: 1"),
        (f"models:/{NAME}", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_download_model_suggests_what_there_is(one_model, tmp_path, reference, message):
    folder, _, _ = one_model
    with pytest.raises(ConfigError, match=f"--model: {message}"):
        download_model(reference, local_uri(folder), tmp_path)


def test_download_model_finds_a_model_behind_a_page_of_others(one_model, store, tmp_path):
    client = connect(local_uri(store), verbose=False)
    for number in range(100):
        client.create_registered_model(f"a{number}")
    download_model(f"models:/{NAME}@champion", local_uri(store), tmp_path)
    assert load_model(tmp_path).card == one_model[1].card


def test_download_model_names_a_model_that_no_study_made(store, tmp_path):
    client = connect(local_uri(store), verbose=False)
    client.create_registered_model("theirs")
    (store / "theirs").mkdir()
    client.create_model_version("theirs", (store / "theirs").as_uri())
    with pytest.raises(TrackingError, match=r"models:/theirs/1: must hold model.safetensors and model.json"):
        download_model("models:/theirs/1", local_uri(store), tmp_path)


def test_log_model_tells_why_mlflow_does_not_take_it(store):
    client = connect(local_uri(store), verbose=False)
    with pytest.raises(TrackingError, match=f"{NAME}: must be registered with MLflow, but got: .*no-such-run"):
        log_model(client, "no-such-run", make_saved(store / "model", uid="another"), EXAMPLE)


def test_existing_store_creates_none(tmp_path):
    with pytest.raises(ConfigError, match=r"mlflow\.db: must be MLflow's database, but there is none"):
        existing_store(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def server(command, log, **environment):
    """Run one of MLflow's servers on a free port of this machine until it answers; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    with open(log, "wb") as output:
        process = subprocess.Popen(
            arguments, cwd=log.parent, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


@pytest.mark.slow
def test_served_model_answers_as_predict_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    backend = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/files"]
    with server(["server", "--workers", "1", *backend], tmp_path / "server.log") as uri:
        client = connect(uri, verbose=False)
        run = client.create_run(client.create_experiment("pets")).info.run_id
        registration = log_model(client, run, make_saved(tmp_path / "model"), EXAMPLE)
        assert registration.champion
        reference = f"models:/{NAME}@champion"

        images = [tmp_path / f"{index}.png" for index in range(12)]
        for path, image in zip(images, pixels(12), strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        assert predict.main([*map(str, images), "--model", reference, "--tracking-uri", uri, "--json"]) == 0
        predicted = [told["class"] for told in json.loads(capsys.readouterr().out)]
        assert len(set(predicted)) > 1

        serve = ["models", "serve", "--model-uri", reference, "--env-manager", "local"]
        environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
        with server(serve, tmp_path / "serve.log", **environment) as address:
            read = np.stack([read_image(path, (36, 32)).transpose(1, 2, 0) for path in images])
            request = urllib.request.Request(
                f"{address}/invocations",
                json.dumps({"inputs": read.tolist()}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                probabilities = json.load(response)["predictions"]
    assert [CLASSES[int(np.argmax(row))] for row in probabilities] == predicted
