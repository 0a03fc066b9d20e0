"""Run a batch forward and backward: kernel by kernel, or on a GPU, where asked for, as one CUDA graph.

Knows no epochs and no optimizer.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.augmentation.mixing import Targets
from study.compute.hardware import Hardware
from study.environment import CUDA_GRAPHS
from study.errors import first_line

Pass = Callable[[Tensor, Targets], tuple[Tensor, Tensor]]
"""Function of a batch (n, ...) and its targets that sets the gradients of the trained weights, and returns the loss and
the number of right predictions, both () on the device."""


@dataclass(frozen=True)
class PlainPass:
    """A forward and a backward pass, kernel by kernel."""

    suffix: nn.Module
    """Trained blocks and head, in training mode."""
    weights: Tensor | None
    """Weight of each class in the loss, (classes,) on the device; None if all count the same."""
    label_smoothing: float
    hardware: Hardware

    def __call__(self, batch: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Run a batch, as `Pass` says."""
        with self.hardware.autocast():
            logits = self.suffix(batch).float()
            loss = target.loss(logits, self.weights, self.label_smoothing)
        for parameter in self.suffix.parameters():
            parameter.grad = None
        loss.backward()
        return loss.detach(), target.right(logits.detach())


class GraphedPass:
    """A pass that was captured once as a CUDA graph, and is replayed for other batches of the same shape."""

    def __init__(self, run: Pass, suffix: nn.Module, batch: Tensor, target: Targets) -> None:
        """Capture `run`, which has run before on a batch of this shape; nothing is computed yet."""
        self._batch = torch.empty_like(batch)
        self._target = target.map(torch.empty_like)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = run(self._batch, self._target)
        self._gradients = [(parameter, parameter.grad) for parameter in suffix.parameters()]

    def __call__(self, batch: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Replay the graph on a batch, as `Pass` says; the next call overwrites what this one returns."""
        for static, given in zip(self._target.tensors(), target.tensors(), strict=True):
            static.copy_(given, non_blocking=True)
        self._batch.copy_(batch, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._gradients:  # a plain pass between two replays has set others
            parameter.grad = gradient
        return self._results


class Passes:
    """Run batches plainly; with graphs, replay those that have the first batch's shape, if a replay gives the same.

    Whether it does is tried once, on the first batch: losses, gradients and buffers must be equal, and the
    plain pass's are the ones that count. Kernels are deterministic, so any difference shows a mistake.
    """

    def __init__(self, plain: PlainPass, *, graphs: bool) -> None:
        """Run batches by `plain`; `graphs` asks for CUDA graphs."""
        self.failure: str | None = None
        """Why no graph is replayed although it was asked for; None if one is, or if none was asked for."""
        self._plain = plain
        self._graphs = graphs
        self._graphed: GraphedPass | None = None
        self._shape: torch.Size | None = None

    def __call__(self, batch: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Run a batch, as `Pass` says."""
        if not self._graphs:
            return self._plain(batch, target)
        if self._shape is None:
            self._shape = batch.shape
            return self._try(batch, target)
        if self._graphed and batch.shape == self._shape:
            return self._graphed(batch, target)
        return self._plain(batch, target)

    def _try(self, batch: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Run the first batch plainly, and keep a graph of it if its replay gives the same."""
        suffix = self._plain.suffix
        buffers, random = [*suffix.buffers()], torch.cuda.get_rng_state(batch.device)
        before = [buffer.clone() for buffer in buffers]
        results = self._plain(batch, target)
        random_after = torch.cuda.get_rng_state(batch.device)
        gradients = [parameter.grad for parameter in suffix.parameters()]
        after = [buffer.clone() for buffer in buffers]
        try:
            _restore(buffers, before)
            graphed = GraphedPass(self._plain, suffix, batch, target)
            torch.cuda.set_rng_state(random, batch.device)
            replayed = graphed(batch, target)
            again = [parameter.grad for parameter in suffix.parameters()]
            if same_values([*results, *gradients, *after], [*replayed, *again, *buffers]):
                self._graphed = graphed
            else:
                self.failure = "a replayed batch differs from a plain one"
        except Exception as error:  # an operation that waits for the GPU cannot be captured; CUDA says so in many ways
            self.failure = first_line(error)
        _restore(buffers, after)
        torch.cuda.set_rng_state(random_after, batch.device)
        for parameter, gradient in zip(suffix.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return results


def graphs_wanted(device: torch.device) -> bool:
    """Return whether the environment asks for CUDA graphs and the device has them."""
    return device.type == "cuda" and os.environ.get(CUDA_GRAPHS) == "1"


@torch.no_grad()
def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def same_values(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Return whether all values are equal; a NaN, which a bad recipe gives, equals itself. None equals None alone."""
    checks = []
    for one, other in zip(some, others, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        else:
            checks.append(((one == other) | (one.isnan() & other.isnan())).all())
    return bool(torch.stack(checks).all())  # waits for the device once
