"""Compute gradients of depthwise convolutions in fp32 on a CPU, where those in bf16 take up to a hundred times as long.

oneDNN has fast code for the bf16 gradients of 3 × 3 convolutions of stride 1 only. Knows no network and no trial.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from study.compute.hardware import Hardware

FAST_SIZE = 3
"""Largest height and width of a kernel whose bf16 gradients are fast at stride 1."""
DEPTHWISE = "fp32 in depthwise convolutions"
"""Fact about a trial whose network has such convolutions."""
Options = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""Stride, padding and dilation, each of the height and the width, and the number of groups."""


def gains_from_fp32(module: nn.Module, hardware: Hardware) -> bool:
    """Return whether a module is a trained depthwise convolution whose gradients are faster in fp32.

    Milliseconds of both gradients on two cores of an Intel Xeon, 64 images, in bf16 and in fp32: 5 × 5, 1,152 channels,
    3 px: 41 and 11; 5 × 5, stride 2, 672 channels, 12 px: 210 and 13; 3 × 3, stride 2, 240 channels, 12 px: 34 and 1.8.
    """
    return (
        hardware.device.type == "cpu"
        and hardware.precision == "bf16"
        and isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and max(*module.kernel_size, FAST_SIZE * module.stride[0], FAST_SIZE * module.stride[1]) > FAST_SIZE
        and module.weight.requires_grad
    )


def use_fp32_gradients(network: nn.Module, hardware: Hardware) -> None:
    """Let the trained depthwise convolutions of a network compute their gradients in fp32 where that is faster.

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
        return _Convolution.apply(inputs, weight, bias, (*map(nn.modules.utils._pair, sizes), groups))


class _Convolution(torch.autograd.Function):
    """torch's convolution, with gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        outputs = functional.conv2d(inputs, weight, bias, *options)
        ctx.save_for_backward(inputs.to(outputs.dtype), weight)
        ctx.options, ctx.types = options, (inputs.dtype, outputs.dtype)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (inputs, weight) = gradients, ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        given, computed = ctx.types
        used = weight.to(computed).float()  # autocast has rounded the weights too
        of_inputs, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient.float(), inputs.float(), used, [len(weight)], stride, padding, dilation, False, [0, 0], groups,
            ctx.needs_input_grad[:3],
        )  # fmt: skip
        return of_inputs if of_inputs is None else of_inputs.to(given), of_weight, of_bias, None
