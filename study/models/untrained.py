"""Keep the untrained networks that trials get copies of, and make the next trial's copy while one trains.

A process runs trial after trial on the same weights. Copying a network is much faster than building and cutting it.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from study.limits import free_memory_bytes
from study.models.state_dict import StateDict, digest_parts, digest_state
from study.networks.architectures import ARCHITECTURES
from study.networks.cut import BLOCKS
from study.networks.libraries import build_network, build_on_meta
from study.networks.parts import cutter, head_layers
from study.seeding import derive_seed

AHEAD_SHARE = 0.1
"""Share of the free memory that the values of the next trial's network may take while the present one trains."""
_TABLES = (dict, OrderedDict)


@dataclass(frozen=True)
class _Weights:
    """Weights that equal others if they lie in the same memory, which is not given away while either lives."""

    addresses: tuple[tuple[str, int], ...]
    state: StateDict = field(compare=False)

    @classmethod
    def of(cls, state: StateDict) -> "_Weights":
        return cls(tuple((name, tensor.data_ptr()) for name, tensor in state.items()), state)


@dataclass(frozen=True)
class Copy:
    """A copy of an untrained network in evaluation mode, whose tensors share that network's values at first."""

    network: nn.Module
    parts: list[nn.Module]
    """The five blocks, and the parts of the head."""
    shared: frozenset[int]
    """Addresses of the shared values; none if each tensor has its own."""

    def separate(self, but: nn.Module) -> None:
        """Give each tensor that still shares its values a copy of them, except those of the module `but`."""
        if not self.shared:
            return
        left_out = {id(tensor) for tensor in but.state_dict(keep_vars=True).values()}
        for tensor in self.network.state_dict(keep_vars=True).values():
            if id(tensor) not in left_out and tensor.data_ptr() in self.shared:
                tensor.data = _clone(tensor.detach())


class Untrained:
    """Untrained networks of one model and the same weights, of which trials get copies. They stay on the CPU."""

    def __init__(self, model: str, classes: int, weights: _Weights | None) -> None:
        """Build nothing yet: networks are built for the first copies of them."""
        self._model, self._classes, self._weights = model, classes, weights
        self._networks: dict[int, nn.Module] = {}
        """By the seed of their new layers: the last two, for this trial and the next."""
        self._copies: dict[int, Copy] = {}
        """Copies that were made ahead, by seed."""
        self._cut: Callable[[nn.Module], list[nn.Module]] | None = None
        self._digesting = Lock()
        self._digests: list[str] = []
        """Digests of the weights of the first 1, 2, … blocks, as far as they are known."""

    def take(self, seed: int) -> Copy:
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
                copied = replace(copied, shared=frozenset())
            self._copies[seed] = copied
        self.digest(BLOCKS)

    def digest(self, blocks: int) -> str:
        """Return the digest of the weights of the first blocks: that of `digest_state` for them in an nn.Sequential."""
        with self._digesting:  # one thread for all: a large network takes seconds
            if blocks > len(self._digests):
                assert self._cut, "a copy must have been taken"
                self._digests = digest_parts(self._cut(next(iter(self._networks.values())))[:BLOCKS])
        return self._digests[blocks - 1] if blocks else digest_state({})

    def _copy(self, seed: int) -> Copy:
        if seed not in self._networks:
            network = _build_untrained(self._model, self._classes, self._weights, seed)
            self._networks = {**dict([*self._networks.items()][-1:]), seed: network}
            for gone in self._copies.keys() - self._networks.keys():
                self._copies.pop(gone, None)  # in place: a copy that another thread takes now must not come back
        if self._cut is None:  # tracing changes nn.Module itself for a moment, so no other thread may train then
            self._cut = cutter(self._model, self._networks[seed])
        network = _copy_modules(self._networks[seed])
        shared = frozenset(tensor.data_ptr() for tensor in network.state_dict().values())
        parts = self._cut(network)
        for module in (network, *parts):  # the code around the parts asks the network itself for its mode
            module.eval()
        return Copy(network, parts, shared)


def untrained_networks(model: str, classes: int, pretrained: StateDict | None, seed: int) -> Untrained:
    """Return the untrained networks of a model; those of the last call are kept: the next trial mostly needs them.

    Args:
        model: name in the catalogue.
        classes: number of outputs.
        pretrained: weights, which must not change while a network shares them; None for none.
        seed: seed of the copy that will be taken. Without weights all values belong to it.
    """
    weights = None if pretrained is None else _Weights.of(pretrained)
    return _keep(model, classes, weights, None if weights else seed)


@lru_cache(maxsize=1)
def _keep(model: str, classes: int, weights: _Weights | None, seed: int | None) -> Untrained:
    return Untrained(model, classes, weights)


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
