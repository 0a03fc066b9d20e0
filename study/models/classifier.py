"""Build a classifier of torchvision or timm that is cut in two at an unfreeze depth.

`architectures.py` says where 26 networks are cut, and `cut.py` finds the cuts of the others. Does not know who trains
the suffix or shares the prefix's outputs.
"""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from study.errors import WeightsError
from study.limits import free_memory_bytes
from study.models.architectures import ARCHITECTURES, FLATTEN
from study.models.cut import BLOCKS, Segment, trace
from study.models.networks import block_ends, build_network, build_on_meta, last_layers, thin_functions
from study.seeding import derive_seed

StateDict = dict[str, Tensor]
AHEAD_SHARE = 0.1
"""Share of the free memory that the values of the next trial's network may take while the present one trains."""
_TABLES = (dict, OrderedDict)


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

    digest: Callable[[int], str] = field(repr=False)
    """Function that returns the digest of the weights of the first blocks, by their number, before any training."""
    build_ahead: Callable[[int], None] = field(repr=False)
    """Function that builds ahead what `build` will need for a seed and the same weights; any thread may call it."""

    @property
    def prefix_digest(self) -> str:
        """Digest of the prefix's weights, for caches: 16 hexadecimal digits."""
        return self.digest(min(len(self.prefix), BLOCKS))  # a layer behind the fifth block has no weights

    def shorter_prefix(self, unfreeze_depth: int) -> nn.Sequential:
        """Return the frozen blocks of a classifier with a larger unfreeze depth."""
        return self.prefix[: BLOCKS - unfreeze_depth]

    @property
    def larger_depths(self) -> range:
        """Unfreeze depths at which fewer, but some, blocks are frozen."""
        return range(max(0, BLOCKS - len(self.prefix)) + 1, BLOCKS)

    def shorter_digest(self, unfreeze_depth: int) -> str:
        """Return the digest of the weights of `shorter_prefix`."""
        return self.digest(BLOCKS - unfreeze_depth)

    def parameters_from_head(self) -> list[list[nn.Parameter]]:
        """Return the suffix's parameters from the head backwards: those of the head, then those of each block."""
        blocks = max(0, BLOCKS - len(self.prefix))
        parts = [self.suffix[blocks:], *reversed(self.suffix[:blocks])]
        return [[*part.parameters()] for part in parts]

    def trainable_parameters(self) -> int:
        """Return the number of parameters that are trained."""
        return sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)

    def move_to(self, device: torch.device) -> None:
        """Move all tensors to a device; images of a batch are then best laid out channels last, as `build` has them."""
        if next(self.network.parameters()).device == device:
            return
        for part in (self.network, self.prefix, self.suffix):  # the parts hold constants that the network lacks
            # torch does both in one pass, but its types say one at a time
            part.to(device, non_blocking=True, memory_format=torch.channels_last)  # type: ignore[call-overload]

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
            Neither they nor their memory are written to, so it may be read-only, and it must not change afterwards:
            networks of the same weights may share their frozen tensors. None to initialise the whole network as its
            library does.
        seed: seed of the initial values.

    Raises:
        WeightsError: the network cannot be built, or cannot be cut.
    """
    weights = None if pretrained is None else _Weights.of(pretrained)
    untrained = _untrained(model, classes, weights, None if weights else seed)
    copied = untrained.take(seed)
    parts = copied.parts
    cut = BLOCKS - unfreeze_depth
    while unfreeze_depth == 0 and not any(True for _ in parts[cut].parameters()):
        cut += 1  # pooling has no weights, and its output is smaller
    prefix, suffix = nn.Sequential(*parts[:cut]), nn.Sequential(*parts[cut:])
    copied.separate(but=prefix)
    prefix.requires_grad_(False)
    classifier = Classifier(model, copied.network, prefix, suffix, untrained.digest, untrained.build_ahead)
    classifier.set_evaluation()
    return classifier


def parts_of(model: str, network: nn.Module) -> list[nn.Module]:
    """Return the network's five blocks and its head, which in a row compute what it computes.

    Raises:
        WeightsError: the network cannot be cut.
    """
    parts = _cutter(model, network)(network)
    return [*parts[:BLOCKS], nn.Sequential(*parts[BLOCKS:])]


def _cutter(model: str, network: nn.Module) -> Callable[[nn.Module], list[nn.Module]]:
    """Return a function that cuts the network, or a copy of it, into five blocks and the parts of its head."""
    if model in ARCHITECTURES:
        architecture = ARCHITECTURES[model]
        return lambda copied: [
            *(_chain(copied, paths) for paths in architecture.blocks),
            *_chain(copied, architecture.head),
        ]
    try:
        traced = trace(network, block_ends(model, network), last_layers(model), thin_functions(model))
    except WeightsError as error:
        raise WeightsError(f"{model}: {error}. Choose another model.") from error
    return lambda copied: [Segment(copied, part) for part in traced]


@dataclass(frozen=True)
class _Weights:
    """Weights that equal others if they lie in the same memory, which is not given away while either lives."""

    addresses: tuple[tuple[str, int], ...]
    state: StateDict = field(compare=False)

    @classmethod
    def of(cls, state: StateDict) -> "_Weights":
        return cls(tuple((name, tensor.data_ptr()) for name, tensor in state.items()), state)


@dataclass(frozen=True)
class _Copy:
    """A copy of an untrained network, whose tensors share that network's values until they get their own."""

    network: nn.Module
    parts: list[nn.Module]
    """The five blocks, and the parts of the head."""
    shared: frozenset[int]
    """Addresses of the shared values."""

    def separate(self, but: nn.Module) -> None:
        """Give each tensor that still shares its values a copy of them, except those of the module `but`."""
        left_out = {id(tensor) for tensor in but.state_dict(keep_vars=True).values()}
        for tensor in self.network.state_dict(keep_vars=True).values():
            if id(tensor) not in left_out and tensor.data_ptr() in self.shared:
                tensor.data = _clone(tensor.detach())


