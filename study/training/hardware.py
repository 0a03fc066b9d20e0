"""Choose the device and the precision of a trial, and name the arithmetic that they compute with."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torchvision


@dataclass(frozen=True)
class Hardware:
    """The device and the numerical precision of a trial."""

    device: torch.device
    precision: str
    """bf16 (autocast) or fp32."""

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


def choose_hardware(precision: str) -> Hardware:
    """Choose the GPU if this process may use one, else the CPU, and make CUDA deterministic.

    Args:
        precision: bf16, fp32, or auto for bf16 on hardware that computes faster with it and fp32 elsewhere.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":  # same seed, same numbers; torch warns about operations that cannot be deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling new memory costs time, and no code here reads memory before writing to it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's types lack it
    if precision == "auto":
        precision = "bf16" if _gains_from_bf16(device) else "fp32"
    return Hardware(device, precision)


def _gains_from_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
