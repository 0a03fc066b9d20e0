"""Write a saved classifier as ONNX, as torch's exported graph or as plain weights, and read each file back.

A graph maps images at the network's size to logits: scaling and normalisation are inside, resizing is not. This module
knows neither studies nor model cards.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from study.errors import ConfigError, StudyError
from study.models.preprocessing import preprocessing, resized_size, to_colours
from study.models.saved_model import ModelCard, SavedModel
from study.networks.libraries import preset

INSTALL = "pip install onnx onnxscript onnxruntime"
"""Command that installs the packages for ONNX."""
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit: runtimes order sums differently, in float32."""
BATCH = 64
"""Images that are computed together."""
METADATA = "study"
"""Name of the entry that describes a model in its file."""


class Graph(nn.Module):
    """Map images (n, 3, side, side) uint8 in RGB to logits (n, classes) float32."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, card: ModelCard, network: nn.Module) -> None:
        """Put the scaling and the normalisation of the card's network before `network`."""
        super().__init__()
        own = preset(card.recipe.model)
        self.register_buffer("mean", 255 * torch.tensor(own.mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", 255 * torch.tensor(own.std).view(1, 3, 1, 1))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        logits: Tensor = self.network((images.float() - self.mean) / self.deviation)
        return logits


@dataclass(frozen=True)
class Check:
    """Comparison of a written file with the kept model, on the same images."""

    images: int
    difference: float
    """Largest absolute difference of a logit."""
    largest: float
    """Largest absolute logit of the kept model."""
    changed: int
    """Number of images that get another class."""

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def frame(card: ModelCard, stored: NDArray[np.uint8]) -> Tensor:
    """Bring stored images (n, 3, height, width) uint8 to the network's size, (n, 3, side, side) uint8."""
    recipe = card.recipe
    inputs = preprocessing(recipe.model, recipe.image_size, recipe.fit)(torch.from_numpy(stored))
    return (255 * to_colours(recipe.model, inputs)).round().to(torch.uint8)


def describe_input(card: ModelCard, kind: str) -> dict[str, Any]:
    """Return what a program must know to use an exported model, as JSON values.

    Args:
        card: the model's own card.
        kind: onnx, pt2 or safetensors; only the first two hold the graph that scales and normalises.
    """
    side, own = card.recipe.image_size, preset(card.recipe.model)
    within = f"images (n, 3, {side}, {side}) uint8 RGB; scaling and normalisation are inside, resizing is not"
    outside = f"images (n, 3, {side}, {side}) float32 RGB in [0, 1], minus mean, divided by std; do it before"
    return {
        "architecture": card.recipe.model,
        "classes": card.classes,
        "input": outside if kind == "safetensors" else within,
        "output": "logits (n, classes) float32; softmax gives probabilities",
        "stored_size": card.stored_size,
        "fit": card.recipe.fit,
        "resize": resized_size(card.recipe.model, side, card.recipe.fit),
        "interpolation": own.interpolation.value,
        "antialias": own.antialias,
        "centre_crop": side,
        "grey_range": card.found.grey_range,
        "mean": list(own.mean),
        "std": list(own.std),
        "test_accuracy": card.test_accuracy,
        "data_fingerprint": card.data_fingerprint,
    }


def _metadata(card: ModelCard, kind: str) -> str:
    return json.dumps(describe_input(card, kind), ensure_ascii=False)


def write_onnx(file: Path, saved: SavedModel) -> None:
    """Write a model as ONNX with any number of images, and its description among the metadata.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped,unused-ignore] # noqa: F401  # for the check
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--to onnx: needs the package {error.name}, which is missing. Run: {INSTALL}") from None
    graph, example = _graph(saved)
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}},
        dynamo=True,
        verbose=False,
    )
    assert program
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA: _metadata(saved.card, "onnx")})
    onnx.save(model, str(file))


def read_onnx(file: Path, card: ModelCard) -> Callable[[Tensor], Tensor]:
    """Return the function that an ONNX file computes, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_pt2(file: Path, saved: SavedModel) -> None:
    """Write a model as torch's exported graph with any number of images, which `torch.export.load` reads."""
    graph, example = _graph(saved)
    program = torch.export.export(graph, (example,), dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}})
    torch.export.save(program, file, extra_files={METADATA: _metadata(saved.card, "pt2")})


def read_pt2(file: Path, card: ModelCard) -> Callable[[Tensor], Tensor]:
    """Return the function that an exported graph computes."""
    graph: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return graph


def write_safetensors(file: Path, saved: SavedModel) -> None:
    """Write the weights under the names of the network's library, for `load_state_dict`."""
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in saved.predictor.network.state_dict().items()}
    save_file(state, file, {"format": "pt", METADATA: _metadata(saved.card, "safetensors")})


def read_safetensors(file: Path, card: ModelCard) -> Callable[[Tensor], Tensor]:
    """Return the function of the library's own network with a file's weights."""
    from safetensors.torch import load_file

    from study.networks.libraries import build_network

    network = build_network(card.recipe.model, len(card.classes))
    network.load_state_dict(load_file(file))
    return Graph(card, network.eval())


Writer = Callable[[Path, SavedModel], None]
Reader = Callable[[Path, ModelCard], Callable[[Tensor], Tensor]]
FORMATS: Mapping[str, tuple[Writer, Reader]] = {
    "onnx": (write_onnx, read_onnx),
    "pt2": (write_pt2, read_pt2),
    "safetensors": (write_safetensors, read_safetensors),
}
"""How each format is written and read back; `model.<format>` is the file's name."""


def compare(computed: Callable[[Tensor], Tensor], saved: SavedModel, stored: NDArray[np.uint8]) -> Check:
    """Compare the logits of a file with those of the kept model.

    Args:
        computed: function from a reader.
        saved: kept model, on the CPU.
        stored: images (n, 3, height, width) uint8 of the stored size, at least one.
    """
    recipe = saved.card.recipe
    preprocess = preprocessing(recipe.model, recipe.image_size, recipe.fit)
    differences, sizes, changed = [], [], 0
    with torch.inference_mode():
        for start in range(0, len(stored), BATCH):
            batch = stored[start : start + BATCH]
            wanted = saved.predictor.network(preprocess(torch.from_numpy(batch)))
            found = computed(frame(saved.card, batch))
            differences.append(float((found - wanted).abs().max()))
            sizes.append(float(wanted.abs().max()))
            changed += int((found.argmax(dim=1) != wanted.argmax(dim=1)).sum())
    return Check(len(stored), max(differences), max(sizes), changed)


def write_checked(file: Path, saved: SavedModel, stored: NDArray[np.uint8]) -> Check:
    """Write `model.<format>` and check it against the kept model; the file's ending chooses the format.

    Raises:
        ConfigError: a package is missing.
        StudyError: the file computes something else.
    """
    write, read = FORMATS[file.suffix[1:]]
    write(file, saved)
    check = compare(read(file, saved.card), saved, stored)
    if not check.agrees:
        raise StudyError(
            f"{file.name}: must compute what the kept model computes, but a logit differs by {check.difference:.2g} of"
            f" {check.largest:.2g}. Nothing was exported."
        )
    return check


def _graph(saved: SavedModel) -> tuple[Graph, Tensor]:
    """Return the graph of a model and two images for its tracing."""
    side = saved.card.recipe.image_size
    network = saved.predictor.network.to(memory_format=torch.contiguous_format)
    return Graph(saved.card, network).eval(), torch.zeros(2, 3, side, side, dtype=torch.uint8)
