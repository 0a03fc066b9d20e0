"""Write a kept model for other programs: `python -m study.export NAME --to onnx OUT`.

OUT becomes a directory with the model, its description and a model card, as the Hugging Face hub has them.
Exit codes: 0 done, 1 the model cannot be exported, 2 usage, 130 interrupted.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.command_line import Parser
from study.config.paths import find_study
from study.errors import ConfigError, DataError, StudyError, first_line
from study.exit_codes import run_command, run_program
from study.files import new_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from study.models.saved_model import ModelCard

FORMATS = ("onnx", "pt2", "safetensors")
CHECKED = 256
"""Largest number of test images on which a file is compared with the kept model."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")  # warnings of torch's exporters do not help here
    return run_command(lambda: _export(options), interrupted="interrupted; nothing was exported.")


def build_parser() -> Parser:
    """Build the parser of `python -m study.export`."""
    parser = Parser(
        prog="python -m study.export",
        description="Write a kept model for other programs, and check the file against the kept model on test images.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="name of a study, or 'latest'; NAME/vgg16 for one network of a baseline"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new directory for the model, config.json and README.md")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="onnx for onnxruntime and others, pt2 for torch.export.load, safetensors for load_state_dict",
    )
    return parser


def _export(options: argparse.Namespace) -> int:
    name, _, which = options.name.partition("/")
    study = find_study(name, Path("mlruns").absolute(), needs="model*")
    if options.out.exists():
        raise ConfigError(f"{options.out}: must be a new directory, but exists. Choose another one, or delete it.")
    from study.export.card import write_card
    from study.export.formats import describe_input, write_checked
    from study.export.timm_config import describe_for_timm
    from study.models.saved_model import find_model, load_model
    from study.results.record import Record

    saved = load_model(find_model(study, which))
    record = Record.read(study)
    images, kind = _find_images(saved.card)
    description = describe_input(saved.card, options.to)
    try:
        with new_directory(options.out) as draft:
            check = write_checked(draft / f"model.{options.to}", saved, images)
            for_timm = describe_for_timm(saved.card, saved.predictor.network) if options.to == "safetensors" else {}
            config = json.dumps({**description, **for_timm}, indent=1, ensure_ascii=False)
            (draft / "config.json").write_text(f"{config}\n", encoding="utf-8")
            (draft / "README.md").write_text(write_card(saved.card, record, options.to, description), encoding="utf-8")
    except StudyError:
        raise
    except OSError as error:
        raise StudyError(f"{options.out}: must be writable, but got: {error.strerror or error}.") from None
    except Exception as error:  # torch's exporters raise almost any exception
        raise StudyError(f"{saved.card.recipe.model}: must be exportable, but got: {first_line(error)}") from error
    same = "no image" if not check.changed else f"{check.changed} of them"
    print(f"model    {options.out / f'model.{options.to}'}")
    print(f"input    {description['input']}")
    print(f"checked  {check.images} {kind}: a logit differs by at most {check.difference:.2g} of {check.largest:.3g};")
    print(f"         {same} gets another class")
    return 0


def _find_images(card: "ModelCard") -> "tuple[NDArray[np.uint8], str]":
    """Return images of the stored size and what they are: test images, or random ones if those are gone."""
    import numpy as np

    from study.models.saved_model import load_images

    width, height = card.stored_size
    try:
        dataset = load_images(card)
        if dataset.test.pixels.shape[2:] == (height, width):
            return np.asarray(dataset.test.pixels[:CHECKED]), "test images"
    except (DataError, ConfigError):
        pass
    noise = np.random.default_rng(0).integers(0, 256, (64, 3, height, width), dtype=np.uint8)
    return noise, "random images, since the test images are gone"


if __name__ == "__main__":
    run_program(main)