class _Untrained:
    """Untrained networks of one model and the same weights, of which trials get copies. They stay on the CPU."""

    def __init__(self, model: str, classes: int, weights: _Weights | None) -> None:
        self._model, self._classes, self._weights = model, classes, weights
        self._networks: dict[int, nn.Module] = {}
        """By the seed of their new layers: the last two, for this trial and the next."""
        self._copies: dict[int, _Copy] = {}
        """Copies that were made ahead, by seed."""
        self._cut: Callable[[nn.Module], list[nn.Module]] | None = None
        self._digesting = Lock()
        self._digests: list[str] = []
        """Digests of the weights of the first 1, 2, … blocks, as far as they are known."""

    def take(self, seed: int) -> _Copy:
        """Return a copy of the network of a seed; what was made ahead may have values of its own."""
        return self._copies.pop(seed, None) or self._copy(seed)

    def build_ahead(self, seed: int) -> None:
        """Make the copy that `take` will return, with values of its own if there is memory to spare.

        Another thread may train meanwhile, once the first copy is taken.
        """
        if seed not in self._copies:
            copied = self._copy(seed)
            size = sum(tensor.nbytes for tensor in copied.network.state_dict().values())
            if size <= AHEAD_SHARE * free_memory_bytes():
                copied.separate(but=nn.Sequential())  # the next depth is not known
            self._copies[seed] = copied
        self.digest(BLOCKS)

    def digest(self, blocks: int) -> str:
        """Return the digest of the weights of the first blocks: that of `digest_state` for them in an nn.Sequential."""
        with self._digesting:  # one thread for all: a large network takes seconds
            if blocks > len(self._digests):
                assert self._cut, "a copy must have been taken"
                digest, digests = hashlib.sha256(), []
                for number, part in enumerate(self._cut(next(iter(self._networks.values())))[:BLOCKS]):
                    _feed(digest, part.state_dict(prefix=f"{number}."))
                    digests.append(_shorten(digest))
                self._digests = digests
        return self._digests[blocks - 1] if blocks else _shorten(hashlib.sha256())

    def _copy(self, seed: int) -> _Copy:
        if seed not in self._networks:
            network = _build_untrained(self._model, self._classes, self._weights, seed)
            self._networks = {**dict([*self._networks.items()][-1:]), seed: network}
            for gone in self._copies.keys() - self._networks.keys():
                self._copies.pop(gone, None)  # in place: a copy that another thread takes now must not come back
        if self._cut is None:  # tracing changes nn.Module itself for a moment, so no other thread may train then
            self._cut = _cutter(self._model, self._networks[seed])
        network = _copy_modules(self._networks[seed])
        shared = frozenset(tensor.data_ptr() for tensor in network.state_dict().values())
        return _Copy(network, self._cut(network), shared)


