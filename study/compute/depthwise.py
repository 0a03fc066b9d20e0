"""Compute gradients of depthwise convolutions in fp32 on a CPU, where those in bf16 take up to a hundred times as long.

oneDNN has fast code for the bf16 gradients of 3 × 3 convolutions of stride 1 only, and for those only on maps of more
than 2 × 2 pixels. On small maps a matrix product for each channel is faster than its convolutions in fp32, too. Knows
no network and no trial.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from study.compute.hardware import Hardware

FAST_SIZE = 3
"""Largest height and width of a kernel whose bf16 gradients are fast at stride 1."""
MOST_PAIRS, MOST_PAIRS_FAST = 25**2, 4**2
"""Largest product of the pixels of a map before and after a convolution for which matrix products are faster: of any
convolution, and of one of at most FAST_SIZE.

Milliseconds of both gradients on two cores of an Intel Xeon, in bf16, in fp32 and by matrices, 64 images: 5 × 5, 1,152
channels, 2 px: 19, 6.5 and 1.5, 4 px: 44, 11 and 4.3; 7 × 7, 768 channels, 4 px: 36, 22 and 3.7; 3 × 3, 1,152 channels,
2 px: 15, 3.4 and 1.7, but 3 px: 1.1, 1.7 and 3.2.
"""
DEPTHWISE = "fp32 in depthwise convolutions, by matrices on small maps"
"""Fact about a trial whose network has such convolutions."""
Options = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""Stride, padding and dilation, each of the height and the width, and the number of groups."""


def gains_from_fp32(module: nn.Module, hardware: Hardware) -> bool:
    """Return whether a module is a trained depthwise convolution whose gradients are faster in fp32, for some maps.

    Milliseconds of both gradients on two cores of an Intel Xeon, 64 images, in bf16 and in fp32: 5 × 5, 1,152 channels,
    3 px: 41 and 11; 5 × 5, stride 2, 672 channels, 12 px: 210 and 13; 3 × 3, stride 2, 240 channels, 12 px: 34 and 1.8.
    """
    return (
        hardware.device.type == "cpu"
        and hardware.precision == "bf16"
        and isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and max(module.kernel_size) > 1
        and module.weight.requires_grad
    )


def use_fp32_gradients(network: nn.Module, hardware: Hardware) -> None:
    """Let the trained depthwise convolutions of a network compute their gradients in fp32 where that is faster.

    That depends on the kernel, its stride and the size of the map.

    The outputs stay the same, bit for bit, and the gradients are more exact. Nothing changes on GPUs and in fp32.
    """
    for module in network.modules():
        if gains_from_fp32(module, hardware):
            module.forward = partial(_call, module.forward)


