"""Weights from files and downloads are loaded whole, or refused in one sentence."""

import hashlib
import http.server
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from support.weights import SMALL, SMALL_LAST, backbone, changed, copy_of, new_state, train_one_step
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from study.errors import WeightsError
from study.models.classifier import build
from study.models.preprocessing import preprocessing
from study.models.pretrained import load_pretrained
from study.models.state_dict import StateDict
from study.networks.libraries import build_network


def save(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def refusal(weights: str, model: str = SMALL) -> str:
    with pytest.raises(WeightsError) as caught:
        load_pretrained(model, weights, classes=10)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_load_pretrained_none_is_no_state() -> None:
    pretrained = load_pretrained(SMALL, "none", classes=10)
    assert pretrained.state is None
    assert pretrained.digest == "none"


def test_load_pretrained_reads_every_format_alike(small: StateDict, tmp_path: Path) -> None:
    torch.save(small, tmp_path / "new.pt")
    torch.save(small, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(small, tmp_path / "new.safetensors")
    loaded = [load_pretrained(SMALL, str(path), classes=10) for path in sorted(tmp_path.iterdir())]
    assert len({pretrained.digest for pretrained in loaded}) == 1
    assert re.fullmatch("[0-9a-f]{16}", loaded[0].digest)
    for pretrained in loaded:
        assert pretrained.state is not None
        assert pretrained.state.keys() == backbone(SMALL, small).keys()
        assert changed(pretrained.state, small) == set()


def test_load_pretrained_digest_tells_other_weights_apart(small: StateDict, tmp_path: Path) -> None:
    before = load_pretrained(SMALL, save(small, tmp_path / "a.pt"), classes=10)
    other = copy_of(small)
    other["features.0.0.weight"][0, 0, 0, 0] += 1
    assert load_pretrained(SMALL, save(other, tmp_path / "b.pt"), classes=10).digest != before.digest


def test_load_pretrained_tensors_export_to_numpy_without_a_copy(small: StateDict, tmp_path: Path) -> None:
    """Half-precision, channels-last or still trainable ones too."""
    odd = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in small.items()}
    odd["features.0.0.weight"] = nn.Parameter(odd["features.0.0.weight"].contiguous(memory_format=torch.channels_last))
    state = load_pretrained(SMALL, save(odd, tmp_path / "odd.pt"), classes=10).state
    assert state is not None
    for tensor in state.values():
        array = tensor.numpy()
        assert array.dtype in (np.float32, np.int64)
        assert array.flags.c_contiguous
        assert array.__array_interface__["data"][0] == tensor.data_ptr()


def test_load_pretrained_keeps_a_fitting_last_layer(small: StateDict, tmp_path: Path) -> None:
    pretrained = load_pretrained(SMALL, save(small, tmp_path / "weights.pt"), classes=1000)
    assert pretrained.state is not None
    assert pretrained.state.keys() == small.keys()
    assert pretrained.note == "last layer classifier.3 is the file's own (1000 outputs)"


def test_load_pretrained_drops_a_files_last_layer_of_other_classes(small: StateDict, tmp_path: Path) -> None:
    pretrained = load_pretrained(SMALL, save(small, tmp_path / "weights.pt"), classes=10)
    assert pretrained.state is not None
    assert not set(SMALL_LAST) & pretrained.state.keys()
    assert pretrained.note == "last layer classifier.3 is new (10 outputs; the file has 1000)"


def test_load_pretrained_accepts_a_file_without_a_last_layer(small: StateDict, tmp_path: Path) -> None:
    pretrained = load_pretrained(SMALL, save(backbone(SMALL, small), tmp_path / "weights.pt"), classes=10)
    assert pretrained.note == "last layer classifier.3 is new (10 outputs; the file has none)"


@pytest.fixture(scope="module")
def vgg16() -> StateDict:
    """VGG16's convolutions alone."""
    return {name: tensor for name, tensor in new_state("vgg16").items() if name.startswith("features.")}


def test_load_pretrained_accepts_a_backbone_alone(vgg16: StateDict, tmp_path: Path) -> None:
    pretrained = load_pretrained("vgg16", save(vgg16, tmp_path / "weights.pt"), classes=10)
    assert pretrained.note == (
        "last layer classifier.6 is new (10 outputs; the file has none); also new, since the file has no weights of"
        " that shape: classifier.3, classifier.0"
    )
    classifier = build("vgg16", classes=10, unfreeze_depth=0, pretrained=pretrained.state, seed=0)
    assert changed(vgg16, classifier.network.state_dict()) == set()
    fresh = classifier.network.get_submodule("classifier.0").weight
    assert 0 < fresh.std().item() < 0.1


@pytest.mark.parametrize("damage", ["missing", "differently shaped"])
def test_load_pretrained_replaces_a_head_layer_as_a_whole(damage: str, small: StateDict, tmp_path: Path) -> None:
    """A new weight beside an old bias would be neither of both."""
    state = copy_of(small)
    del state["classifier.0.weight"]
    if damage == "differently shaped":
        state["classifier.0.weight"] = torch.zeros(7, 5)
    pretrained = load_pretrained(SMALL, save(state, tmp_path / "weights.pt"), classes=1000)
    assert pretrained.state is not None
    assert small.keys() - pretrained.state.keys() == {"classifier.0.weight", "classifier.0.bias"}
    assert pretrained.note == (
        "last layer classifier.3 is the file's own (1000 outputs); also new, since the file has no weights of that"
        " shape: classifier.0"
    )
    build(SMALL, classes=1000, unfreeze_depth=0, pretrained=pretrained.state, seed=0)


def test_load_pretrained_completes_missing_batch_counters(small: StateDict, tmp_path: Path, images: Tensor) -> None:
    old = {name: tensor for name, tensor in small.items() if not name.endswith("num_batches_tracked")}
    state = load_pretrained(SMALL, save(old, tmp_path / "old.pt"), classes=10).state
    train_one_step(build(SMALL, classes=10, unfreeze_depth=5, pretrained=state, seed=0), images)


class Hostile:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("new_format", [True, False])
def test_load_pretrained_refuses_a_file_that_would_run_code(new_format: bool, small: StateDict, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = {**small, "features.0.0.weight": Hostile(marker)}
    torch.save(hostile, tmp_path / "hostile.pt", _use_new_zipfile_serialization=new_format)
    assert re.search(r"would run code \(\w+\.system\), which is refused", refusal(str(tmp_path / "hostile.pt")))
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_load_pretrained_runs_no_code_of_a_bare_pickle(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile(marker), protocol=protocol))
    assert re.search("refused|No code in it was run", refusal(str(tmp_path / "hostile.pt")))
    assert not marker.exists()


def test_load_pretrained_refuses_a_pickled_model(tmp_path: Path) -> None:
    assert re.search(r"run code .*Save model\.state_dict\(\)", refusal(save(nn.Linear(2, 2), tmp_path / "model.pt")))


def test_load_pretrained_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "no.pt")) == f"{tmp_path / 'no.pt'}: must be a file of weights, but there is none."
    assert refusal("/dev/null") == "/dev/null: must be a file of weights, but is no regular file."


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world" * 100, b"<html>not found</html>", b"PK\x03\x04" + bytes(99)])
def test_load_pretrained_refuses_garbage(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    assert "something else or damaged" in refusal(str(path))


@pytest.mark.parametrize("name", ["new.pt", "old.pth", "new.safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_load_pretrained_refuses_a_truncated_file(name: str, kept: float, small: StateDict, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert "something else or damaged" in refusal(str(path))


@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: list(state.values())])
def test_load_pretrained_refuses_what_is_no_state_dict(
    wrap: Callable[[StateDict], object], small: StateDict, tmp_path: Path
) -> None:
    assert "must hold a state dict alone" in refusal(save(wrap(small), tmp_path / "wrapped.pt"))


def test_load_pretrained_recognises_weights_of_another_model(small: StateDict, tmp_path: Path) -> None:
    message = refusal(save(small, tmp_path / "weights.pt"), model="resnet18")
    assert "must hold weights of resnet18" in message
    assert message.endswith(f"It looks like weights of another model, {SMALL}.")


def test_load_pretrained_lists_at_most_three_mismatches(small: StateDict, tmp_path: Path) -> None:
    message = refusal(save({f"module.{name}": tensor for name, tensor in small.items()}, tmp_path / "weights.pt"))
    assert message.count(" is missing") == 3
    assert re.search(r"and \d+ more\. Is it of another model\?$", message)


def test_load_pretrained_names_each_mismatch(small: StateDict, tmp_path: Path) -> None:
    """Missing and unknown tensors, and ones of the wrong shape."""
    state = {**small, "features.0.0.weight": torch.zeros(2, 2), "extra": torch.zeros(1)}
    del state["features.0.1.bias"]
    message = refusal(save(state, tmp_path / "weights.pt"))
    assert (
        "features.0.0.weight is (2, 2) instead of (16, 3, 3, 3), features.0.1.bias is missing, extra is unknown"
        in message
    )


@pytest.fixture
def served(resnet18: StateDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve resnet18's default weights on this machine; yields the directory they are to be stored in."""
    path = tmp_path / "site" / "resnet18.pth"
    path.parent.mkdir()
    torch.save(resnet18, path)
    path = path.rename(path.with_name(f"resnet18-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(path.parent))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", url)
        yield tmp_path / "home" / "hub" / "checkpoints"
        server.shutdown()
        thread.join()


def served_file(tmp_path: Path) -> Path:
    return next((tmp_path / "site").iterdir())


def test_load_pretrained_downloads_imagenet_weights_once(served: Path, resnet18: StateDict, tmp_path: Path) -> None:
    pretrained = load_pretrained("resnet18", "imagenet", classes=10)
    assert pretrained.state is not None
    assert changed(pretrained.state, resnet18) == set()
    assert pretrained.note == "last layer fc is new (10 outputs; the file has 1000)"
    served_file(tmp_path).unlink()
    assert load_pretrained("resnet18", "imagenet", classes=10).digest == pretrained.digest


@pytest.mark.usefixtures("served")
def test_load_pretrained_always_replaces_imagenets_last_layer() -> None:
    pretrained = load_pretrained("resnet18", "imagenet", classes=1000)
    assert pretrained.state is not None
    assert "fc.weight" not in pretrained.state


def test_load_pretrained_refuses_a_download_of_the_wrong_hash(served: Path, tmp_path: Path) -> None:
    with served_file(tmp_path).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    assert "invalid hash value" in refusal("imagenet", "resnet18")
    assert list(served.iterdir()) == []


def test_load_pretrained_tells_how_to_do_without_a_network(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        name = served_file(tmp_path).name
        monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", f"http://127.0.0.1:{bound.getsockname()[1]}/{name}")
        message = refusal("imagenet", "resnet18")
    assert "refused" in message
    assert f"Put {name} into {served}, or give --weights FILE, --weights DIR, --weights none or --demo." in message


def test_load_pretrained_names_a_damaged_download(served: Path, tmp_path: Path) -> None:
    served.mkdir(parents=True)
    path = served / served_file(tmp_path).name
    path.write_bytes(served_file(tmp_path).read_bytes()[:1000])
    assert (
        refusal("imagenet", "resnet18") == f"{path}: must hold weights, but is damaged. Delete it to download it again."
    )


def test_load_pretrained_gives_a_silent_server_up(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the process's own timeout as it was."""
    monkeypatch.setattr("study.models.pretrained.DOWNLOAD_TIMEOUT_S", 0.1)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/resnet18-00000000.pth"
        monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", url)
        assert "timed out" in refusal("imagenet", "resnet18")
    assert socket.getdefaulttimeout() == before
    assert list(served.iterdir()) == []


@pytest.mark.parametrize("name", ["resnet10t.c3_in1k.safetensors", "resnet10t.pth"])
def test_load_pretrained_finds_a_models_file_in_a_directory(name: str, tmp_path: Path) -> None:
    """The tag that names timm's weights may be missing."""
    state = dict(build_network("timm/resnet10t", 10).state_dict())
    if name.endswith(".pth"):
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    found = load_pretrained("timm/resnet10t.c3_in1k", str(tmp_path), classes=10).state
    assert found is not None
    assert changed(state, found) == set()


def test_load_pretrained_names_the_files_that_a_directory_lacks(tmp_path: Path) -> None:
    assert refusal(str(tmp_path), "timm/resnet10t.c3_in1k") == (
        f"{tmp_path}: must hold resnet10t.c3_in1k.safetensors or resnet10t.c3_in1k.pth or resnet10t.safetensors or"
        " resnet10t.pth, but has no such file."
    )


HUB = "timm/test_vit"
TOKEN = "hf_secret_of_a_person"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve one repository like the Hugging Face hub; yields the address, and the requests with their tokens."""
    content = safetensors.torch.save(dict(build_network(HUB, 1000).state_dict()))
    requests: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path == f"/{HUB}.r160_in1k/resolve/main/model.safetensors"
            requests.append((f"{self.command} {self.path}", self.headers["Authorization"]))
            self.send_response(200 if known else 404)
            if known:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) if known else 0))
            self.end_headers()
            if known and self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


def load_from_hub(address: str, tmp_path: Path) -> str:
    """Load the hub's weights in a process of its own, whose variables the hub's library reads; return all it prints."""
    code = f"""
from study.errors import WeightsError
from study.models.pretrained import load_pretrained
try:
    print("note:", load_pretrained("{HUB}", "imagenet", classes=10).note)
except WeightsError as error:
    print("error:", error)
"""
    own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_load_pretrained_downloads_from_the_hub_once(
    hub: tuple[str, list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    """With the person's token, which is printed nowhere; the second process needs no hub."""
    address, requests = hub
    first = load_from_hub(address, tmp_path)
    assert "note: last layer head is new (10 outputs; the file has 1000)" in first
    assert (f"GET /{HUB}.r160_in1k/resolve/main/model.safetensors", f"Bearer {TOKEN}") in requests
    second = load_from_hub("http://127.0.0.1:9", tmp_path)
    assert "note: last layer head is new (10 outputs; the file has 1000)" in second
    assert "Retrying" not in second
    assert TOKEN not in first + second


@pytest.mark.slow
def test_load_pretrained_tells_at_once_that_no_hub_answers(tmp_path: Path) -> None:
    """In one line, without the lines of retries; the token is not shown."""
    printed = load_from_hub("http://127.0.0.1:9", tmp_path)
    assert printed.startswith(
        f"error: {HUB}: weights must be downloaded once, but got '[Errno 111] Connection refused'"
    )
    assert printed.count("\n") == 1
    assert TOKEN not in printed


SHARED = Path(__file__).parents[3] / "shared"
"""Real ImageNet weights and photos that may lie beside the checkout."""


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="no real ImageNet weights in ../shared/weights")
def test_load_pretrained_real_weights_tell_photos_apart() -> None:
    """Features of 50 photos place 50 others by the nearest mean of a class; an untrained network's do not."""
    model = "timm/tf_efficientnet_lite0"
    file = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"
    pretrained = load_pretrained(model, str(file), classes=1000)
    assert pretrained.state is not None
    build_network(model, 1000).load_state_dict(pretrained.state, strict=True)
    directories = sorted((SHARED / "cifar10-tenth" / "train").iterdir())
    files = [file for directory in directories for file in sorted(directory.iterdir())[:10]]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    inputs = preprocessing(model, 128)(pixels)

    def accuracy(state: StateDict | None) -> float:
        prefix = build(model, classes=1000, unfreeze_depth=0, pretrained=state, seed=0).prefix
        with torch.inference_mode():
            features = nn.functional.normalize(torch.cat([prefix(part) for part in inputs.split(25)])).unflatten(
                0, (10, 10)
            )
        means = features[:, :5].mean(1)
        nearest = torch.cdist(features[:, 5:].flatten(0, 1), means).argmin(1)
        return float((nearest == torch.arange(10).repeat_interleave(5)).float().mean())

    assert accuracy(pretrained.state) >= 0.5
    assert accuracy(None) <= 0.35
