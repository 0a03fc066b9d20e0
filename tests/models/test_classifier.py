"""Cutting classifiers, their starting weights and the images they expect."""

import hashlib
import http.server
import os
import pickle
import re
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import ResNet18_Weights, get_model, get_model_weights

from study.config.architectures import ARCHITECTURES
from study.config.recipe import DEPTHS
from study.errors import WeightsError
from study.models.classifier import Classifier, StateDict, build
from study.models.preprocessing import preprocessing
from study.models.pretrained import load_pretrained

ONE_OF_EACH = ("vgg11_bn", "resnet18", "resnext50_32x4d", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small")
"""A small one of each family, and of both kinds of block that a ResNet has."""
SMALL = "mobilenet_v3_small"
SMALL_LAST = ("classifier.3.weight", "classifier.3.bias")


def new_state(model: str) -> StateDict:
    """Make weights for 1,000 classes, like torchvision's files, with BatchNorm statistics other than 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = get_model(model).state_dict()
        for name, tensor in state.items():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return dict(state)


def backbone(model: str, state: StateDict) -> StateDict:
    return {
        name: tensor for name, tensor in state.items() if not name.startswith(ARCHITECTURES[model].last_layer + ".")
    }


def shapes(model: str) -> StateDict:
    """Make a backbone's state dict without memory for its tensors."""
    with torch.device("meta"):
        return backbone(model, get_model(model).state_dict())


@pytest.fixture(scope="module")
def resnet18() -> StateDict:
    return new_state("resnet18")


@pytest.fixture(scope="module")
def small() -> StateDict:
    return new_state(SMALL)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def train_one_step(classifier: Classifier, images: Tensor) -> None:
    classifier.set_training()
    trained = [parameter for parameter in classifier.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained)
    cross_entropy(classifier.suffix(classifier.prefix(images)), torch.arange(len(images))).backward()
    optimizer.step()


def copy_of(state: StateDict) -> StateDict:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def changed(before: StateDict, after: StateDict) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


# The cut


class Trace(TorchDispatchMode):
    """Writes down each operation with the parameters and buffers it reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
        self.calls: list[tuple[str, list[str | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), [self.names.get(id(argument)) for argument in args]))
        return func(*args, **(kwargs or {}))


def trace(
    network: nn.Module, forward: Callable[[Tensor], Tensor]
) -> tuple[list[tuple[str, list[str | None]]], torch.Size]:
    with torch.inference_mode(), Trace(network) as mode:
        logits = forward(torch.empty(2, 3, 64, 64, device="meta"))
    return mode.calls, logits.shape


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_build_cuts_every_model_at_every_depth(model: str) -> None:
    """Both parts in a row are torchvision's forward: its operations, in its order, on the same tensors.

    Frozen are the blocks before the last ones, as many as the depth leaves, and nothing of the head.
    """
    pretrained = shapes(model)
    with torch.device("meta"):
        reference = get_model(model, num_classes=7).eval()
    expected = trace(reference, reference)
    for depth in DEPTHS:
        classifier = build(model, classes=7, unfreeze_depth=depth, pretrained=pretrained, seed=0)
        blocks = tuple(f"{path}." for block in ARCHITECTURES[model].blocks[: 5 - depth] for path in block)
        for name, parameter in classifier.network.named_parameters():
            assert parameter.requires_grad != name.startswith(blocks), (depth, name)
        network = classifier.network.to("meta")
        assert trace(network, nn.Sequential(classifier.prefix, classifier.suffix)) == expected, depth
    assert expected[1] == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_build_cuts_every_backbone_into_five_blocks(model: str) -> None:
    """The last four end at 1/4, 1/8, 1/16 and 1/32 of the image's side."""
    classifier = build(model, classes=7, unfreeze_depth=0, pretrained=shapes(model), seed=0)
    features, sides = torch.empty(1, 3, 64, 64, device="meta"), []
    for block in classifier.prefix[:5]:
        features = block(features)
        sides.append(features.shape[-1])
    assert sides[1:] == [16, 8, 4, 2]


@pytest.mark.parametrize("depth", range(6))
def test_build_computes_what_torchvision_computes_at_every_depth(
    depth: int, resnet18: StateDict, images: Tensor
) -> None:
    classifier = build("resnet18", classes=10, unfreeze_depth=depth, pretrained=backbone("resnet18", resnet18), seed=0)
    reference = get_model("resnet18", num_classes=10).eval()
    reference.load_state_dict(classifier.network.state_dict())
    with torch.inference_mode():
        assert torch.equal(classifier.suffix(classifier.prefix(images)), reference(images))


@pytest.mark.parametrize(("model", "expected"), [("vgg16", 126_666_250), ("resnet18", 8_398_858)])
def test_trainable_parameters_are_the_assignments_at_depth_1(model: str, expected: int) -> None:
    assert (
        build(model, classes=10, unfreeze_depth=1, pretrained=shapes(model), seed=0).trainable_parameters() == expected
    )


def test_depth_0_of_resnet18_trains_the_last_layer_alone() -> None:
    classifier = build("resnet18", classes=10, unfreeze_depth=0, pretrained=shapes("resnet18"), seed=0)
    assert classifier.trainable_parameters() == 512 * 10 + 10


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_prefix_ends_at_the_heads_first_weights_at_depth_0(model: str) -> None:
    """Pooling is frozen work too; whatever is random in training is not, and stays behind it."""
    classifier = build(model, classes=7, unfreeze_depth=0, pretrained=shapes(model), seed=0)
    assert [*classifier.suffix[0].parameters()]
    assert not any(isinstance(module, nn.Dropout) for module in classifier.prefix[5:].modules())


def test_prefix_is_empty_at_depth_5(images: Tensor) -> None:
    classifier = build(SMALL, classes=10, unfreeze_depth=5, pretrained=shapes(SMALL), seed=0)
    assert len(classifier.prefix) == 0
    assert classifier.prefix(images) is images


def test_prefix_digest_names_the_frozen_weights_alone(small: StateDict) -> None:
    """Whatever their memory format, the trained weights and the number of classes."""
    pretrained = backbone(SMALL, small)
    digest = build(SMALL, classes=10, unfreeze_depth=2, pretrained=pretrained, seed=0).prefix_digest
    other = build(SMALL, classes=3, unfreeze_depth=2, pretrained=pretrained, seed=1)
    other.network.to(memory_format=torch.channels_last)
    assert other.prefix_digest == digest
    changed_weights = {name: tensor + 1 for name, tensor in pretrained.items()}
    assert build(SMALL, classes=10, unfreeze_depth=2, pretrained=changed_weights, seed=0).prefix_digest != digest


# Training


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_training_changes_the_suffix_alone_at_every_depth(model: str, images: Tensor) -> None:
    """Frozen parameters, and the statistics of frozen BatchNorm, are the same after a step; all others are not."""
    pretrained = backbone(model, new_state(model))
    for depth in DEPTHS:
        classifier = build(model, classes=10, unfreeze_depth=depth, pretrained=pretrained, seed=0)
        prefix, suffix = copy_of(classifier.prefix.state_dict()), copy_of(classifier.suffix.state_dict())
        train_one_step(classifier, images)
        assert changed(prefix, classifier.prefix.state_dict()) == set(), depth
        assert changed(suffix, classifier.suffix.state_dict()) == suffix.keys(), depth


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("depth", [0, 5])
def test_training_never_writes_to_the_pretrained_tensors(depth: int, small: StateDict, images: Tensor) -> None:
    """They may lie in read-only memory that other processes share."""
    arrays = {name: tensor.numpy().copy() for name, tensor in backbone(SMALL, small).items()}
    for array in arrays.values():
        array.flags.writeable = False
    pretrained = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train_one_step(build(SMALL, classes=10, unfreeze_depth=depth, pretrained=pretrained, seed=0), images)
    assert changed(pretrained, small) == set()


def test_build_shares_the_memory_of_frozen_tensors_only(small: StateDict) -> None:
    pretrained = backbone(SMALL, small)
    classifier = build(SMALL, classes=10, unfreeze_depth=2, pretrained=pretrained, seed=0)
    addresses = {tensor.data_ptr() for tensor in pretrained.values()}
    assert all(tensor.data_ptr() in addresses for tensor in classifier.prefix.state_dict().values())
    assert not any(tensor.data_ptr() in addresses for tensor in classifier.suffix.state_dict().values())


def test_set_training_keeps_the_prefix_in_evaluation_mode(small: StateDict) -> None:
    classifier = build(SMALL, classes=10, unfreeze_depth=2, pretrained=backbone(SMALL, small), seed=0)
    assert not any(module.training for module in classifier.prefix.modules())
    classifier.set_training()
    assert not any(module.training for module in classifier.prefix.modules())
    assert all(module.training for module in classifier.suffix.modules())
    classifier.set_evaluation()
    assert not any(module.training for module in classifier.suffix.modules())


# Chance


@pytest.mark.parametrize("pretrained", [True, False])
def test_build_leaves_the_global_generator_alone(pretrained: bool, small: StateDict) -> None:
    before = torch.get_rng_state()
    build(SMALL, classes=10, unfreeze_depth=1, pretrained=backbone(SMALL, small) if pretrained else None, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pretrained", [True, False])
def test_build_depends_on_the_seed_alone(pretrained: bool, small: StateDict) -> None:
    """Not on the state of the global generator, nor on the depth."""

    def weights(depth: int, seed: int) -> StateDict:
        given = backbone(SMALL, small) if pretrained else None
        return dict(build(SMALL, classes=10, unfreeze_depth=depth, pretrained=given, seed=seed).network.state_dict())

    first = weights(depth=1, seed=0)
    torch.rand(1)
    assert changed(first, weights(depth=3, seed=0)) == set()
    assert set(SMALL_LAST) & changed(first, weights(depth=1, seed=1))


def test_build_keeps_a_given_last_layer(small: StateDict) -> None:
    classifier = build(SMALL, classes=1000, unfreeze_depth=1, pretrained=small, seed=0)
    assert changed(small, classifier.network.state_dict()) == set()


# The images


def smooth_images() -> Tensor:
    noise = torch.rand(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return interpolate(noise, (32, 40), mode="bilinear").mul(255).to(torch.uint8)


@pytest.mark.parametrize(
    "model", ["vgg16", "resnet18", "resnet50", "efficientnet_b0", "efficientnet_b1", "convnext_tiny"]
)
def test_preprocessing_equals_the_weights_own_transforms_of_pil_images(model: str) -> None:
    """Within one grey level, at the size that the weights were made for."""
    images = smooth_images()
    preset = get_model_weights(model)["DEFAULT"].transforms()
    one_by_one = torch.stack([preset(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    batch = preprocessing(model, preset.crop_size[0])(images)
    grey_levels = (batch - one_by_one).abs() * 255 * torch.tensor(preset.std).view(3, 1, 1)
    assert grey_levels.max() < 1.01


def test_preprocessing_of_a_batch_equals_one_by_one() -> None:
    images, preprocess = smooth_images(), preprocessing("resnet18", 64)
    assert torch.equal(preprocess(images), torch.cat([preprocess(image[None]) for image in images]))


def test_preprocessing_scales_the_resize_with_the_image_size() -> None:
    """At 112 pixels the weights' 256 become 128, of which the crop shows the middle."""
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (images[:, :, 8:120, 8:120] / 255 - mean) / std
    torch.testing.assert_close(preprocessing("resnet18", 112)(images), expected)


def test_preprocessing_leaves_its_input_and_the_memory_format_alone() -> None:
    images = smooth_images().contiguous(memory_format=torch.channels_last)
    before = images.clone()
    preprocessed = preprocessing("resnet18", 64)(images)
    assert torch.equal(images, before)
    assert preprocessed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(preprocessed, preprocessing("resnet18", 64)(images.contiguous()))


# Weights in a file


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


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_build_initialises_any_models_head(model: str) -> None:
    """Its last layer to the same values whether or not the others are new too."""
    blocks = tuple(f"{path}." for paths in ARCHITECTURES[model].blocks for path in paths)
    whole = shapes(model)
    bare = {name: tensor for name, tensor in whole.items() if name.startswith(blocks)}
    one, other = (
        build(model, classes=3, unfreeze_depth=0, pretrained=given, seed=0).network for given in (bare, whole)
    )
    last = ARCHITECTURES[model].last_layer
    assert torch.equal(one.get_submodule(last).weight, other.get_submodule(last).weight)
    assert not any(tensor.is_meta for name, tensor in one.state_dict().items() if name not in bare)


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


def test_load_pretrained_lists_at_most_twenty_mismatches(small: StateDict, tmp_path: Path) -> None:
    message = refusal(save({f"module.{name}": tensor for name, tensor in small.items()}, tmp_path / "weights.pt"))
    assert message.count(" is missing") == 20
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


# ImageNet's weights


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
    assert f"Put {name} into {served}, or give --weights FILE, --weights none or --demo." in message


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
