"""Estimate how many trials of a study one GPU takes at a time, before any of them starts.

Not measured on a GPU: the bounds below are cautious guesses. Knows no trial and no Ray.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from study.compute.features import CHUNK
from study.compute.gpu_cache import SHARE
from study.config.catalogue import catalogue
from study.models.networks import build_on_meta

SHARES = (4, 2)
"""Numbers of trials that may share a GPU, the largest first."""
FILLING_OPERATIONS = 2 * 10**11
"""Multiply-adds of a batch's forward pass with which one trial keeps a GPU busy: 64 images of ResNet18 take 1.2e11."""
PROCESS_BYTES = 2 * 10**9
"""Device memory of a process without networks: CUDA's context, its libraries, and images while they are augmented."""
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
    if gpu_bytes is None or any(_fills(model, image_size, images) for model in models):
        return 1
    try:
        need = max(_estimate_bytes(model, image_size, images) for model in models)
    except Exception:  # some networks compute with numbers, which a network without memory does not have
        return 1
    return next((share for share in SHARES if need <= (1 - SHARE) * gpu_bytes / share), 1)


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


def _fills(model: str, image_size: int, images: int) -> bool:
    entry = catalogue()[model]
    return entry.operations * (image_size / entry.size) ** 2 * images > FILLING_OPERATIONS


def _estimate_bytes(model: str, image_size: int, images: int) -> int:
    """Return the device memory of a trial that trains the whole network in fp32."""
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
