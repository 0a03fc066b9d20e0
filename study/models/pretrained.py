"""Load pretrained weights, those of torchvision, of timm or of a file, without running code in the file."""

import contextlib
import re
import socket
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from study.config.catalogue import TIMM, catalogue
from study.errors import WeightsError
from study.models.state_dict import StateDict, digest_state
from study.networks.architectures import ARCHITECTURES
from study.networks.libraries import AUXILIARY, build_on_meta, default_weights, last_layers, timm_config
from study.networks.parts import head_layers
from study.networks.twins import rename_twin, twin_of

DOWNLOAD_TIMEOUT_S = 30.0
"""Seconds without data after which a download fails; torch.hub itself would wait for ever."""

CONNECT_TIMEOUT_S = 10.0
"""Seconds after which the Hugging Face hub is given up, before a download begins."""
_HUB_FILE = "model.safetensors"
"""File of a repository that timm asks for first."""

SHOWN_MISMATCHES = 3
ENDINGS = (".safetensors", ".pth")
"""Endings of the files that a directory of weights may hold."""


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from."""

    state: StateDict | None
    """Contiguous float32 (and int64) tensors under the library's names, without the head's layers that are new; None if
    all layers are new."""
    digest: str
    """Digest of `state` for caches and records: 16 hexadecimal digits, or 'none'."""
    note: str
    """Which layers of the head are new, in words."""

    @property
    def arrays(self) -> dict[str, np.ndarray] | None:
        """`state` as NumPy arrays, which processes share without a copy."""
        return None if self.state is None else {name: tensor.numpy() for name, tensor in self.state.items()}


def load_pretrained(model: str, weights: str, *, classes: int) -> Pretrained:
    """Load the weights that `build` starts from.

    ImageNet's last layer is left out. The last layer of a file is kept if it has `classes` outputs, and the other
    layers of its head if they have the network's shapes.

    Args:
        model: name in the catalogue.
        weights: 'imagenet' (the library's own weights), 'none', the path of a state dict under the library's names or
            those of its twin, as `.safetensors` or by `torch.save`, or a directory that `find_file` searches.
        classes: number of outputs of the classifier.

    Raises:
        WeightsError: the weights cannot be downloaded or read, contain code, or do not fit the model's blocks.
    """
    if weights == "none":
        return Pretrained(None, "none", "no pretrained weights: every layer is new")
    file = Path(weights)
    found: object
    if weights == "imagenet" and model.startswith(TIMM):
        file, found = Path(model), _download_timm(model)
    elif weights == "imagenet":
        file = Path(torch.hub.get_dir(), "checkpoints", Path(default_weights(model).url).name)
        found = _download(model, file)
    else:
        file = find_file(file, model) if file.is_dir() else file
        found = _read(file)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{file}: must hold a state dict alone, but is something else. Save model.state_dict().")
    found = {name: tensor for name, tensor in found.items() if not name.startswith(AUXILIARY.get(model, ()))}
    twin = None
    if mismatches := _mismatches(model, found):
        twin = twin_of(model)
        if twin is None or _mismatches(twin, found):
            raise WeightsError(f"{file}: must hold weights of {model}, but {_shorten(mismatches)}.{_likeness(found)}")
        found = rename_twin(model, twin, found)

    lasts = last_layers(model)
    expected = build_on_meta(model, classes).state_dict()
    new = [
        layer
        for layer, names in head_layers(model, expected).items()
        if (layer in lasts and weights == "imagenet")
        or not all(name in found and found[name].shape == expected[name].shape for name in names)
    ]
    last = lasts[0]
    if last in new:
        outputs = found[f"{last}.bias"].numel() if f"{last}.bias" in found else "none"
        note = f"last layer {last} is new ({classes} outputs; the file has {outputs})"
    else:
        note = f"last layer {last} is the file's own ({classes} outputs)"
    if others := [layer for layer in new if layer not in lasts]:
        note += f"; also new, since the file has no weights of that shape: {', '.join(others)}"
    if twin:
        note += f"; the file's tensors were those of {twin}, the same network"
    expected = {name: tensor for name, tensor in expected.items() if name.rpartition(".")[0] not in new}
    # Files older than torch 0.4.1 lack BatchNorm's counters, which are not used at a fixed momentum.
    state = {
        name: found.get(name, torch.zeros(())).detach().to(tensor.dtype).contiguous()
        for name, tensor in expected.items()
    }
    return Pretrained(state, digest_state(state), note)


def _download(model: str, file: Path) -> object:
    """Load ImageNet weights; download them to `file` if it is missing."""
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        return default_weights(model).get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # the network, the disk, the check sum and the reader raise many kinds
        if file.exists():
            raise WeightsError(f"{file}: must hold weights, but is damaged. Delete it to download it again.") from error
        cause = str(getattr(error, "reason", error)).partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{model}: ImageNet weights must be downloaded once, but got {cause!r}. Put {file.name} into {file.parent},"
            " or give --weights FILE, --weights DIR, --weights none or --demo."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_s)


def _download_timm(model: str) -> StateDict:
    """Load timm's weights from the cache of the Hugging Face hub; download them if they are missing."""
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    name = model.removeprefix(TIMM)
    if not catalogue()[model].weights:
        raise WeightsError(f"{model}: must have pretrained weights, but timm offers none. Give --weights FILE or none.")
    try:
        _reach_hub(timm_config(model)["hf_hub_id"])
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub, the disk and the reader raise many kinds
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{model}: weights must be downloaded once, but got {cause!r}. On a machine with a network, take"
            f" {name}.safetensors from the model's page, and give --weights FILE, or --weights DIR for its directory;"
            f" or copy the hub's cache to {HF_HUB_CACHE} (HF_HOME moves it); or give --weights none or --demo."
        ) from error
    return dict(network.state_dict())


