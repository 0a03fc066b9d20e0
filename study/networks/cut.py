"""Cut any network into five blocks and a last layer, along its graph as `torch.fx` traces it.

The graph is traced no deeper than the cuts need, so that blocks run their own code, with their own dropout and
drop-path. Does not know where a network or its weights come from.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from study.errors import WeightsError

BLOCKS = 5
BEFORE = "<"
"""Begins an end that lies right before a module instead of after it."""
_RANDOM = ("drop", "bernoulli", "rand")
"""Parts of the names, in lower case, of functions and classes whose outputs are random in training."""
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "setitem")
"""Names of functions that overwrite their first argument, besides those that end with an underscore."""


class Part(NamedTuple):
    """A part of a network as code, which runs on any copy of the network that was traced."""

    targets: tuple[str, ...]
    """Paths of the modules and tensors that it uses."""
    run: Mapping[bool, Callable[[nn.Module, Tensor], Tensor]]
    """The code for training and, under False, for evaluation: the code around the blocks may depend on the mode."""


class Segment(nn.Module):
    """A part of a network: it shares the network's modules and tensors, under the network's names."""

    def __init__(self, network: nn.Module, part: Part) -> None:
        """Share the modules and tensors of `network` that the part uses."""
        super().__init__()
        for target in part.targets:
            _share(network, self, target)
        self._run = part.run

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the outputs of the part before to those of this part."""
        return self._run[self.training](self, inputs)


def trace(
    network: nn.Module,
    ends: Sequence[str],
    last_layers: Collection[str],
    opaque: tuple[Callable[..., Any], ...] = (),
) -> list[Part]:
    """Find five blocks and the last layer of a network; in a row, they compute what the network computes.

    Modules between the last block and the last layer, such as a norm and the pooling, belong to the fifth block, so
    the inputs of the last part are the pooled features.

    Args:
        network: network with its final tensors: their values may become constants of the code. A segment does not see
            tensors that replace those of its network later.
        ends: modules at which blocks may end, in the order of the forward pass: four, or more to choose from.
        last_layers: modules that map features to logits: one, or several whose outputs are averaged.
        opaque: functions of the network's own module that are called as a whole, not traced into.

    Raises:
        WeightsError: the network cannot be cut into five blocks; the message says why.
    """
    mode = network.training
    graphs = {}
    try:
        for training in (True, False):
            network.train(training)
            graphs[training] = _cut_graph(network, ends, last_layers, opaque)
    except WeightsError:
        raise
    except Exception as error:  # tracing runs the network's own code, which raises any kind of error
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"cannot be cut into blocks: {type(error).__name__}: {reason}") from error
    finally:
        network.train(mode)
    return [_part(*pair) for pair in zip(graphs[True], graphs[False], strict=True)]


class _Tracer(fx.Tracer):
    """Traces into the modules that contain one of `inner`, and into no others."""

    def __init__(self, inner: Iterable[str], opaque: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=opaque, param_shapes_constant=True)
        self._opened = {name[:at] for name in inner for at, letter in enumerate(name) if letter == "."}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._opened


def _cut_graph(
    network: nn.Module, ends: Sequence[str], last_layers: Collection[str], opaque: tuple[Callable[..., Any], ...]
) -> list[fx.Graph]:
    """Trace the network in its present mode, and return the graphs of its six parts."""
    inputs = inspect.signature(network.forward).parameters.values()
    optional = {given.name: given.default for given in inputs if given.default is not given.empty}
    graph = _Tracer([*ends, *last_layers], opaque).trace(network, concrete_args=optional)
    for node in reversed([*graph.nodes]):
        if not node.users and node.op not in ("placeholder", "output") and not _is_in_place(network, node):
            graph.erase_node(node)  # checks of shapes, for instance
    nodes = [*graph.nodes]
    varying = _varying(nodes)
    legal = _legal_cuts(network, nodes, varying)
    head = _head_start(network, nodes, varying, last_layers)
    before_head = [at for at in legal if at < head]
    cuts = _block_ends(nodes, before_head, ends)
    return [_copy_nodes(nodes, varying, start, end) for start, end in pairwise([0, *cuts, len(nodes) - 1])]


