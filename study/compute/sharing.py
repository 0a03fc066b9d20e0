"""Estimate how many trials of a study one GPU, or a computer's CPU cores, take at a time, before any of them starts.

Not measured on a GPU: its bounds below are cautious guesses. Knows no trial and no Ray.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from study.compute.features import CHUNK
from study.compute.gpu_cache import SHARE
from study.config.catalogue import catalogue
from study.limits import free_memory_bytes, make_processes_allowed
from study.networks.libraries import build_on_meta

GPU_SHARES = (4, 2)
"""Numbers of trials that may share a GPU, the largest first."""
CORE_SHARES = (4, 3, 2)
"""Numbers of trials that may share the CPU cores of a computer, the largest first."""
SMALL_OPERATIONS = 3 * 10**10
"""Multiply-adds of a batch's forward pass up to which the threads of a trial mostly wait for each other on CPU cores.

Two processes of one thread each then take 1.1 to 2.3 times as many steps as one of two: see docs/benchmarks.md.
"""
PROCESSES = 40
"""Processes and threads of one trial on a CPU: 29 were counted with Ray 2.60 on two cores."""
FILLING_OPERATIONS = 2 * 10**11
"""Multiply-adds of a batch's forward pass with which one trial keeps a GPU busy: 64 images of ResNet18 take 1.2e11."""
PROCESS_BYTES = 2 * 10**9
"""Memory of a process without networks: CUDA's context, libraries, and images while they are augmented."""
COPIES = 5
"""Values for each weight: itself, its gradient, two moments of the optimizer, and an average."""
PEAK = 2
"""Peak of a pass as a multiple of what the forward pass keeps for the backward pass: gradients, workspaces."""
CLASSES = 1000
"""Number of outputs that is estimated with, since the images have not been read yet: ImageNet's."""


def trials_per_gpu(models: Sequence[str], *, image_size: int, batch_size: int, gpu_bytes: int | None) -> int:
    """Return how many trials may share a GPU: 1 if one of them can fill it, or if its memory is not known.

    Args:
        models: names in the catalogue.
        image_size: largest side of a trial's images in pixels.
        batch_size: largest batch of a trial.
        gpu_bytes: memory of the GPU; None if it is not known.
    """
    images = max(batch_size, CHUNK)
    if gpu_bytes is None or count_operations(models, image_size, images) > FILLING_OPERATIONS:
        return 1
    need = estimate_bytes(models, image_size, images)
    return next((share for share in GPU_SHARES if need <= (1 - SHARE) * gpu_bytes / share), 1)


def trials_on_cores(models: Sequence[str], *, image_size: int, batch_size: int, trials: int, cores: int) -> int:
    """Return how many trials of small networks run side by side on a computer's CPU cores: 1 if networks are large.

    Args:
        models: names in the catalogue.
        image_size: largest side of a trial's images in pixels.
        batch_size: largest batch of a trial.
        trials: largest number of trials that wait at a time.
        cores: CPU cores of the computer.
    """
    shares = [share for share in CORE_SHARES if share <= trials and cores % share == 0]
    images = max(batch_size, CHUNK)
    if not shares or count_operations(models, image_size, images) > SMALL_OPERATIONS:
        return 1
    room = free_memory_bytes() / estimate_bytes(models, image_size, images)
    return next((share for share in shares if share <= room and not make_processes_allowed(share * PROCESSES)), 1)


def gpu_memory() -> int | None:
    """Return the bytes of the smallest GPU of this computer, from NVIDIA's management library; None if not known.

    CUDA itself would tell too, but takes memory of the GPU for as long as this process lives.
    """
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        count, device = ctypes.c_uint(), ctypes.c_void_p()
        divided, pending = ctypes.c_uint(), ctypes.c_uint()
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        sizes = []
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
        for index in range(count.value):
            if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
                return None
            library.nvmlDeviceGetMigMode(device, ctypes.byref(divided), ctypes.byref(pending))
            if divided.value or library.nvmlDeviceGetMemoryInfo(device, memory):
                return None
            sizes.append(memory[0])
    except (OSError, AttributeError):  # no such library, or an old one
        return None
    return min(sizes, default=None)


def count_operations(models: Sequence[str], image_size: int, images: int) -> float:
    """Return the multiply-adds of a forward pass of so many images: the most of any model."""
    entries = [catalogue()[model] for model in models]
    return max(entry.operations * (image_size / entry.size) ** 2 * images for entry in entries)


def estimate_bytes(models: Sequence[str], image_size: int, images: int) -> float:
    """Return the memory of a trial that trains a whole network in fp32: the most of any model.

    Infinity where it cannot be told: some networks compute with numbers, which a network without memory does not have.
    """
    try:
        return max(_estimate_bytes(model, image_size, images) for model in models)
    except Exception:
        return math.inf


def _estimate_bytes(model: str, image_size: int, images: int) -> int:
    network = build_on_meta(model, CLASSES).train()
    weights = sum(parameter.numel() for parameter in network.parameters())
    return PROCESS_BYTES + 4 * (COPIES * weights + PEAK * images * _saved_values(network, image_size))


def _saved_values(network: nn.Module, image_size: int) -> int:
    """Return how many values the forward pass of one image keeps for the backward pass, besides the weights."""
    seen = {_storage(parameter) for parameter in network.parameters()}
    values = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal values
        if (storage := _storage(tensor)) not in seen:
            seen.add(storage)
            values += tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor  # which keeps its storage, and so the storage's name, until the end

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(torch.empty(2, 3, image_size, image_size, device="meta"))  # one image has no variance
    del outputs
    return -(-values // 2)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
