"""A file of either library gives the same outputs in the other library's network, or is refused."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from study.config.catalogue import catalogue
from study.errors import WeightsError
from study.models.classifier import build
from study.models.pretrained import load_pretrained
from study.models.state_dict import StateDict
from study.networks.libraries import build_network
from study.networks.twins import TWINS

SAME_NAMES = ("resnet18", "timm/resnet18")
FAST = (SAME_NAMES, ("mobilenet_v2", "timm/mobilenetv2_100"))
CLASSES = 7


def scramble(network: nn.Module, images: Tensor) -> StateDict:
    """Give each tensor values of its own, so that no two can be exchanged unseen, and norms the images' statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim != 4:
                tensor += torch.rand(tensor.shape, generator=generator) / (50 if tensor.ndim == 2 else 5)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.train().momentum = 1.0
        network(images)
        for norm in norms:
            norm.eval()
    return dict(network.state_dict())


def check_outputs(model: str, twin: str, file: Path) -> str:
    """Load a file of the twin into the model: both give the same logits."""
    side = 64 if catalogue()[model].allows(64) and catalogue()[twin].allows(64) else catalogue()[model].size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    theirs = build_network(twin, CLASSES).eval()
    safetensors.torch.save_file(scramble(theirs, images), file)
    pretrained = load_pretrained(model, str(file), classes=CLASSES)
    ours = build(model, classes=CLASSES, unfreeze_depth=0, pretrained=pretrained.state, seed=0).network
    with torch.inference_mode():
        expected, outputs = theirs.double()(images.double()), ours.double()(images.double())
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.std(), "the outputs do not show the images"
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    return pretrained.note


@pytest.mark.parametrize("pair", [*FAST, *(pair[::-1] for pair in FAST)], ids=lambda pair: pair[0])
def test_file_of_the_other_library_computes_the_same(pair: tuple[str, str], tmp_path: Path) -> None:
    note = check_outputs(*pair, tmp_path / "weights.safetensors")
    assert ("the same network" in note) == (SAME_NAMES[0] not in pair)


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(TWINS.keys() - dict(FAST).keys()))
def test_file_of_every_twin_computes_the_same(model: str, tmp_path: Path) -> None:
    check_outputs(model, TWINS[model], tmp_path / "weights.safetensors")
    check_outputs(TWINS[model], model, tmp_path / "weights.safetensors")


def test_file_of_a_twin_may_lack_its_last_layer(tmp_path: Path) -> None:
    state = build_network("timm/mobilenetv2_100", 3).state_dict()
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    safetensors.torch.save_file(backbone, tmp_path / "weights.safetensors")
    pretrained = load_pretrained("mobilenet_v2", str(tmp_path / "weights.safetensors"), classes=10)
    assert "last layer classifier.1 is new (10 outputs; the file has none)" in pretrained.note


def test_file_of_equal_shapes_is_refused_where_networks_differ(tmp_path: Path) -> None:
    """MobileNetV3 has the same shapes in both libraries, in the same order, but another epsilon in its norms."""
    state = build_network("timm/mobilenetv3_small_100", 10).state_dict()
    safetensors.torch.save_file(dict(state), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="must hold weights of mobilenet_v3_small, but"):
        load_pretrained("mobilenet_v3_small", str(tmp_path / "weights.safetensors"), classes=10)
