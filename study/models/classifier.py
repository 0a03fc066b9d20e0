"""Build a classifier of torchvision or timm that is cut in two at an unfreeze depth.

Does not know who trains the suffix or shares the prefix's outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from study.models.state_dict import StateDict
from study.models.untrained import untrained_networks
from study.networks.cut import BLOCKS


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
    untrained = untrained_networks(model, classes, pretrained, seed)
    copied = untrained.take(seed)
    parts = copied.parts
    cut = BLOCKS - unfreeze_depth
    while unfreeze_depth == 0 and not any(True for _ in parts[cut].parameters()):
        cut += 1  # pooling has no weights, and its output is smaller
    prefix, suffix = nn.Sequential(*parts[:cut]), nn.Sequential(*parts[cut:])
    copied.separate(but=prefix)
    prefix.requires_grad_(False)
    prefix.training = suffix.training = False  # as all that they hold is
    return Classifier(model, copied.network, prefix, suffix, untrained.digest, untrained.build_ahead)