def _varying(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes whose values depend on the network's input, the first node."""
    varying = {nodes[0]}
    for node in nodes:
        if not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return varying


def _legal_cuts(network: nn.Module, nodes: Sequence[fx.Node], varying: Collection[fx.Node]) -> list[int]:
    """Return the places of the nodes whose value alone is needed after them, and is not overwritten there."""
    place = {node: at for at, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    legal = []
    alive: set[fx.Node] = set()
    for at, node in enumerate(nodes):
        alive = {value for value in alive if last_use[value] > at}
        if node in varying and last_use[node] > at:
            alive.add(node)
        if alive == {node} and not any(_is_in_place(network, user) for user in node.users):
            legal.append(at)
    return legal


def _block_ends(nodes: Sequence[fx.Node], legal: Sequence[int], ends: Sequence[str]) -> list[int]:
    """Return the places after which the five blocks end, evenly chosen from `ends`; the last one is the last legal."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        if node.op == "call_module":
            first.setdefault(str(node.target), at)
            last[str(node.target)] = at
    places = []
    for end in ends:
        if end.startswith(BEFORE) and (call := first.get(end.removeprefix(BEFORE))) is not None:
            places += [at for at in legal[:-1] if at < call][-1:]
        elif end in last:
            places += [at for at in legal[:-1] if at >= last[end]][:1]
    places = [*dict.fromkeys(places)]
    if len(places) < BLOCKS - 1:
        raise WeightsError(f"cannot be cut into {BLOCKS} blocks, but only into {len(places) + 1}")
    if len(places) > BLOCKS - 1:
        places = [places[round(len(places) * block / BLOCKS) - 1] for block in range(1, BLOCKS)]
    return [*places, legal[-1]]


def _head_start(
    network: nn.Module, nodes: Sequence[fx.Node], varying: Collection[fx.Node], last_layers: Collection[str]
) -> int:
    """Return the place of the first last layer, or of the dropout right before it."""
    inside = tuple(f"{layer}." for layer in last_layers)
    names = [f"{node.target}." if node.op == "call_module" else "" for node in nodes]
    start = next((at for at, name in enumerate(names) if name.startswith(inside)), None)
    if start is None:
        raise WeightsError(f"cannot be cut before its last layer {' and '.join(last_layers)}")
    head = start
    for at in range(start - 1, 0, -1):
        if nodes[at] in varying and _has_weights(network, nodes[at]):
            break
        if _is_random(network, nodes[at]):
            head = at
    return head


def _copy_nodes(nodes: Sequence[fx.Node], varying: Collection[fx.Node], start: int, end: int) -> fx.Graph:
    """Copy the nodes after place `start`, up to `end`, with the constants that they use."""
    graph = fx.Graph()
    copies = {nodes[start]: graph.placeholder("inputs")}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            for needed in node.all_input_nodes:
                copy(needed)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    for node in nodes[start + 1 : end + 1]:
        if node in varying and node.op != "output":
            copy(node)
    if nodes[end].op == "output":
        graph.output(fx.map_arg(nodes[end].args[0], copy))
    else:
        graph.output(copies[nodes[end]])
    return graph


def _part(training: fx.Graph, evaluation: fx.Graph) -> Part:
    nodes = (*evaluation.nodes, *training.nodes)
    targets = dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr"))
    return Part((*targets,), {True: _compile(training), False: _compile(evaluation)})


def _compile(graph: fx.Graph) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return the graph as a function of the segment and its inputs."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    run: Callable[[nn.Module, Tensor], Tensor] = names["forward"]
    return run


def _share(network: nn.Module, segment: nn.Module, path: str) -> None:
    """Register the module or tensor at a dotted path of the network in the segment, under the same path."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in segment._modules:
            segment.add_module(parent, nn.Module())
        segment, network = segment.get_submodule(parent), network.get_submodule(parent)
    shared = getattr(network, name)
    if isinstance(shared, nn.Module):
        segment.add_module(name, shared)
    elif isinstance(shared, nn.Parameter):
        segment.register_parameter(name, shared)
    else:
        persistent = name in network._buffers and name not in network._non_persistent_buffers_set
        segment.register_buffer(name, shared, persistent=persistent)


def _has_weights(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(True for _ in network.get_submodule(str(node.target)).parameters())
    return any(needed.op == "get_attr" for needed in node.all_input_nodes)


def _is_random(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        modules = network.get_submodule(str(node.target)).modules()
        return any(word in type(module).__name__.lower() for module in modules for word in _RANDOM)
    return node.op != "placeholder" and any(word in _name(node) for word in _RANDOM)


def _is_in_place(network: nn.Module, node: fx.Node) -> bool:
    """Tell whether an operation overwrites its input."""
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    name = _name(node)
    return bool(node.kwargs.get("inplace")) or name in _IN_PLACE or name.endswith("_")


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).lower()
