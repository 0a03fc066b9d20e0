"""A torchvision classifier cut in two at an unfreeze depth, the weights it starts from and the images it expects.

`architectures.py` says where the cuts are; what trains the suffix, and who shares its outputs, is not known here.
"""

import hashlib
import re
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights
from torchvision.transforms.v2 import functional

from study.config.architectures import FAMILIES, FLATTEN
from study.config.recipe import DEPTHS
from study.errors import WeightsError
from study.seeding import derive_seed

StateDict = dict[str, Tensor]

DOWNLOAD_TIMEOUT_S = 30.0
"""Of silence, after which a download is given up; torch.hub by itself would wait for ever."""
SHOWN_MISMATCHES = 20


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from, and what is to be said about them."""

    state: StateDict | None
    """Contiguous float32 (and int64) tensors under torchvision's names; without the head's layers that are to be new.
    None where every layer is."""
    digest: str
    """Names `state` in caches and records: 16 hexadecimal digits, or 'none'."""
    note: str
    """What becomes of the head, for people."""

    @property
    def arrays(self) -> dict[str, np.ndarray] | None:
        """`state` in the form that processes share without a copy."""
        return None if self.state is None else {name: tensor.numpy() for name, tensor in self.state.items()}


@dataclass(frozen=True)
class Classifier:
    """A network cut in two: `suffix(prefix(x))` are the logits (n, classes) of preprocessed images x."""

    name: str
    network: nn.Module
    """torchvision's module; owns the parameters, under torchvision's names."""
    prefix: nn.Sequential
    """The frozen blocks; empty where all five are trained. Where none is, it ends at the head's first weights."""
    suffix: nn.Sequential
    """The trained blocks and the head."""

    @cached_property
    def prefix_digest(self) -> str:
        """Names the prefix's weights in caches: 16 hexadecimal digits."""
        return digest_weights(self.prefix)

    def shorter_prefix(self, unfreeze_depth: int) -> nn.Sequential:
        """Return the frozen blocks that a classifier of this larger unfreeze depth would have."""
        return self.prefix[: len(DEPTHS) - 1 - unfreeze_depth]

    def trainable_parameters(self) -> int:
        """Count the values that training changes."""
        return sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)

    def set_training(self) -> None:
        """Put the suffix into training mode; the prefix stays as it is, or its BatchNorm would drift."""
        self.prefix.eval()
        self.suffix.train()

    def set_evaluation(self) -> None:
        """Put both parts into evaluation mode."""
        self.prefix.eval()
        self.suffix.eval()


def build(model: str, *, classes: int, unfreeze_depth: int, pretrained: StateDict | None, seed: int) -> Classifier:
    """Build a classifier in evaluation mode whose last `unfreeze_depth` blocks and head are to be trained.

    With `pretrained`, from `load_pretrained`, only the layers that its head lacks are initialised, by torch's defaults;
    the frozen tensors are shared with `pretrained`, the others are copies, so its memory may be read-only. Without, the
    whole network is initialised as torchvision does. Either depends on `seed` alone; global generators stay untouched.
    """
    if pretrained is None:
        with _seeded(seed, "weights"):
            network = get_model(model, num_classes=classes)
    else:
        network = _on_meta(model, classes)
    architecture = FAMILIES[model]
    parts = [*(_chain(network, paths) for paths in architecture.blocks), *_chain(network, architecture.head)]
    cut = len(architecture.blocks) - unfreeze_depth
    while unfreeze_depth == 0 and not any(True for _ in parts[cut].parameters()):
        cut += 1  # pooling learns nothing, and what it leaves is smaller
    prefix, suffix = nn.Sequential(*parts[:cut]), nn.Sequential(*parts[cut:])
    if pretrained is not None:
        given = {name.rpartition(".")[0] for name in pretrained}
        new = [layer for layer in _head_layers(model, network.state_dict()) if layer not in given]
        frozen = {id(tensor) for tensor in prefix.state_dict(keep_vars=True).values()}
        state = {**_new_layers(network, new, seed), **pretrained}
        for name, tensor in network.state_dict(keep_vars=True).items():
            if id(tensor) not in frozen:
                state[name] = state[name].clone()
        network.load_state_dict(state, assign=True)
    prefix.requires_grad_(False)
    classifier = Classifier(model, network, prefix, suffix)
    classifier.set_evaluation()
    return classifier


def digest_weights(module: nn.Module) -> str:
    """Name a module's weights in caches: 16 hexadecimal digits."""
    return _digest(module.state_dict())


def preprocessing(model: str, image_size: int) -> Callable[[Tensor], Tensor]:
    """Return the transforms of the model's weights, scaled from the side that they were made for to `image_size`.

    They map images (n, 3, height, width) uint8 to (n, 3, image_size, image_size) float32 on the same device and in the
    same memory format: a resize of the shorter side, a centre crop, and ImageNet's mean and deviation. On a CPU with
    AVX2, or of ARM, that is what torchvision makes of the same images in PIL, but for rare single grey levels.
    Elsewhere the resize is in floats, like torchvision's own of tensors, and may round a value to the next grey level.
    """
    preset = _default_weights(model).transforms()
    resize_size = round(image_size * preset.resize_size[0] / preset.crop_size[0])
    mean = [255 * value for value in preset.mean]
    deviation = [255 * value for value in preset.std]

    def preprocess(images: Tensor) -> Tensor:
        resized = functional.resize(images, [resize_size], preset.interpolation, antialias=preset.antialias)
        cropped = functional.center_crop(resized, [image_size]).to(torch.float32)
        normalized: Tensor = functional.normalize(cropped, mean, deviation, inplace=True)
        return normalized

    return preprocess


