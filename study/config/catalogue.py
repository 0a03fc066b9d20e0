"""Know every model by name: its size, its input and where its weights come from, from a file, without torch.

`models.csv` is made from torchvision and timm by `tests/support/models_csv.py`, and a test compares samples of it with
the networks themselves.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from study.errors import ConfigError

TIMM = "timm/"
"""Begins the names of timm's models; the others are torchvision's."""


@dataclass(frozen=True)
class Entry:
    """What the catalogue says about one model."""

    name: str
    family: str
    """First part of the name, by which the list of models groups them."""
    parameters: int
    """Number of parameters with ImageNet's 1,000 classes."""
    operations: int
    """Multiply-adds of one image at `size`; 0 if they were not counted."""
    size: int
    """Side in pixels of the images that its weights were made for."""
    step: int
    """Number of pixels that divides every side the network accepts; 0 if it accepts `size` alone."""
    smallest: int
    """Smallest side in pixels that the network accepts."""
    problem: str
    """Why the network cannot be fine-tuned here; empty if it can."""
    weights: str
    """torchvision's file of weights, or timm's repository on the Hugging Face hub; empty if there are none."""

    def allows(self, side: int) -> bool:
        """Tell whether the network accepts square images of `side` pixels."""
        return side == self.size or (self.step > 0 and side >= self.smallest and side % self.step == 0)

    def describe_sizes(self) -> str:
        """Name the sides that the network accepts."""
        if self.step == 0:
            return f"{self.size}"
        multiple = f" and a multiple of {self.step}" if self.step > 1 else ""
        return f"at least {self.smallest}{multiple}"


@cache
def catalogue() -> Mapping[str, Entry]:
    """Read the catalogue: every model that can be named, torchvision's first."""
    entries = {}
    with resources.files("study.config").joinpath("models.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            timm = row["name"].startswith(TIMM)
            tags = [tag.partition(":") for tag in row["tags"].split()] if timm else []
            default = row["tags"] if not timm else f"{row['name']}.{tags[0][0]}" if tags else ""
            for tag, _, size in [("", "", ""), *tags]:
                name = f"{row['name']}.{tag}" if tag else row["name"]
                entries[name] = Entry(
                    name=name,
                    family=row["family"],
                    parameters=int(row["parameters"]),
                    operations=int(row["operations"]),
                    size=int(size or row["size"]),
                    step=int(row["step"]),
                    smallest=int(row["smallest"]),
                    problem=row["problem"],
                    weights=name if tag else default,
                )
    return entries


def known_models() -> Mapping[str, Entry]:
    """Return the models that can be fine-tuned."""
    return {name: entry for name, entry in catalogue().items() if not entry.problem}


def own_size(model: str) -> int:
    """Return the side in pixels of the images that a known model's weights were made for."""
    return catalogue()[model].size


def check_size(model: str, side: int) -> None:
    """Check that a known model accepts images of `side` pixels.

    Raises:
        ConfigError: it does not; the message names the sides that it accepts.
    """
    entry = catalogue()[model]
    if not entry.allows(side):
        raise ConfigError(f"image_size: must be {entry.describe_sizes()} for {model}, but got {side}. Or give auto.")