@lru_cache(maxsize=1)
def _untrained(model: str, classes: int, weights: _Weights | None, seed: int | None) -> _Untrained:
    """Return the networks that are copied; those of the last call are kept, since the next trial mostly needs them.

    A seed is given where there are no weights: all values then belong to the seed.
    """
    return _Untrained(model, classes, weights)


def _build_untrained(model: str, classes: int, weights: _Weights | None, seed: int) -> nn.Module:
    if weights and model in ARCHITECTURES:
        network = build_on_meta(model, classes)
        given = {name.rpartition(".")[0] for name in weights.state}
        new = [layer for layer in head_layers(model, network.state_dict()) if layer not in given]
        network.load_state_dict({**_new_layers(network, new, seed), **weights.state}, assign=True)
    else:
        with _Seeded(seed, "weights"):
            network = build_network(model, classes)
        if weights:  # no file holds all of a network's constants
            network.load_state_dict({**network.state_dict(), **weights.state}, assign=True)
    return network.to(memory_format=torch.channels_last)


def _copy_modules(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose tensors are others, but share the values."""
    shared: dict[int, object] = {id(buffer): buffer.detach() for buffer in network.buffers()}
    for parameter in network.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for module in network.modules():  # most attributes are tables of no hooks, which deepcopy copies slowly
        shared |= {id(value): type(value)() for value in vars(module).values() if type(value) in _TABLES and not value}
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
    with _Seeded(seed, "head"):
        for layer in layers:
            fresh = network.get_submodule(layer).to_empty(device="cpu")
            assert isinstance(fresh, nn.Linear | nn.LayerNorm)
            fresh.reset_parameters()
            state |= {f"{layer}.{name}": tensor for name, tensor in fresh.state_dict().items()}
    return state


class _Seeded(TorchDispatchMode):
    """Let all random values that this thread draws come from a generator of its own.

    They are those that the global generator would give with this seed. Another thread may use that one meanwhile.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's __init__ has no types
        self._generator = torch.Generator().manual_seed(derive_seed(seed, purpose))

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch."""
        given = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            if not any(argument.name == "generator" for argument in func._schema.arguments):
                func = func.overloadpacket.generator  # torch.rand, for example
            given = {**given, "generator": self._generator}
        return func(*args, **given)


def _clone(tensor: Tensor) -> Tensor:
    """Return a copy, made in one thread: where others keep the cores busy, torch's threads wait for each other.

    Copying 10 MB of weights between two trials took up to 160 ms in two threads, and takes 3 ms in one. NumPy lets
    other threads run meanwhile, and one that trains keeps its number of threads.
    """
    copied = torch.empty_like(tensor)
    if tensor.is_meta:  # a network without values
        return copied
    np.copyto(copied.numpy(), tensor.numpy())
    return copied


def digest_state(state: StateDict) -> str:
    """Return the digest of a state dict: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    _feed(digest, state)
    return _shorten(digest)


def _feed(digest: "hashlib._Hash", state: StateDict) -> None:
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().numpy().data)


def _shorten(digest: "hashlib._Hash") -> str:
    return digest.hexdigest()[:16]
