"""Build a classifier of torchvision or timm that is cut in two at an unfreeze depth.

`architectures.py` says where 26 networks are cut, and `cut.py` finds the cuts of the others. Does not know who trains
the suffix or shares the prefix's outputs.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from study.config.recipe import DEPTHS
from study.errors import WeightsError
from study.models.architectures import ARCHITECTURES, FLATTEN
from study.models.cut import BLOCKS, cut
from study.models.networks import block_ends, build_network, build_on_meta, last_layers, thin_functions
from study.seeding import derive_seed

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Classifier:
    """A network cut in two: `suffix(prefix(x))` gives the logits (n, classes) of preprocessed images x."""

    name: str
    network: nn.Module
    """The library's module, which owns the parameters under the library's names."""
    prefix: nn.Sequential
    """The frozen blocks; empty if all five are trained. If none is, layers without weights follow, such as pooling."""
    suffix: nn.Sequential
    """The trained blocks and the head."""

    @cached_property
    def prefix_digest(self) -> str:
        """Digest of the prefix's weights, for caches: 16 hexadecimal digits."""
        return digest_weights(self.prefix)

    def shorter_prefix(self, unfreeze_depth: int) -> nn.Sequential:
        """Return the frozen blocks of a classifier with a larger unfreeze depth."""
        return self.prefix[: len(DEPTHS) - 1 - unfreeze_depth]

    @property
    def larger_depths(self) -> range:
        """Unfreeze depths at which fewer, but some, blocks are frozen."""
        return range(max(0, BLOCKS - len(self.prefix)) + 1, BLOCKS)

    def shorter_digest(self, unfreeze_depth: int) -> str:
        """Return the digest of the weights of `shorter_prefix`, computed at the first call."""
        if unfreeze_depth not in self._shorter_digests:
            self._shorter_digests[unfreeze_depth] = digest_weights(self.shorter_prefix(unfreeze_depth))
        return self._shorter_digests[unfreeze_depth]

    @cached_property
    def _shorter_digests(self) -> dict[int, str]:
        return {}

    def parameters_from_head(self) -> list[list[nn.Parameter]]:
        """Return the suffix's parameters from the head backwards: those of the head, then those of each block."""
        blocks = max(0, len(DEPTHS) - 1 - len(self.prefix))
        parts = [self.suffix[blocks:], *reversed(self.suffix[:blocks])]
        return [[*part.parameters()] for part in parts]

    def trainable_parameters(self) -> int:
        """Return the number of parameters that are trained."""
        return sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)

    def move_to(self, device: torch.device) -> None:
        """Move all tensors to a device; images of a batch are then best laid out channels last."""
        for part in (self.network, self.prefix, self.suffix):  # the parts hold constants that the network lacks
            part.to(device, non_blocking=True).to(memory_format=torch.channels_last)

    def set_training(self) -> None:
        """Put the suffix into training mode and the prefix into evaluation mode, where its BatchNorm does not drift."""
        self.prefix.eval()
        self.suffix.train()

    def set_evaluation(self) -> None:
        """Put the network and both parts into evaluation mode."""
        self.network.eval()  # the code around the parts asks the network itself for its mode
        self.prefix.eval()
        self.suffix.eval()


