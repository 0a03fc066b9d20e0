"""Predictions from the command line: every image that can be read, as the classifier was trained to see it."""

import errno
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.saved_models import CLASSES, make_saved

from study import predict
from study.api.predictions import BATCH
from study.data.image_files import read_image

ORIENTATION = 0x0112


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The model of a study named one; the command runs beside it."""
    study = tmp_path / "room" / "mlruns" / "studies" / "one"
    study.mkdir(parents=True)
    (study / "journal.log").touch()
    monkeypatch.chdir(tmp_path / "room")
    return make_saved(study / "model")


@pytest.fixture
def command(saved, capsys):
    """Run the command; return its exit code, standard output and standard error."""

    def run(*arguments, model="one"):
        with warnings.catch_warnings():
            try:
                code = predict.main([*map(str, arguments), "--model", model])
            except SystemExit as left:
                code = left.code
        return code, *capsys.readouterr()

    return run


def save(path, seed=0, size=(50, 40), **options):
    """Save a picture of coloured squares, which is what JPEG too keeps apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(path, **options)
    return path


def expected(saved, path):
    """The probabilities of an image that is read as a study reads a folder's."""
    return saved.probabilities(torch.from_numpy(read_image(path, (36, 32)))[None])[0]


def test_predict_prints_class_probability_and_the_next_two(saved, command, tmp_path):
    path = save(tmp_path / "a.png")
    code, out, err = command(path)
    best = expected(saved, path).argsort(descending=True).tolist()
    share = 100 * expected(saved, path)
    heading, line = out.splitlines()
    assert heading.split() == ["image", "class", "probability", "then"]
    assert line.split() == [
        str(path), CLASSES[best[0]], f"{share[best[0]]:.1f}", "%",
        CLASSES[best[1]], f"{share[best[1]]:.1f}", "%", "·", CLASSES[best[2]], f"{share[best[2]]:.1f}", "%",
    ]  # fmt: skip
    assert (code, err) == (0, "")


def test_predict_json_holds_the_top_three(saved, command, tmp_path):
    path = save(tmp_path / "a.png")
    code, out, _ = command(path, "--json")
    (told,) = json.loads(out)
    values, indices = expected(saved, path).topk(3)
    assert [entry["class"] for entry in told["top"]] == [CLASSES[index] for index in indices]
    assert [entry["probability"] for entry in told["top"]] == pytest.approx(values.tolist(), abs=1e-5)
    assert (told["image"], told["class"], told["probability"]) == (str(path), *told["top"][0].values())
    assert code == 0


def test_predict_takes_folders_in_order_without_hidden_files(command, tmp_path):
    folder = tmp_path / "folder"
    for name in ("b.png", "a/z.jpg", ".hidden.png"):
        save(folder / name, format="PNG")
    alone = save(tmp_path / "alone.png")
    _, out, _ = command(alone, folder, "--json")
    assert [told["image"] for told in json.loads(out)] == [str(alone), str(folder / "a/z.jpg"), str(folder / "b.png")]


def test_predict_names_each_file_left_out(command, tmp_path):
    folder = tmp_path / "folder"
    for name in ("a.png", "no ending", ".hidden.png", "@eaDir/a.png"):
        save(folder / name, format="PNG")
    (folder / "notes.txt").write_text("no image")
    os.mkfifo(folder / "pipe.jpg")
    code, out, err = command(folder, "--json")
    assert [Path(told["image"]).name for told in json.loads(out)] == ["a.png", "no ending"]
    assert err.splitlines() == [
        f"study: {folder / name}: not predicted: {reason}."
        for name, reason in [
            (".hidden.png", "hidden or system file"), ("@eaDir", "hidden or system file"),
            ("notes.txt", "no image (.txt)"), ("pipe.jpg", "pipe, socket or device"),
        ]
    ]  # fmt: skip
    assert code == 0


