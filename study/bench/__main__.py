"""Measure the speed of a study on this machine, in one run: `python -m study.bench [--quick] [--json FILE]`.

Parts 1 and 4 (`training.py`) need torch, torchvision, pydantic, safetensors, platformdirs, filelock and their
dependencies; parts 2, 3 and 5 (`orchestration.py`), part 6 (`large_data.py`) and part 7 (`answer.py`) need Ray, Optuna
and MLflow as well. Part 7 also needs timm, and weights and images beside the checkout.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from study.bench.training import Figure, measure_augmentation, measure_training
from study.command_line import Parser
from study.compute.hardware import Hardware, choose_hardware
from study.config.load_toml import load_baseline
from study.files import scratch_directory

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")
OTHER_MODELS = ("timm/efficientnet_b0", "timm/vit_tiny_patch16_224")
"""Networks of other kinds that part 1 measures besides the assignment's: convolutions by depth, and attention."""
QUICK_MODEL = "resnet18"
ALL_PARTS = (1, 2, 3, 4, 5, 6, 7)
QUICK_PARTS = (1, 4)


@dataclass(frozen=True)
class Goal:
    """A bound for one result of a part, and the measured value."""

    part: int
    what: str
    value: float
    bound: float
    at_least: bool
    """Whether `bound` is the least value that meets the goal; otherwise `bound` is the greatest."""

    @property
    def met(self) -> bool:
        """Whether the value meets the goal."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    parts = options.parts or (QUICK_PARTS if options.quick else ALL_PARTS)
    started = time.time()
    figures: list[Figure] = []
    hardware = choose_hardware("auto")
    on_gpu = hardware.device.type == "cuda"
    with scratch_directory() as folder:
        for part in parts:
            print(f"part {part} …", file=sys.stderr, flush=True)
            measured = _measure(part, folder, quick=options.quick, hardware=hardware, drawing=options.figure)
            print(
                "\n".join(f"  {figure.name}: {_digits(figure.median)} {figure.unit}" for figure in measured),
                file=sys.stderr,
            )
            figures += measured
    goals = judge(figures, on_gpu=on_gpu)
    machine, date = describe_machine(hardware), time.strftime("%Y-%m-%d", time.gmtime(started))
    print(format_tables(figures, goals, machine, date))
    if options.json:
        result = {
            "date": date,
            "seconds": round(time.time() - started),
            "machine": machine,
            "figures": [{**asdict(figure), "n": figure.n, "median": figure.median} for figure in figures],
            "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def build_parser() -> Parser:
    """Build the parser of `python -m study.bench`."""
    parser = Parser(prog="python -m study.bench", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="parts 1 and 4 for ResNet18: two minutes on two cores; with --parts 7, ten minutes for that part",
    )
    parser.add_argument(
        "--parts", type=_parts, metavar="1,2,…", help="parts to measure (default: all seven; with --quick, 1 and 4)"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE.png", help="draw accuracy by time, which part 7 measures, in this file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return parser


def _parts(text: str) -> tuple[int, ...]:
    parts = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if not set(parts) <= {*ALL_PARTS}:
        raise argparse.ArgumentTypeError(f"must be numbers from 1 to {ALL_PARTS[-1]}, but got {text!r}")
    return parts


def _measure(part: int, folder: Path, *, quick: bool, hardware: Hardware, drawing: Path | None) -> list[Figure]:
    on_gpu = hardware.device.type == "cuda"
    if part == 1 and quick:
        # In two minutes, two cores run the assignment's loop once a round, and train on only one batch without bf16.
        count = 512 if on_gpu else 192 if hardware.precision == "bf16" else 64
        return measure_training(QUICK_MODEL, folder, images=count, without=("as written, memory kept",))
    if part == 1:
        # Few images on a CPU, where the assignment's loop takes a third of a second per image with VGG16.
        images = {"resnet18": 512, "vgg16": 128}
        assigned = load_baseline().models
        return [
            figure
            for model in (*assigned, *OTHER_MODELS)
            for figure in measure_training(
                model,
                folder,
                images=4096 if on_gpu else images.get(model, 256),
                without=() if model in assigned else ("as written", "as written, memory kept"),
            )
        ]
    if part == 4:
        return measure_augmentation(5000)
    from study.bench import large_data, orchestration

    match part:
        case 2:
            return orchestration.measure_search(folder, images=4096 if on_gpu else 128)
        case 3:
            return orchestration.measure_orchestration(folder, trials=50, stock_trials=10)
        case 5:
            return orchestration.measure_growth(folder, marks=(10, 100, 1000))
        case 7:
            return _measure_answer(folder, quick=quick, hardware=hardware, drawing=drawing)
        case _:
            return large_data.measure_large_data(
                folder, few=100, many=10_000, photos=2000, trained=4096 if on_gpu else 512, grown=40_000
            )


def _measure_answer(folder: Path, *, quick: bool, hardware: Hardware, drawing: Path | None) -> list[Figure]:
    """Measure part 7, or say what it lacks and measure nothing."""
    if not find_spec("timm"):
        lack: str | None = "needs timm. Install it with pip install timm"
    else:
        from study.bench import answer

        lack = answer.find_lack()
    if lack:
        print(f"  left out: part 7 {lack}.", file=sys.stderr)
        return []
    return answer.measure_answer(folder, answer.QUICK if quick else answer.FULL, hardware, drawing=drawing)


def judge(figures: Sequence[Figure], *, on_gpu: bool) -> list[Goal]:
    """Compare the measured figures with the goals for a CPU or a GPU; a goal without its figures is left out."""
    value = {(figure.part, figure.name): figure.median for figure in figures}
    goals: list[Goal] = []

    def ratio(part: int, what: str, ours: str, reference: str, bound: float) -> None:
        if (part, ours) in value and (part, reference) in value:
            goals.append(Goal(part, what, value[part, ours] / value[part, reference], bound, True))

    def at_most(part: int, what: str, name: str, bound: float) -> None:
        if (part, name) in value:
            goals.append(Goal(part, what, value[part, name], bound, False))

    for model in (*load_baseline().models, *OTHER_MODELS):
        written = f"{model}, as written"
        ratio(1, f"{model}, empty store / as written", f"{model}, empty store", written, 10 if on_gpu else 4)
        ratio(1, f"{model}, full store / as written", f"{model}, full store", written, 30 if on_gpu else 12)
        ratio(1, f"{model}, full store / bare suffix", f"{model}, full store", f"{model}, bare suffix", 0.85)
        ratio(1, f"{model}, probe / bare forward", f"{model}, probe", f"{model}, bare forward", 0.9)
    ratio(2, "seconds for 12 recipes, stock Ray Tune / ours", "stock Ray Tune", "ours", 25 if on_gpu else 8)
    at_most(3, "seconds a trial, ours", "ours", 0.5)
    at_most(3, "seconds a trial, ours with MLflow", "ours with MLflow", 0.7)
    ratio(4, "AutoAugment, ours / one by one", "ours", "torchvision, one by one", 8)
    if (5, "driver at 1,000 trials") in value:
        for process in ("driver", "worker"):
            grown = value[5, f"{process} at 1,000 trials"] - value[5, f"{process} at 10 trials"]
            goals.append(Goal(5, f"MB that the {process} grew by, 10 to 1,000 trials", grown, 100, False))
        slower = value[5, "a trial, 100 to 1,000"] / value[5, "a trial, 1 to 10"]
        goals.append(Goal(5, "seconds a trial, to 1,000 / to 10", slower, 1.25, False))
    soonest = "seconds to the best of stock Ray Tune"
    ratio(
        7, f"{soonest}, stock Ray Tune / empty cache", f"{soonest}, stock Ray Tune", f"{soonest}, ours, empty cache", 5
    )
    ratio(
        7,
        f"{soonest}, stock Ray Tune / second study",
        f"{soonest}, stock Ray Tune",
        f"{soonest}, ours, second study",
        10,
    )
    for side in ("empty cache", "second study"):
        below = f"most below stock Ray Tune after 60 s, ours, {side}"
        at_most(7, f"points {below}", below, 0)
    ratio(6, "decoding, ours / bare Pillow threads", "decoding, ours", "decoding, bare Pillow threads", 0.9)
    for how in ("on disk", "on disk, cold page cache"):
        ratio(6, f"training, images {how} / in memory", f"training, images {how}", "training, images in memory", 0.97)
    for name, unit, bound in (
        ("second start", "seconds of the second start, 10,000 images less 100", 1),
        ("memory of a baseline", "kB of memory an image, baseline", 2),
        ("memory of a search", "kB of memory an image, search", 2),
    ):
        counts = sorted((figure.images or 0, figure.median) for figure in figures if figure.name.startswith(name))
        if len(counts) == 2:
            (few, less), (many, more) = counts
            grown = more - less if name == "second start" else 1000 * (more - less) / (many - few)
            goals.append(Goal(6, unit, grown, bound, False))
    return goals


def describe_machine(hardware: Hardware) -> dict[str, Any]:
    """Return the hardware and the package versions on which the figures depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if hardware.device.type == "cuda" else None,
        "precision": hardware.precision,
        "python": platform.python_version(),
        "versions": versions,
    }


def format_tables(figures: Sequence[Figure], goals: Sequence[Goal], machine: Mapping[str, Any], date: str) -> str:
    """Format the figures and the goals as Markdown tables."""
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    gpu = machine["gpu"] or "no GPU: not measured on a GPU"
    rows = [
        f"{date}: {machine['cores']} cores of {machine['cpu']}, {gpu}; ours in {machine['precision']}; {versions}.",
        "",
        "| part | what | of | median | n | each | unit |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for figure in figures:
        counts = ((figure.images, "images"), (figure.trials, "trials"))
        of = ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)
        each = " ".join(_digits(value) for value in figure.values)
        measured = f"{_digits(figure.median)} | {figure.n} | {each} | {figure.unit}"
        rows.append(f"| {figure.part} | {figure.name} | {of} | {measured} |")
    rows += ["", "| part | goal | measured | to reach | |", "|---|---|---:|---:|---|"]
    for goal in goals:
        bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:g}"
        met = "met" if goal.met else "not met"
        rows.append(f"| {goal.part} | {goal.what} | {_digits(goal.value)} | {bound} | {met} |")
    return "\n".join(rows)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
