"""A trial's trained weights and optimizer on disk, so that a process that dies costs a minute of training at most.

Knows no trial: a path, an owner and how often. Files are safetensors, which cannot hold code.
"""

import errno
import json
import os
import secrets
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
from study.models import Classifier

SAVE_EVERY_S = 60.0
"""Seconds of training that may be lost: what takes less is not worth a file."""


@dataclass
class Checkpoint:
    """Where one trial keeps its state between epochs."""

    path: Path
    owner: str
    """Names the study and the trial; the file of another owner is passed over."""
    every_s: float = SAVE_EVERY_S
    _since: float = field(default_factory=time.monotonic)

    def restore(
        self,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer | None = None,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> int:
        """Bring all three to the last saved state and return after which epoch that was; 0 where there is no sound one.

        Weights that were saved alone, after the last epoch, leave optimizer and schedule as they are.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads(file.metadata()["study"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        except Exception:  # there is none, or damage, which makes the readers raise almost anything
            return 0
        if facts["owner"] != self.owner:
            return 0
        classifier.suffix.load_state_dict(_below("suffix.", tensors))
        if optimizer and schedule and facts["optimizer"]:
            state = _nest(_below("optimizer.", tensors), _parameters(optimizer))
            optimizer.load_state_dict({**facts["optimizer"], "state": state})
            schedule.load_state_dict(facts["schedule"])
        epoch: int = facts["epoch"]
        return epoch

    def save_if_due(
        self,
        epoch: int,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Save the state after `epoch` if more than `every_s` would be lost without; what cannot be costs a warning."""
        if time.monotonic() - self._since < self.every_s:
            return
        try:
            self.save(epoch, classifier, optimizer, schedule)
        except RecordError as error:
            warnings.warn(f"{error} Training goes on.", stacklevel=2)

    def save(
        self,
        epoch: int,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer | None = None,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        """Save the state after `epoch`; without an optimizer the weights alone.

        A place that may not be written costs a warning only: on another machine it need not be there.

        Raises:
            RecordError: the disk is full.
        """
        tensors = {f"suffix.{name}": tensor for name, tensor in classifier.suffix.state_dict().items()}
        facts: dict[str, Any] = {"owner": self.owner, "epoch": epoch, "optimizer": None, "schedule": None}
        if optimizer and schedule:
            state = optimizer.state_dict()
            for index, values in state.pop("state").items():
                tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
            facts |= {"optimizer": state, "schedule": schedule.state_dict()}
        partial = self.path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                flat = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
                save_file(flat, partial, {"study": json.dumps(facts)})
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)
        except Exception as error:  # safetensors has exceptions of its own for a full disk
            if _is_full(error):
                raise RecordError(f"{self.path}: must have room, but got: {error}.") from error
            warnings.warn(f"{self.path}: must be writable, but got: {error}. Training goes on.", stacklevel=2)
        finally:
            self._since = time.monotonic()


def _is_full(error: Exception) -> bool:
    """Tell whether a disk, or its user's share of it, is full; safetensors says so in words alone."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _nest(tensors: dict[str, Tensor], parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    """Turn '3.exp_avg' into [3]['exp_avg'], as optimizers want it.

    What belongs to a parameter's values lies in memory as they do: fused optimizers go through both side by side.
    """
    nested: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)].detach()
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)
        nested.setdefault(int(index), {})[key] = tensor
    return nested
