"""Choose the device and the precision of a trial, make CUDA deterministic, and name the arithmetic."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

_torch_attention = functional.scaled_dot_product_attention


@dataclass(frozen=True)
class Hardware:
    """The device and the numerical precision of a trial."""

    device: torch.device
    precision: str
    """bf16 (autocast) or fp32."""
    gpu_share: float = 1.0
    """Part of the GPU that this trial has, above 0 and at most 1; other trials have the rest."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the outputs that the prefix hands on."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def arithmetic(self) -> str:
        """Name of the hardware and software versions, which may change the last bit of a result."""
        software = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, cuDNN {torch.backends.cudnn.version()}, {software}"
        cpu: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # absent in older torch
        kind = [torch.backends.cpu.get_cpu_capability(), *(cpu.get(name) for name in ("cpu_name", "l2_cache_size"))]
        return f"{kind}, {torch.get_num_threads()} threads, {software}"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for forward passes at this precision."""
        return torch.autocast(self.device.type, dtype=self.dtype) if self.precision == "bf16" else nullcontext()


def choose_hardware(precision: str, gpu_share: float = 1.0) -> Hardware:
    """Choose the GPU if this process may use one, else the CPU, and make CUDA deterministic and fp32 exact.

    Args:
        precision: bf16, fp32, or auto for bf16 on hardware that computes faster with it and fp32 elsewhere.
        gpu_share: part of the GPU that the trial has, above 0 and at most 1.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":  # same seed, same numbers; torch warns about operations that cannot be deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling new memory costs time, and no code here reads memory before writing to it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's types lack it
        # By default, cuDNN rounds the inputs of fp32 convolutions to TF32, which has the 10 bits of precision of fp16.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.enable_cudnn_sdp(False)  # torch has no deterministic gradients for cuDNN's attention
    if precision == "auto":
        precision = "bf16" if _gains_from_bf16(device) else "fp32"
    return Hardware(device, precision, gpu_share)


def make_deterministic(network: nn.Module, device: torch.device) -> None:
    """On CUDA, compute the gradients of attention and of adaptive pooling to several cells deterministically.

    torch's own kernel for pooling, which VGG has, adds the gradients of overlapping cells in the order in which they
    happen to come. On a CPU, and for networks that pool to a single cell and have no attention, nothing changes.
    """
    if device.type != "cuda":
        return
    if functional.scaled_dot_product_attention is not _attention:
        functional.scaled_dot_product_attention = _attention
    for module in network.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            height, width = nn.modules.utils._pair(module.output_size)
            module.forward = partial(average_pool, size=(height, width))  # type: ignore[method-assign]


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Compute torch's attention; on a GPU, its gradients are deterministic.

    torch has such gradients, but takes them only while operations that lack them are errors. Here they are warnings, so
    that all networks can be trained.
    """
    outputs: Tensor = _torch_attention(*args, **kwargs)
    node = outputs.grad_fn
    while node is not None and "Attention" not in node.name():  # a slice, if torch has padded the heads
        node = node.next_functions[0][0] if node.name() == "SliceBackward0" else None
    if node is not None:
        node.register_prehook(lambda _: torch.use_deterministic_algorithms(True))
        node.register_hook(lambda *_: torch.use_deterministic_algorithms(True, warn_only=True))
    return outputs


def average_pool(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pool (n, channels, height, width) to (n, channels, *size) by cells' means, as one matrix product in fp32.

    The cells are those of torch's AdaptiveAvgPool2d. They may overlap.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    with torch.autocast(images.device.type, enabled=False):
        pooled: Tensor = functional.linear(images.float().flatten(2), _means((height, width), size, images.device))
    return pooled.view(*images.shape[:2], *size).to(images.dtype)


@cache
def _means(pixels: tuple[int, int], cells: tuple[int, int], device: torch.device) -> Tensor:
    """Return the matrix (product of cells, product of pixels) float32 that maps pixels to the means of cells."""
    with torch.inference_mode(False):  # the backward pass needs the matrix
        rows, columns = (_line_means(*sizes) for sizes in zip(pixels, cells, strict=True))
        return torch.kron(rows, columns).to(device)


def _line_means(pixels: int, cells: int) -> Tensor:
    """Return the matrix (cells, pixels) for one dimension, whose cell i reaches from i·pixels/cells to the next one."""
    matrix = torch.zeros(cells, pixels)
    for cell in range(cells):
        start, stop = cell * pixels // cells, -(-(cell + 1) * pixels // cells)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


def _gains_from_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
