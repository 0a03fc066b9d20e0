"""Cut a network of the catalogue into five blocks and a head.

`architectures.py` says where 26 networks are cut, and `cut.py` finds the cuts of the others.
"""

from collections.abc import Callable, Iterable

from torch import nn

from study.errors import WeightsError
from study.networks.architectures import ARCHITECTURES, FLATTEN
from study.networks.cut import BLOCKS, Segment, trace
from study.networks.libraries import block_ends, last_layers, thin_functions


def parts_of(model: str, network: nn.Module) -> list[nn.Module]:
    """Return the network's five blocks and its head, which in a row compute what it computes.

    Raises:
        WeightsError: the network cannot be cut.
    """
    parts = cutter(model, network)(network)
    return [*parts[:BLOCKS], nn.Sequential(*parts[BLOCKS:])]


def cutter(model: str, network: nn.Module) -> Callable[[nn.Module], list[nn.Module]]:
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


def _chain(network: nn.Module, paths: tuple[str, ...]) -> nn.Sequential:
    return nn.Sequential(*(nn.Flatten() if path == FLATTEN else network.get_submodule(path) for path in paths))