def _reach_hub(repository: str) -> None:
    """Ask the Hugging Face hub for a repository that is not in its cache, once, so that an error comes at once.

    The download itself would try six times, in almost a minute, with two lines on the screen each time.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if isinstance(try_to_load_from_cache(repository, _HUB_FILE), str):
        return
    with contextlib.suppress(RemoteEntryNotFoundError):  # timm then asks for other files
        get_hf_file_metadata(hf_hub_url(repository, _HUB_FILE), timeout=CONNECT_TIMEOUT_S)


def find_file(directory: Path, model: str) -> Path:
    """Return the file of a model's weights in a directory: NAME.safetensors or NAME.pth, timm's tag may be missing.

    Raises:
        WeightsError: there is none.
    """
    name = model.removeprefix(TIMM)
    names = [f"{stem}{ending}" for stem in dict.fromkeys((name, name.partition(".")[0])) for ending in ENDINGS]
    for candidate in names:
        if (directory / candidate).is_file():
            return directory / candidate
    raise WeightsError(f"{directory}: must hold {' or '.join(names)}, but has no such file.")


def _read(file: Path) -> object:
    if not file.is_file():
        found = "is no regular file" if file.exists() else "there is none"
        raise WeightsError(f"{file}: must be a file of weights, but {found}.")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings(action="ignore"):  # the reader warns about files that it cannot read
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except PermissionError as error:
        raise WeightsError(f"{file}: must be readable, but got {error.strerror!r}.") from error
    except Exception as error:  # the readers raise almost any exception on damaged files
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{file}: must hold tensors alone, but loading it would run code ({code[1]}), which is refused."
                " Save model.state_dict() instead."
            ) from error
        raise WeightsError(
            f"{file}: must hold a state dict, as .safetensors or by torch.save, but is something else or damaged."
            " No code in it was run."
        ) from error


def _mismatches(model: str, found: Mapping[str, Tensor]) -> list[str]:
    """Describe each tensor of `found` that does not fit the blocks of `model`."""
    expected = build_on_meta(model, classes=1).state_dict()
    head = {name for names in head_layers(model, expected).values() for name in names}
    mismatches = []
    for name in dict.fromkeys((*expected, *found)):
        if name in head:
            continue
        if name not in expected:
            mismatches.append(f"{name} is unknown")
        elif name not in found:
            if not name.endswith(".num_batches_tracked"):
                mismatches.append(f"{name} is missing")
        elif found[name].shape != expected[name].shape:
            mismatches.append(f"{name} is {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}")
    return mismatches


def _shorten(mismatches: list[str]) -> str:
    shown = ", ".join(mismatches[:SHOWN_MISMATCHES])
    hidden = len(mismatches) - SHOWN_MISMATCHES
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _likeness(found: Mapping[str, Tensor]) -> str:
    """Name the model that these weights fit, if it is a known one."""
    model = next((model for model in ARCHITECTURES if not _mismatches(model, found)), None)
    return f" It looks like weights of another model, {model}." if model else " Is it of another model?"
