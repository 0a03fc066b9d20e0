"""Describe an exported classifier as timm does, so that `timm.create_model("local-dir:OUT", pretrained=True)` loads it.

The form: `save_config_for_hf` in https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_hub.py.
"""

from typing import Any

from torch import nn

from study.config.catalogue import TIMM
from study.models.saved_model import ModelCard
from study.networks.libraries import preset, timm_config

ORIGIN = {"architecture", "custom_load", "file", "hf_hub_filename", "hf_hub_id", "label_offset", "source", "tag", "url"}
"""Fields that tell where the pretrained weights came from; timm would load those, and not the exported ones."""
OWN_TEST = {"pool_size", "test_crop_pct", "test_input_size", "test_pool_size"}
"""Fields about other sizes than the one that the classifier was trained at."""
CROP_MODES = {"crop": "center", "pad": "border", "squash": "squash"}
"""timm's word for each fit."""


def describe_for_timm(card: ModelCard, network: nn.Module) -> dict[str, Any]:
    """Return the entries of timm's config.json, as JSON values; none for a network of another library."""
    model = card.recipe.model
    if not model.startswith(TIMM):
        return {}
    own = preset(model)
    kept = {
        key: value for key, value in timm_config(model).items() if value is not None and key not in ORIGIN | OWN_TEST
    }
    arguments: dict[str, Any] = {}
    if hasattr(network, "dynamic_img_size"):  # else it would be built with positions of another number
        side = network.get_submodule("patch_embed").img_size
        arguments = {"dynamic_img_size": network.dynamic_img_size, "img_size": list(side)}  # type: ignore[arg-type]
    return {
        "architecture": model.removeprefix(TIMM).partition(".")[0],
        "num_classes": len(card.classes),
        "label_names": card.classes,
        "model_args": arguments,
        "pretrained_cfg": {
            **kept,
            "num_classes": len(card.classes),
            "input_size": [3, card.recipe.image_size, card.recipe.image_size],
            "fixed_input_size": kept.get("fixed_input_size", False) and not arguments.get("dynamic_img_size", False),
            "interpolation": own.interpolation.value,
            "crop_pct": own.resize[1] if card.recipe.fit == "crop" else 1.0,
            "crop_mode": CROP_MODES[card.recipe.fit],
            "mean": list(own.mean),
            "std": list(own.std),
        },
    }
