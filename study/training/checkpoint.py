"""Save a trial's trained weights and optimizer to disk, so that a trial whose process dies can continue.

This module does not know trials. It needs a path, an owner and an interval between saves. The files are safetensors,
which cannot contain code.
"""

import errno
import json
import re
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from study.errors import RecordError
from study.files import replace_file
from study.models.classifier import Classifier
from study.training.updates import Updates

SAVE_EVERY_S = 60.0
"""Minimum seconds between two saves. Repeating less training than that is cheaper than writing a file."""


@dataclass
class Checkpoint:
    """The file that keeps one trial's state between epochs."""

    path: Path
    owner: str
    """Name of the study and the trial. A file of another owner is ignored."""
    former_owner: re.Pattern[str] | None = None
    """Pattern of the owner's name in files of version 0.1.0; None where there are no such files."""
    every_s: float = SAVE_EVERY_S
    """Minimum seconds between two saves."""
    _since: float = field(default_factory=time.monotonic)

    def restore(self, classifier: Classifier, updates: Updates | None = None) -> int:
        """Load the last saved state and return its epoch, or 0 if there is no valid file of this owner.

        Weights that were saved without updates, after the last epoch, leave the updates unchanged.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = json.loads(file.metadata()["study"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # `file` is no dict
        except Exception:  # no file, or a damaged one, for which the readers raise almost any exception
            return 0
        if not self._owns(metadata["owner"]):
            return 0
        classifier.suffix.load_state_dict(_below("suffix.", tensors))
        if updates and metadata["optimizer"]:
            state = _nest(_below("optimizer.", tensors), _parameters(updates.optimizer))
            updates.optimizer.load_state_dict({**metadata["optimizer"], "state": state})
            updates.schedule.load_state_dict(metadata["schedule"])
            if updates.average:
                updates.average.load_state_dict(_below("average.", tensors), metadata["averaged_steps"])
        epoch: int = metadata["epoch"]
        return epoch

    def _owns(self, owner: str) -> bool:
        former = self.former_owner is not None and self.former_owner.fullmatch(owner) is not None
        return owner == self.owner or former

    def save_if_due(self, epoch: int, classifier: Classifier, updates: Updates) -> None:
        """Save the state after `epoch` if the last save was `every_s` or more ago. A failed save causes a warning."""
        if time.monotonic() - self._since < self.every_s:
            return
        try:
            self.save(epoch, classifier, updates)
        except RecordError as error:
            warnings.warn(f"{error} Training continues.", stacklevel=2)

    def save(self, epoch: int, classifier: Classifier, updates: Updates | None = None) -> None:
        """Save the state after `epoch`; without updates, save the weights alone.

        A path that cannot be written causes only a warning: on another machine the directory may not exist.

        Raises:
            RecordError: the disk is full.
        """
        tensors = {f"suffix.{name}": tensor for name, tensor in classifier.suffix.state_dict().items()}
        metadata: dict[str, Any] = {"owner": self.owner, "epoch": epoch, "optimizer": None, "schedule": None}
        if updates:
            state = updates.optimizer.state_dict()
            for index, values in state.pop("state").items():
                tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
            metadata |= {"optimizer": state, "schedule": updates.schedule.state_dict()}
            if updates.average:
                tensors |= {f"average.{name}": tensor for name, tensor in updates.average.state_dict().items()}
                metadata["averaged_steps"] = updates.average.steps
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as draft:
                flat = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
                save_file(flat, draft, {"study": json.dumps(metadata)})
        except Exception as error:  # safetensors reports a full disk with its own exception class
            if _is_full(error):
                raise RecordError(f"{self.path}: must have room, but got: {error}.") from error
            warnings.warn(f"{self.path}: must be writable, but got: {error}. Training continues.", stacklevel=2)
        finally:
            self._since = time.monotonic()


def _is_full(error: Exception) -> bool:
    """Return whether the disk or the user's quota is full. safetensors gives the error code only in its message."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _nest(tensors: dict[str, Tensor], parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    """Turn the key '3.exp_avg' into [3]['exp_avg'], the form that optimizers expect.

    A tensor with the shape of its parameter gets the parameter's memory layout, because fused optimizers step through
    the memory of both together.
    """
    nested: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)].detach()
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)
        nested.setdefault(int(index), {})[key] = tensor
    return nested