def _call(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(inputs)
    with _Fp32Gradients():  # and not a forward of ours: timm's convolutions pad their inputs in several ways
        return forward(inputs)


class _Fp32Gradients(TorchFunctionMode):
    """Replaces torch's convolutions by ones with gradients in fp32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not functional.conv2d or len(args) < 7 or isinstance(args[4], str):  # padding may be a name
            return func(*args, **(kwargs or {}))
        inputs, weight, bias, *sizes, groups = args
        options = (*map(nn.modules.utils._pair, sizes), groups)
        small = _small(inputs.shape, weight, options)
        if _is_fast(weight, options) and not small:
            return func(*args, **(kwargs or {}))
        return _Convolution.apply(inputs, weight, bias, options, small)


class _Convolution(torch.autograd.Function):
    """torch's convolution, with gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, options: Options, small: bool) -> Tensor:
        outputs = functional.conv2d(inputs, weight, bias, *options)
        ctx.save_for_backward(inputs.to(outputs.dtype), weight)
        ctx.options, ctx.small, ctx.types = options, small, (inputs.dtype, outputs.dtype)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (inputs, weight) = gradients, ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        given, computed = ctx.types
        used = weight.to(computed).float()  # autocast has rounded the weights too
        gradient, inputs = gradient.float(), inputs.float()
        if ctx.small:
            of_inputs, of_weight = _multiply(gradient, inputs, used, ctx.options)
            of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        else:
            of_inputs, of_weight, of_bias = torch.ops.aten.convolution_backward(
                gradient, inputs, used, [len(weight)], stride, padding, dilation, False, [0, 0], groups,
                ctx.needs_input_grad[:3],
            )  # fmt: skip
        return of_inputs if of_inputs is None else of_inputs.to(given), of_weight, of_bias, None, None


def _is_fast(weight: Tensor, options: Options) -> bool:
    """Return whether oneDNN has fast code for the bf16 gradients, on all but the smallest maps."""
    stride, *_ = options
    return max(stride) == 1 and max(weight.shape[2:]) <= FAST_SIZE


def _small(shape: torch.Size, weight: Tensor, options: Options) -> bool:
    """Return whether matrix products give the gradients sooner, for inputs of `shape` (n, channels, height, width)."""
    sides = _output_sides((shape[2], shape[3]), (weight.shape[2], weight.shape[3]), options)
    most = MOST_PAIRS_FAST if max(weight.shape[2:]) <= FAST_SIZE else MOST_PAIRS
    return len(weight) == shape[1] and prod(shape[2:]) * prod(sides) <= most


def _output_sides(sides: tuple[int, int], kernel: tuple[int, int], options: Options) -> tuple[int, int]:
    """Return height and width of a convolution's outputs, as torch.nn.Conv2d documents them."""
    of = [
        (side + 2 * padding - dilation * (size - 1) - 1) // stride + 1
        for side, size, stride, padding, dilation in zip(sides, kernel, *options[:3], strict=True)
    ]
    return of[0], of[1]


@lru_cache(maxsize=64)
def _weights_between(sides: tuple[int, int], kernel: tuple[int, int], options: Options) -> Tensor:
    """Return which weight leads from each input pixel to each output pixel, (outputs · inputs) int64.

    Pixels and weights count row by row. The number of weights stands for none.
    """
    outputs = _output_sides(sides, kernel, options)
    offsets = []
    for side, output, size, stride, padding, dilation in zip(sides, outputs, kernel, *options[:3], strict=True):
        steps = torch.arange(side)[None] - torch.arange(output)[:, None] * stride + padding  # (output, side)
        there = (steps % dilation == 0) & (steps >= 0) & (steps < size * dilation)
        offsets.append(torch.where(there, steps // dilation, -1))
    rows, columns = offsets[0][:, None, :, None], offsets[1][None, :, None, :]
    return torch.where((rows >= 0) & (columns >= 0), rows * kernel[1] + columns, prod(kernel)).flatten()


def _multiply(gradient: Tensor, inputs: Tensor, weight: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return the gradients of a depthwise convolution's inputs and weights, by a matrix product for each channel.

    A channel's convolution is the product of its pixels with a matrix (outputs, inputs) of its weights.
    """
    (_, channels, *sides), kernel = inputs.shape, weight.shape[2:]
    between = _weights_between((sides[0], sides[1]), (kernel[0], kernel[1]), options)
    # (channels, n, pixels), contiguous: a product of other layouts runs channel by channel
    of_outputs, pixels = (values.flatten(2).transpose(0, 1).contiguous() for values in (gradient, inputs))
    matrices = functional.pad(weight.flatten(1), (0, 1))[:, between].unflatten(1, (of_outputs.shape[2], -1))
    of_inputs = torch.bmm(of_outputs, matrices).transpose(0, 1).unflatten(2, sides)
    of_matrices = torch.bmm(of_outputs.mT, pixels).flatten(1)
    of_weight = of_matrices.new_zeros(channels, prod(kernel) + 1).index_add_(1, between, of_matrices)[:, :-1]
    return of_inputs.contiguous(memory_format=torch.channels_last), of_weight.reshape(weight.shape)