def to_colours(model: str, inputs: Tensor) -> Tensor:
    """Undo the normalisation of `preprocessing`: (n, 3, side, side) float32 as true colours in [0, 1]."""
    preset = _default_weights(model).transforms()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return (inputs * deviation + mean).clamp(0, 1)


def load_pretrained(model: str, weights: str, *, classes: int) -> Pretrained:
    """Load what `build` starts from: 'imagenet' (torchvision's default weights), 'none', or the path of a file.

    A file is a state dict under torchvision's names, as `.safetensors` or by `torch.save`. ImageNet's last layer is
    left out; a file's stays if it has `classes` outputs, and the other layers of its head if they have the network's
    shapes. What a head lacks is left out.

    Raises:
        WeightsError: the weights cannot be had or read, would run code, or do not cover the model's backbone.
    """
    if weights == "none":
        return Pretrained(None, "none", "no pretrained weights: every layer is new")
    if weights == "imagenet":
        file = Path(torch.hub.get_dir(), "checkpoints", Path(_default_weights(model).url).name)
        found = _download(model, file)
    else:
        file = Path(weights)
        found = _read(file)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{file}: must hold a state dict alone, but is something else. Save model.state_dict().")
    if mismatches := _mismatches(model, found):
        raise WeightsError(f"{file}: must hold weights of {model}, but {_shorten(mismatches)}.{_likeness(found)}")

    last = FAMILIES[model].last_layer
    expected = _on_meta(model, classes).state_dict()
    new = [
        layer
        for layer, names in _head_layers(model, expected).items()
        if (layer == last and weights == "imagenet")
        or not all(name in found and found[name].shape == expected[name].shape for name in names)
    ]
    if last in new:
        outputs = found[f"{last}.bias"].numel() if f"{last}.bias" in found else "none"
        note = f"last layer {last} is new ({classes} outputs; the file has {outputs})"
    else:
        note = f"last layer {last} is the file's own ({classes} outputs)"
    if others := [layer for layer in new if layer != last]:
        note += f"; new as well, since the file has none of that shape: {', '.join(others)}"
    expected = {name: tensor for name, tensor in expected.items() if name.rpartition(".")[0] not in new}
    # Files older than torch 0.4.1 lack BatchNorm's counters, which nothing reads at a fixed momentum.
    state = {
        name: found.get(name, torch.zeros(())).detach().to(tensor.dtype).contiguous()
        for name, tensor in expected.items()
    }
    return Pretrained(state, _digest(state), note)


def _default_weights(model: str) -> WeightsEnum:
    default: WeightsEnum = get_model_weights(model)["DEFAULT"]
    return default


def _on_meta(model: str, classes: int) -> nn.Module:
    """Build the network's shapes and names without memory for its tensors."""
    with torch.device("meta"):
        network: nn.Module = get_model(model, num_classes=classes)
    return network


def _chain(network: nn.Module, paths: tuple[str, ...]) -> nn.Sequential:
    return nn.Sequential(*(nn.Flatten() if path == FLATTEN else network.get_submodule(path) for path in paths))


def _head_layers(model: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the layers outside the five blocks, the last one first, with their tensors among these names."""
    blocks = tuple(f"{path}." for paths in FAMILIES[model].blocks for path in paths)
    layers: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(blocks):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return dict(reversed(layers.items()))


def _new_layers(network: nn.Module, layers: Iterable[str], seed: int) -> StateDict:
    """Initialise layers of a network without memory, in this order: the last one's values depend on no other."""
    state: StateDict = {}
    with _seeded(seed, "head"):
        for layer in layers:
            fresh = network.get_submodule(layer).to_empty(device="cpu")
            assert isinstance(fresh, nn.Linear | nn.LayerNorm)
            fresh.reset_parameters()
            state |= {f"{layer}.{name}": tensor for name, tensor in fresh.state_dict().items()}
    return state


@contextmanager
def _seeded(seed: int, purpose: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the generators of all GPUs too.
        torch.default_generator.manual_seed(derive_seed(seed, purpose))
        yield


def _download(model: str, file: Path) -> object:
    """Load ImageNet weights, downloaded to `file` unless they are there."""
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        return _default_weights(model).get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # the network, the disk, the hash and the reader each have several of their own
        if file.exists():
            raise WeightsError(f"{file}: must hold weights, but is damaged. Delete it to download it again.") from error
        cause = str(getattr(error, "reason", error)).partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{model}: ImageNet weights must be downloaded once, but got {cause!r}. Put {file.name} into {file.parent},"
            " or give --weights FILE, --weights none or --demo."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_s)


def _read(file: Path) -> object:
    if not file.is_file():
        raise WeightsError(f"{file}: must be a file of weights, but there is none.")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings(action="ignore"):  # the reader guesses aloud about what it cannot read
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except PermissionError as error:
        raise WeightsError(f"{file}: must be readable, but got {error.strerror!r}.") from error
    except Exception as error:  # damage can make the readers raise almost anything
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
    """Say what keeps `found` from being the weights of `model`, its head aside."""
    expected = _on_meta(model, classes=1).state_dict()
    head = {name for names in _head_layers(model, expected).values() for name in names}
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
    """Name the model whose weights these are, if it is one of ours."""
    model = next((model for model in FAMILIES if not _mismatches(model, found)), None)
    return f" It looks like weights of another model, {model}." if model else " Is it of another model?"


def _digest(state: StateDict) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