def build(model: str, *, classes: int, unfreeze_depth: int, pretrained: StateDict | None, seed: int) -> Classifier:
    """Build a classifier, in evaluation mode, whose last `unfreeze_depth` blocks and head can be trained.

    Initial values depend on `seed` only, and global random generators stay unchanged.

    Args:
        model: name in the catalogue.
        classes: number of outputs.
        unfreeze_depth: number of trained blocks besides the head, 0 to 5.
        pretrained: weights from `load_pretrained`; layers of the head that they lack get torch's default values.
            Frozen tensors are shared with them and trained ones are copies, so that their memory may be read-only. None
            to initialise the whole network as its library does.
        seed: seed of the initial values.

    Raises:
        WeightsError: the network cannot be built, or cannot be cut.
    """
    if model not in ARCHITECTURES:
        return _build_any(model, classes, unfreeze_depth, pretrained, seed)
    if pretrained is None:
        with _seeded(seed, "weights"):
            network = build_network(model, classes)
    else:
        network = build_on_meta(model, classes)
    architecture = ARCHITECTURES[model]
    parts = [*(_chain(network, paths) for paths in architecture.blocks), *_chain(network, architecture.head)]
    cut = len(architecture.blocks) - unfreeze_depth
    while unfreeze_depth == 0 and not any(True for _ in parts[cut].parameters()):
        cut += 1  # pooling has no weights, and its output is smaller
    prefix, suffix = nn.Sequential(*parts[:cut]), nn.Sequential(*parts[cut:])
    if pretrained is not None:
        given = {name.rpartition(".")[0] for name in pretrained}
        new = [layer for layer in head_layers(model, network.state_dict()) if layer not in given]
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
    """Return the digest of a module's weights, for caches: 16 hexadecimal digits."""
    return digest_state(module.state_dict())


def parts_of(model: str, network: nn.Module) -> list[nn.Module]:
    """Return the network's five blocks and its head, which in a row compute what it computes.

    Raises:
        WeightsError: the network cannot be cut.
    """
    if model in ARCHITECTURES:
        architecture = ARCHITECTURES[model]
        return [_chain(network, paths) for paths in (*architecture.blocks, architecture.head)]
    try:
        return [*cut(network, block_ends(model, network), last_layers(model), thin_functions(model))]
    except WeightsError as error:
        raise WeightsError(f"{model}: {error}. Choose another model.") from error


def _build_any(model: str, classes: int, unfreeze_depth: int, pretrained: StateDict | None, seed: int) -> Classifier:
    """Build a network that is cut by its graph; the arguments are those of `build`."""
    if pretrained is None:
        network = _build_seeded(model, classes, seed)
    else:
        template = _template(model, classes, seed)
        template.load_state_dict({**template.state_dict(), **pretrained}, assign=True)
        network = _copy_modules(template)
    parts = parts_of(model, network)
    prefix, suffix = nn.Sequential(*parts[: BLOCKS - unfreeze_depth]), nn.Sequential(*parts[BLOCKS - unfreeze_depth :])
    frozen = {id(tensor) for tensor in prefix.state_dict(keep_vars=True).values()}
    for tensor in network.state_dict(keep_vars=True).values():
        if id(tensor) not in frozen:
            tensor.data = tensor.data.clone()
    prefix.requires_grad_(False)
    classifier = Classifier(model, network, prefix, suffix)
    classifier.set_evaluation()
    return classifier


def _build_seeded(model: str, classes: int, seed: int) -> nn.Module:
    with _seeded(seed, "weights"):
        return build_network(model, classes)


@lru_cache(maxsize=1)
def _template(model: str, classes: int, seed: int) -> nn.Module:
    """Return the network of the last call again, for its head, and for the constants that no file holds.

    Drawing the values that a file then replaces takes most of the time of a start.
    """
    return _build_seeded(model, classes, seed)


def _copy_modules(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose tensors are others, but share the values."""
    shared: dict[int, object] = {id(buffer): buffer.detach() for buffer in network.buffers()}
    for parameter in network.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(network, shared)


def _chain(network: nn.Module, paths: tuple[str, ...]) -> nn.Sequential:
    return nn.Sequential(*(nn.Flatten() if path == FLATTEN else network.get_submodule(path) for path in paths))


def head_layers(model: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the layers of the head, the last one first, each with its tensors among `names`."""
    names = [*names]
    if model not in ARCHITECTURES:
        return {last: [name for name in names if name.startswith(f"{last}.")] for last in last_layers(model)}
    blocks = tuple(f"{path}." for paths in ARCHITECTURES[model].blocks for path in paths)
    layers: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(blocks):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return dict(reversed(layers.items()))


def _new_layers(network: nn.Module, layers: Iterable[str], seed: int) -> StateDict:
    """Initialise `layers` of a network without memory, in their order: the last layer's values depend on no other."""
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


def digest_state(state: StateDict) -> str:
    """Return the digest of a state dict: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
