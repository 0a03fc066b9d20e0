"""Make study/config/models.csv, from the libraries alone, without weights.

`python tests/support/models_csv.py > new.csv` measures every model, which takes hours. With the argument `operations`,
it copies the file but for its multiply-adds, which it counts anew in less than an hour, because it cuts no network and
tries no sizes. Sizes depend on the two networks of a family that are measured first, and some were corrected by hand,
such as 378 px for the two SigLIP networks that are named 384, which 14 does not divide: compare a new file with the old
one, and keep those.
"""

import csv
import re
import sys
import warnings
from collections import defaultdict
from importlib import resources
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as torchvision_models
from torchvision.models import get_model_builder, list_models

from study.errors import WeightsError
from study.networks.libraries import build_on_meta, default_weights, preset, timm_config
from study.networks.parts import parts_of

FIELDS = ("name", "family", "parameters", "operations", "size", "step", "smallest", "tags", "problem")
STEPS = (1, 2, 4, 8, 14, 16, 32, 64)
SMALLEST = (32, 64, 96, 128)
KIN: dict[tuple[Any, ...], list[dict[str, int]]] = defaultdict(list)


def describe(name: str) -> dict[str, Any]:
    """Measure one model on the meta device: a row of the file, but for its tags."""
    if name.startswith("timm/"):
        family = timm.models.model_entrypoint(name.removeprefix("timm/")).__module__.rpartition(".")[2]
    else:
        family = get_model_builder(name).__module__.rpartition(".")[2]
    row = {"name": name, "family": family, "parameters": 0, "operations": 0, "size": 0, "step": 0, "smallest": 0}
    row |= {"tags": "", "problem": ""}
    try:
        size = preset(name).size
        network = build_on_meta(name, 1000).requires_grad_(False).eval()
        row |= {"size": size, "smallest": size, "parameters": sum(p.numel() for p in network.parameters())}
        whole = nn.Sequential(*parts_of(name, network)).eval()
        run(whole, size)
        row["operations"] = count_operations(network, size)
        row |= sizes_of_kin(name, family, whole, size)
    except Exception as error:
        reason = str(error).partition("\n")[0].removeprefix(f"{name}: ").removesuffix(". Choose another model.")
        row["problem"] = reason if isinstance(error, WeightsError) else f"does not run here: {reason}"
    return row


def count_operations(network: nn.Module, size: int) -> int:
    """Count the multiply-adds of one image in a network without memory."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def count_again() -> None:
    """Copy the file with its multiply-adds counted anew."""
    table = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    table.writeheader()
    with resources.files("study.config").joinpath("models.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["problem"]:
                network = build_on_meta(row["name"], 1000).requires_grad_(False).eval()
                row["operations"] = str(count_operations(network, int(row["size"])))
            table.writerow(row)
            sys.stdout.flush()


def run(whole: nn.Sequential, size: int) -> None:
    with torch.inference_mode():
        outputs = torch.empty(2, 3, size, size, device="meta")
        for part in whole:
            outputs = part(outputs)
            if not isinstance(outputs, torch.Tensor):
                raise WeightsError("cannot be cut where one tensor is passed on")
    if outputs.shape != (2, 1000):
        raise WeightsError(f"gives {tuple(outputs.shape)} instead of one logit per class")


def sizes_of_kin(name: str, family: str, whole: nn.Sequential, size: int) -> dict[str, int]:
    """Find the allowed sizes, for two networks of a family and patch size; if they agree, for all of them."""
    fixed = name.startswith("timm/") and timm_config(name).get("fixed_input_size")
    kin = KIN[family, fixed, *re.findall(r"patch\d+|_\d+$", name)]
    if len(kin) >= 2 and kin[0] == kin[1]:
        return kin[0]
    kin.append(allowed_sizes(whole, size))
    return kin[-1]


def allowed_sizes(whole: nn.Sequential, size: int) -> dict[str, int]:
    if not any(runs(whole, side) for side in (size + 64, size + 56, size - 56, size - 64)):
        return {}
    for smallest in SMALLEST:
        for step in STEPS:
            first = -(-smallest // step) * step
            if first <= size and all(runs(whole, side) for side in (first, size // step * step + step)):
                return {"step": step, "smallest": first}
    return {}


def runs(whole: nn.Sequential, side: int) -> bool:
    try:
        run(whole, side)
    except Exception:
        return False
    return True


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1:] == ["operations"]:
        return count_again()
    tags = defaultdict(list)
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        tags[name].append(tag)
    for name, found in tags.items():  # the tag that timm takes where none is given comes first
        found.sort(key=lambda tag: tag != timm.models.get_pretrained_cfg(name).tag)
    table = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    table.writeheader()
    names = [*list_models(module=torchvision_models), *(f"timm/{name}" for name in timm.list_models())]
    shard, shards = (int(value) for value in sys.argv[1:]) if len(sys.argv) > 1 else (0, 1)
    for name in names[shard::shards]:
        row = describe(name)
        own = [] if name.startswith("timm/") else [default_weights(name).url.rpartition("/")[2]]
        for tag in tags[name.removeprefix("timm/")] if name.startswith("timm/") else []:
            size = preset(f"{name}.{tag}").size
            own.append(tag if size == row["size"] else f"{tag}:{size}")
        table.writerow(row | {"tags": " ".join(own)})
        sys.stdout.flush()


if __name__ == "__main__":
    main()
