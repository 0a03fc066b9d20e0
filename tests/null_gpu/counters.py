"""Read the null GPU's counters, in a process that runs on it."""

import ctypes
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Counts:
    """Calls since the last reset."""

    launches: int
    """Kernels of torch's own."""
    synchronisations: int
    """Calls that wait for the device; a copy that blocks is one."""
    uploads: int
    uploaded_bytes: int
    downloads: int
    downloaded_bytes: int
    products: int
    """Matrix products by cuBLAS."""
    network_calls: int
    """Convolutions and normalisations by cuDNN."""
    replays: int
    """Launches of CUDA graphs; what they hold is not counted again."""


def reset_counts() -> None:
    """Set all counters to zero, and forget the device memory's peak."""
    _library().null_cuda_reset()
    torch.cuda.reset_peak_memory_stats()


def read_counts() -> Counts:
    """Return the counters."""
    values = (ctypes.c_long * len(fields(Counts)))()
    _library().null_cuda_counts(values)
    return Counts(*values)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # preloaded, so its names are the process's own
