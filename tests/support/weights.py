"""Make, copy, compare and train weights of networks for tests."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import get_model

from study.models.classifier import Classifier
from study.models.state_dict import StateDict
from study.networks.architectures import ARCHITECTURES

SMALL = "mobilenet_v3_small"
SMALL_LAST = ("classifier.3.weight", "classifier.3.bias")


def new_state(model: str) -> StateDict:
    """Make weights for 1,000 classes, like torchvision's files, with BatchNorm statistics other than 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = get_model(model).state_dict()
        for name, tensor in state.items():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return dict(state)


def backbone(model: str, state: StateDict) -> StateDict:
    """Return the tensors of a state dict but for those of the last layer."""
    return {
        name: tensor for name, tensor in state.items() if not name.startswith(ARCHITECTURES[model].last_layer + ".")
    }


def shapes(model: str) -> StateDict:
    """Make a backbone's state dict without memory for its tensors."""
    with torch.device("meta"):
        return backbone(model, get_model(model).state_dict())


def train_one_step(classifier: Classifier, images: Tensor) -> None:
    """Train the suffix on one batch, of one class per image."""
    classifier.set_training()
    trained = [parameter for parameter in classifier.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained)
    cross_entropy(classifier.suffix(classifier.prefix(images)), torch.arange(len(images))).backward()
    optimizer.step()


def copy_of(state: StateDict) -> StateDict:
    """Return a state dict of copied tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def changed(before: StateDict, after: StateDict) -> set[str]:
    """Return the names of tensors of `before` that differ in `after`."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


class CountCopies(TorchDispatchMode):
    """Count the tensors that are made for values of other tensors."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.copies += func.overloadpacket in (torch.ops.aten.empty_like, torch.ops.aten.clone)
        return func(*args, **(kwargs or {}))
