"""Networks of many families, cut along their graphs, compute and train as they do uncut."""

import copy

import pytest
import torch
from support.weights import changed, copy_of, train_one_step
from torch import Tensor, nn

from study.config.catalogue import catalogue
from study.errors import WeightsError
from study.models.classifier import Classifier, build
from study.networks.cut import Segment, trace
from study.networks.libraries import thin_functions

FAST = ("timm/resnet10t", "timm/test_vit", "timm/test_efficientnet")
NETWORKS = (
    *FAST,
    "alexnet", "densenet121", "efficientnet_v2_s", "googlenet", "mnasnet0_5", "mobilenet_v2", "regnet_y_400mf",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vit_b_32",
    "timm/test_byobnet", "timm/test_convnext", "timm/test_mambaout", "timm/test_nfnet", "timm/test_resnet",
    "timm/beit_base_patch16_224", "timm/caformer_s18", "timm/convnextv2_atto", "timm/deit_tiny_distilled_patch16_224",
    "timm/densenet121", "timm/edgenext_xx_small", "timm/efficientformerv2_s0", "timm/eva02_tiny_patch14_224",
    "timm/fastvit_t8", "timm/ghostnet_100", "timm/hiera_tiny_224", "timm/inception_next_atto", "timm/lcnet_050",
    "timm/levit_128s", "timm/mixer_s32_224", "timm/mobilenetv3_small_050", "timm/mobilenetv4_conv_small_035",
    "timm/mobilevit_xxs", "timm/poolformer_s12", "timm/regnety_002", "timm/repvgg_a0",
    "timm/swin_tiny_patch4_window7_224",
    "timm/swinv2_cr_tiny_ns_224", "timm/tf_efficientnet_lite0", "timm/tiny_vit_5m_224", "timm/vit_tiny_patch16_224",
    "timm/vit_small_patch16_dinov3", "timm/xception41",
)  # fmt: skip
"""Networks of thirty families; those of timm that are named test are small networks of their families."""


def images_for(model: str) -> Tensor:
    """Two images, of 64 px where the network allows it, else of its own size."""
    entry = catalogue()[model]
    side = 64 if entry.allows(64) else entry.size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def check_evaluation(classifier: Classifier) -> None:
    """Each part maps the outputs of the part before, and leaves them as they are: so any cut gives the same logits."""
    images = images_for(classifier.name)
    with torch.inference_mode():
        expected, outputs = classifier.network(images), images
        for part in (*classifier.prefix, *classifier.suffix):
            inputs, before = outputs, outputs.clone()
            outputs = part(inputs)
            assert torch.equal(inputs, before), "the part writes to its input"
    assert len([*classifier.prefix, *classifier.suffix]) == 6
    assert torch.equal(outputs, expected)


def check_training(classifier: Classifier) -> None:
    """All parts in a row give the whole network's outputs and gradients, with the same random state."""
    images = images_for(classifier.name)
    whole = copy.deepcopy(classifier.network)
    results = []
    for network in (whole.train(), classifier.suffix.train()):
        torch.manual_seed(7)
        outputs = network(images)
        outputs.square().sum().backward()
        results.append(outputs)
    assert torch.equal(*results)
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    ours = {name: parameter.grad for name, parameter in classifier.network.named_parameters()}
    for name, gradient in gradients.items():
        assert (gradient is None) == (ours[name] is None), name
        assert gradient is None or torch.equal(gradient, ours[name]), name
    assert changed(copy_of(dict(whole.state_dict())), dict(classifier.network.state_dict())) == set()


def check_frozen(model: str, depth: int) -> None:
    classifier = build(model, classes=3, unfreeze_depth=depth, pretrained=None, seed=0)
    prefix, suffix = copy_of(classifier.prefix.state_dict()), copy_of(dict(classifier.suffix.named_parameters()))
    train_one_step(classifier, images_for(model))
    assert changed(prefix, classifier.prefix.state_dict()) == set()
    assert changed(suffix, dict(classifier.suffix.named_parameters()))


@pytest.mark.parametrize("model", FAST)
def test_cut_network_evaluates_like_the_whole(model: str) -> None:
    check_evaluation(build(model, classes=3, unfreeze_depth=0, pretrained=None, seed=0))


@pytest.mark.parametrize("model", FAST)
def test_cut_network_trains_like_the_whole(model: str) -> None:
    check_training(build(model, classes=3, unfreeze_depth=5, pretrained=None, seed=0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", NETWORKS)
def test_every_family_evaluates_and_trains_like_the_whole(model: str) -> None:
    classifier = build(model, classes=3, unfreeze_depth=5, pretrained=None, seed=0)
    check_evaluation(classifier)
    check_training(classifier)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("index", "model"), [*enumerate(NETWORKS[::3])])
def test_training_changes_no_frozen_tensor(index: int, model: str) -> None:
    """In every third network, at each depth in turn."""
    check_frozen(model, depth=index % 5)


def test_cut_keeps_drop_path_in_training() -> None:
    import timm

    network = timm.create_model("test_vit", num_classes=3, drop_path_rate=0.5, drop_rate=0.5)
    ends = [f"blocks.{block}" for block in range(6)]
    traced = trace(network, ends, ["head"], thin_functions("timm/test_vit"))
    parts = nn.Sequential(*(Segment(network, part) for part in traced))
    images = torch.randn(8, 3, 160, 160)
    torch.manual_seed(1)
    expected = network.train()(images)
    torch.manual_seed(1)
    assert torch.equal(parts.train()(images), expected)
    assert not torch.equal(parts(images), expected)


def test_cut_shares_the_networks_parameters() -> None:
    classifier = build("timm/test_vit", classes=3, unfreeze_depth=2, pretrained=None, seed=0)
    owned = {id(parameter) for parameter in classifier.network.parameters()}
    parts = [*classifier.prefix.parameters(), *classifier.suffix.parameters()]
    assert {id(parameter) for parameter in parts} == owned


def test_cut_refuses_a_network_without_cuts() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.first(inputs) + inputs)

    with pytest.raises(WeightsError, match="cannot be cut into 5 blocks, but only into 1"):
        trace(Crossed(), ["first"], ["head"])


def test_cut_refuses_a_network_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs if inputs.sum() > 0 else -inputs)

    with pytest.raises(WeightsError, match="cannot be cut into blocks: TraceError"):
        trace(Branching(), [], ["head"])


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_build_never_writes_to_given_weights_of_timm(depth: int) -> None:
    given = dict(build("timm/test_vit", classes=3, unfreeze_depth=0, pretrained=None, seed=1).network.state_dict())
    before = copy_of(given)
    classifier = build("timm/test_vit", classes=3, unfreeze_depth=depth, pretrained=given, seed=0)
    assert changed(before, dict(classifier.network.state_dict())) == set()
    train_one_step(classifier, images_for("timm/test_vit"))
    assert changed(before, given) == set()
