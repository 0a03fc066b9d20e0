"""Write the model card of an exported classifier in the form of the Hugging Face hub: front matter and Markdown.

The form: https://huggingface.co/docs/hub/model-cards. All figures come from the study's record and its model card.
"""

import json
from pathlib import Path
from typing import Any

from study.errors import WeightsError
from study.models.pretrained import ENDINGS, find_file
from study.models.saved_model import ModelCard
from study.results.metrics import NAMES, count_images, count_right, format_metric, largest_class
from study.results.record import Record
from study.verdict.statistics import accuracy_interval
from study.verdict.verdict import stored_verdict
from study.verdict.wording import sentence


def write_card(card: ModelCard, record: Record, format_name: str, description: dict[str, Any]) -> str:
    """Return the text of the card.

    Args:
        card: the model's own card.
        record: record of its study.
        format_name: onnx, pt2 or safetensors.
        description: from `describe_input`.
    """
    images = count_images(card.confusion)
    low, high = accuracy_interval(count_right(card.confusion), images)
    library = "onnx" if format_name == "onnx" else "pytorch"
    decided = []
    if card.metric != "accuracy" and card.test_value is not None:
        shown = format_metric(card.metric, card.test_value)
        decided = [f"- Test {NAMES[card.metric]}, the metric that decided the study: {shown}."]
    front = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", card.recipe.model],
        "model-index": _model_index(card),
    }
    # JSON is YAML, and quotes whatever a data set is called.
    head = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]
    share = largest_class(card.confusion)[1]
    recipe = [f"| {name} | {value} |" for name, value in card.recipe.to_dict().items()]
    return "\n".join(
        [
            "---", *head, "---", "",
            f"# {card.recipe.model} for {card.data}", "",
            f"It tells {len(card.classes)} classes apart: {', '.join(card.classes)}.", "",
            "## Result", "",
            f"- Test accuracy: {card.test_accuracy:.2%} of {images:,} images (95 % interval {low:.2%} to {high:.2%},"
            f" Wilson; it covers test images, not seeds). Always answering the largest class would give {share:.2%}.",
            *decided,
            f"- {_verdict(record)}",
            *([f"- **It has learnt nothing**: {card.nothing_learnt}."] if card.nothing_learnt else []),
            "", "## Use", "",
            f"- Input: {description['input']}.",
            f"- Output: {description['output']}. `config.json` has the class names in their order.",
            f"- To read an image as in training: turn it upright, put white behind transparent pixels, bring it to"
            f" {card.stored_size[0]} × {card.stored_size[1]} px ({card.recipe.fit}, bilinear, antialiased), then to the"
            f" network's size as its pretrained weights' transforms do.",
            "", "## Data", "",
            f"- {card.data}, fraction {card.fraction}; fingerprint of the images {card.data_fingerprint}, of the test"
            f" images {card.test_fingerprint}.",
            *(f"- {line}" for line in _audit(card, record)),
            "", "## Limits", "",
            "- Measured on this data set's test images only. Images of other origin, and things that are none of the"
            " classes, were not tested; the network always answers one of its classes.",
            "- Probabilities were not calibrated.",
            f"- It began from {_weights(card)}",
            "", "## Training", "",
            "| field | value |", "|---|---|", *recipe, "",
            f"Seed {card.seed}, {card.precision}, {card.arithmetic}; study {card.study}, trial {card.trial}.", "",
        ]
    )  # fmt: skip


def _model_index(card: ModelCard) -> list[dict[str, Any]]:
    """Return the test results in the hub's form: accuracy, and the study's metric if it is another one."""
    metrics: list[dict[str, Any]] = [{"type": "accuracy", "value": round(card.test_accuracy, 6)}]
    if card.metric != "accuracy" and card.test_value is not None:
        metrics.append({"type": card.metric, "name": NAMES[card.metric], "value": round(card.test_value, 6)})
    dataset = {"name": card.data, "type": "image-folder", "args": {"fingerprint": card.data_fingerprint}}
    results = [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}]
    return [{"name": f"{card.study} {card.recipe.model}", "results": results}]


def _verdict(record: Record) -> str:
    if record.space is None:
        return "No verdict: it was trained by a fixed recipe, and not compared with another one over several seeds."
    return f"Verdict of the search: {sentence(stored_verdict(record))}"


def _audit(card: ModelCard, record: Record) -> list[str]:
    """Return what the audit of the images found, and how leaks were handled."""
    found = record.noted("audit")
    if found is None:
        return ["The images were not audited."]
    lines = []
    if dropped := card.found.leaks_dropped:
        lines.append(f"{dropped:,} training images with a copy among the test images were left out.")
    elif leaks := len(found["leaked_test"]):
        lines.append(f"**{leaks:,} test images have a copy among the training images**, so the accuracy is too good.")
    else:
        lines.append("No test image has a copy among the training images, as far as the audit can see.")
    if wrong := found["contradictions"]:
        lines.append(f"{wrong:,} images stand under several classes.")
    return lines


def _weights(card: ModelCard) -> str:
    """Return what the training started from, without the place of a user's files."""
    if card.weights == "none":
        return "random weights, not from pretrained ones."
    if card.weights == "imagenet":
        return "the weights 'imagenet'; their licence and limits apply."
    file = _weights_file(Path(card.weights), card.recipe.model)
    held = f", in the file '{file.name}'" if file else ""
    return f"weights of the user's own{held}; their licence and limits apply."


def _weights_file(given: Path, model: str) -> Path | None:
    """Return the file given with --weights, or found in its directory; None if that is gone."""
    try:
        if given.is_dir():
            return find_file(given, model)
        return given if given.is_file() or given.suffix in ENDINGS else None
    except (WeightsError, OSError):
        return None