def test_predict_refuses_a_pipe(command, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    code, _, err = command(tmp_path / "pipe.jpg")
    assert code == 1
    assert "pipe.jpg: must be a file, but is a pipe" in err


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_predict_fits_images_as_in_training(saved, command, tmp_path, fit):
    saved = make_saved(saved.directory, fit=fit, stored_size=[32, 32])
    path = save(tmp_path / "wide.png", size=(120, 30))
    pixels = torch.from_numpy(read_image(path, (32, 32), fit))[None]
    _, out, _ = command(path, "--json")
    assert json.loads(out)[0]["probability"] == pytest.approx(saved.probabilities(pixels).max().item(), abs=1e-5)


def test_predict_scales_grey_by_the_range_of_training(saved, command, tmp_path):
    saved = make_saved(saved.directory, found={"grey_range": [1000, 3000]})
    path = tmp_path / "deep.png"
    values = np.random.default_rng(0).integers(1000, 3000, (4, 5)).astype(np.uint16)
    Image.fromarray(np.kron(values, np.ones((8, 10), np.uint16))).save(path)
    pixels = torch.from_numpy(read_image(path, (36, 32), grey_range=(1000, 3000)))[None]
    assert pixels.max() > 200
    _, out, _ = command(path, "--json")
    assert json.loads(out)[0]["probability"] == pytest.approx(saved.probabilities(pixels).max().item(), abs=1e-5)


def test_predict_classifies_each_image_as_if_alone(saved, command, tmp_path):
    paths = [save(tmp_path / f"{index}.png", seed=index) for index in range(BATCH + 2)]
    _, out, _ = command(*paths, "--json")
    told = json.loads(out)
    assert [entry["image"] for entry in told] == list(map(str, paths))
    for entry, path in zip(told, paths, strict=True):
        assert entry["probability"] == pytest.approx(expected(saved, path).max().item(), abs=1e-4)
    assert len({entry["probability"] for entry in told}) > 60


def test_predict_names_unreadable_images_predicts_the_others_and_exits_1(command, tmp_path):
    good, torn = save(tmp_path / "good.png"), save(tmp_path / "torn.png")
    torn.write_bytes(torn.read_bytes()[:60])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    code, out, err = command(torn, good, text, tmp_path / "absent.png", "--json")
    assert code == 1
    assert [told["image"] for told in json.loads(out)] == [str(good)]
    assert [line.split(": ")[1] for line in err.splitlines()] == list(map(str, (torn, text, tmp_path / "absent.png")))


def test_predict_names_an_unreadable_folder_and_predicts_the_rest(command, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    before, after = save(folder / "a" / "before.png"), save(folder / "z" / "after.png")
    save(folder / "closed" / "inside.png")
    scan = os.scandir

    def refuse_closed(path):  # root, whom no mode keeps out, runs the tests too
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_closed)
    code, out, err = command(folder, "--json")
    assert [told["image"] for told in json.loads(out)] == [str(before), str(after)]
    assert err == f"study: {folder / 'closed'}: must be readable: Permission denied.\n"
    assert code == 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_predict_prints_a_non_utf_8_name_unchanged(saved, tmp_path, options):
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / name)
    command = [sys.executable, "-m", "study.predict", str(tmp_path / name), "--model", "one", *options]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\xe9.png" in done.stdout


def test_predict_names_a_folder_without_images_and_exits_1(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = command(tmp_path / "empty", save(tmp_path / "a.png"))
    assert code == 1
    assert f"{tmp_path / 'empty'}: must hold an image, but has none" in err
    assert "a.png" in out


def test_predict_refuses_a_decompression_bomb_and_predicts_the_others(command, tmp_path, monkeypatch):
    bomb, small = save(tmp_path / "bomb.png", size=(60, 40)), save(tmp_path / "small.png", size=(30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    code, out, err = command(bomb, small)
    assert code == 1
    assert "bomb.png" in err and "decompression bomb" in err
    assert "small.png" in out


def test_predict_reads_images_as_a_study_does(saved, command, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = save(tmp_path / "turned.jpg", exif=exif)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (40, 30), (200, 0, 0, 90)).save(clear)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)).save(deep)
    _, out, _ = command(turned, clear, deep, "--json")
    for told, path in zip(json.loads(out), (turned, clear, deep), strict=True):
        assert told["probability"] == pytest.approx(expected(saved, path).max().item(), abs=1e-5)


def test_predict_tells_two_classes_of_a_model_of_two(saved, command, tmp_path):
    make_saved(saved.directory, classes=["cat", "dog"], confusion=[[1, 0], [0, 1]])
    _, out, _ = command(save(tmp_path / "a.png"), "--json")
    assert len(json.loads(out)[0]["top"]) == 2


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (["a.png"], "on", "unknown study 'on'. Did you mean 'one'?"),
        (["a.png"], "bare", "bare: must keep a model, but keeps none"),
        (["a.png", "--tracking-uri", "sqlite:///x.db"], "one", "--tracking-uri: needs a registered model"),
        (["a.png"], "models:/pets@champion", "mlflow.db: must be MLflow's database, but there is none"),
        (["a.png", "--jason"], "one", "unrecognized arguments: --jason"),
        ([], "one", "IMAGE"),
    ],
)
def test_predict_exits_2_on_a_usage_error(saved, command, arguments, model, message):
    bare = saved.directory.parent.parent / "bare"
    bare.mkdir()
    (bare / "journal.log").touch()
    code, out, err = command(*arguments, model=model)
    assert (code, out) == (2, "")
    assert message in err


def test_predict_exits_1_on_a_model_that_cannot_be_read(saved, command, tmp_path):
    (saved.directory / "model.safetensors").write_bytes(b"\x80\x04.")
    code, out, err = command(save(tmp_path / "a.png"))
    assert (code, out) == (1, "")
    assert "model.safetensors: must hold a state dict" in err


def test_documented_request_reads_files_as_predict_does(saved, tmp_path):
    make_saved(saved.directory, fit="pad", stored_size=[32, 32], found={"grey_range": [1000, 3000]})
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"python -c '(import json, pathlib.*?)' > request.json", page, re.DOTALL)
    deep = np.random.default_rng(0).integers(1000, 3000, (40, 50)).astype(np.uint16)
    clear = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8))
    for image in (Image.fromarray(deep), clear):
        image.save("photo.png")
        command = [sys.executable, "-c", code.replace("studies/try", "studies/one").replace("photo.jpg", "photo.png")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (sent,) = json.loads(done.stdout)["inputs"]
        read = read_image(Path("photo.png"), (32, 32), "pad", (1000, 3000))
        assert np.array_equal(np.array(sent, np.uint8).transpose(2, 0, 1), read)
