"""Depthwise convolutions have torch's outputs, and gradients that are nearer to the exact ones than torch's in bf16."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from study.compute.depthwise import _multiply, gains_from_fp32, use_fp32_gradients
from study.compute.hardware import Hardware
from study.models.classifier import build

CPU = torch.device("cpu")
BF16, FP32 = Hardware(CPU, "bf16"), Hardware(CPU, "fp32")


def plain(size: int, stride: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(8, 8, size, stride, size // 2, groups=8, bias=bias)


def same(size: int, stride: int, bias: bool) -> nn.Conv2d:
    """TensorFlow's padding, by timm's module, which has a forward of its own."""
    from timm.layers import Conv2dSame

    return Conv2dSame(8, 8, size, stride, groups=8, bias=bias)


def run(convolution: nn.Module, images: Tensor, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return the outputs of a convolution, and the gradients of its inputs and its parameters for a weighted sum."""
    inputs = images.clone().requires_grad_()
    convolution.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        outputs = convolution(inputs)
    (outputs.double() * weights).sum().backward()
    return [outputs.detach(), inputs.grad, *(parameter.grad for parameter in convolution.parameters())]


@pytest.mark.parametrize("make", [plain, same])
@pytest.mark.parametrize(("size", "stride", "bias"), [(5, 1, False), (5, 2, True), (3, 2, False), (7, 1, True)])
@pytest.mark.parametrize("side", [(9, 9), (2, 2), (5, 3)])
def test_outputs_are_torchs_and_gradients_more_exact(
    make: Callable[..., nn.Conv2d], size: int, stride: int, bias: bool, side: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    torchs = make(size, stride, bias)
    ours = copy.deepcopy(torchs)
    use_fp32_gradients(ours, BF16)
    images = torch.randn(16, 8, *side).bfloat16().to(memory_format=torch.channels_last)
    weights = torch.randn(16, 8, *torchs(images.float()).shape[2:]).bfloat16().double()
    expected, found = (run(module, images, weights, torch.bfloat16) for module in (torchs, ours))
    assert torch.equal(found[0], expected[0])
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    exact_module = copy.deepcopy(torchs).double()
    exact_module.weight.data = torchs.weight.data.bfloat16().double()  # as autocast rounds them
    exact = run(exact_module, images.double(), weights, torch.float64)
    for mine, theirs, right in zip(found[1:], expected[1:], exact[1:], strict=True):
        errors = [((given.double() - right).norm() / right.norm()).item() for given in (mine, theirs)]
        assert errors[0] <= errors[1] + 1e-6
        assert errors[0] < 2e-3  # the inputs' gradients are rounded to bf16


@pytest.mark.parametrize(("side", "equal"), [(2, False), (3, True)])
def test_fast_convolutions_change_on_the_smallest_maps_alone(side: int, equal: bool) -> None:
    torch.manual_seed(0)
    torchs = plain(3, 1, False)
    ours = copy.deepcopy(torchs)
    use_fp32_gradients(ours, BF16)
    images = torch.randn(16, 8, side, side).bfloat16().to(memory_format=torch.channels_last)
    weights = torch.randn(16, 8, side, side).double()
    expected, found = (run(module, images, weights, torch.bfloat16)[2] for module in (torchs, ours))
    assert torch.equal(found, expected) == equal
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("sides", [(2, 2), (3, 5), (4, 1)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((5, 5), 1, 2, 1), ((3, 5), (1, 2), (1, 2), 1), ((3, 3), 2, 1, 1), ((3, 3), 1, 2, 2), ((7, 1), 1, (3, 0), 1)],
)
def test_products_for_each_channel_are_torchs_gradients(sides, kernel, stride, padding, dilation) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups=4, bias=False).double()
    inputs = torch.randn(3, 4, *sides, dtype=torch.double, requires_grad=True)
    outputs = convolution(inputs)
    gradient = torch.randn_like(outputs)
    options = (convolution.stride, convolution.padding, convolution.dilation, 4)
    found = _multiply(gradient, inputs.detach(), convolution.weight.detach(), options)
    torch.testing.assert_close(found, torch.autograd.grad(outputs, (inputs, convolution.weight), gradient))


@pytest.mark.parametrize(
    "model", ["mobilenet_v3_small", "efficientnet_b0", "timm/tf_efficientnet_lite0", "convnext_tiny"]
)
def test_networks_have_the_same_outputs_and_similar_gradients(model: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    found = []
    for changes in (False, True):
        classifier = build(model, classes=3, unfreeze_depth=2, pretrained=None, seed=0)
        classifier.move_to(CPU)
        classifier.set_training()
        if changes:
            use_fp32_gradients(classifier.network, BF16)
        torch.manual_seed(0)
        with BF16.autocast():
            logits = classifier.suffix(classifier.prefix(images)).float()
        logits.square().sum().backward()
        trained = [parameter.grad for parameter in classifier.suffix.parameters()]
        found.append((logits.detach(), torch.cat([gradient.flatten() for gradient in trained])))
    (torchs, theirs), (ours, mine) = found
    assert torch.equal(ours, torchs)
    assert 0 < (mine - theirs).norm() < 0.05 * theirs.norm()


def test_only_trained_slow_depthwise_convolutions_change() -> None:
    slow = plain(5, 1, False)
    assert gains_from_fp32(slow, BF16)
    assert not gains_from_fp32(slow, FP32)
    assert not gains_from_fp32(slow, Hardware(torch.device("cuda"), "bf16"))
    assert not gains_from_fp32(plain(1, 1, False), BF16)
    assert not gains_from_fp32(nn.Conv2d(8, 8, 5, groups=4), BF16)
    assert not gains_from_fp32(nn.Conv2d(1, 8, 5), BF16)
    assert not gains_from_fp32(slow.requires_grad_(False), BF16)


def test_copy_of_a_changed_network_uses_its_own_weights() -> None:
    """As the average of weights is such a copy."""
    network = nn.Sequential(plain(5, 1, False))
    use_fp32_gradients(network, BF16)
    copied = copy.deepcopy(network)
    nn.init.zeros_(copied[0].weight)
    images = torch.ones(1, 8, 5, 5)
    assert copied(images).abs().sum() == 0 < network(images).abs().sum()
    copied(images).sum().backward()
    assert network[0].weight.grad is None and copied[0].weight.grad is not None
