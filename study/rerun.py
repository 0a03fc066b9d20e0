"""The command that runs a recorded study once more: what `flags.py` reads, written."""

import shlex
from pathlib import Path

from study.config import search_spaces_directory
from study.design import Design
from study.record import Record

COMMAND_WIDTH = 88
"""Characters of a command's line, where it can be broken."""


def run_command(record: Record) -> str:
    """Return the command that runs the study once more, with all that makes its results what they are.

    Machines and records are whoever's who runs it; so is the place of downloads.
    """
    told, space = record.manifest, record.space
    design = Design.from_dict(told)
    recipe = design.recipes[0]
    flags: dict[str, object] = {
        "data": told["source"],
        "fraction": told["fraction"],
        "weights": told["weights"],
        "seed": told["seed"],
        "precision": told["precision"],
    }
    # A flag sets a field in the baseline's recipe and in the space's base alike: where these differ, none was given.
    for name in ("epochs", "image_size"):
        value = getattr(recipe, name)
        if space is None or (name not in space.domains and getattr(space.base, name) == value):
            flags[name.replace("_", "-")] = value
    if space:
        shipped = search_spaces_directory() / f"{space.name}.toml" == Path(space.file)
        what = ["--search", space.name if shipped else str(space.file)]
        flags |= {"trials": space.budget.trials, "pruner": space.pruner.name, "repeats": design.repeats}
        if space.budget.time_s is not None:
            flags["time-budget"] = f"{space.budget.time_s:.0f}s"
    else:
        what = ["--baseline", *design.models, *(["--as-written"] if design.stage == "as-written" else [])]
    lines = [shlex.join(["python", "-m", "study.run", *what])]
    for part in (shlex.join([f"--{name}", str(value)]) for name, value in flags.items()):
        if len(lines[-1]) + len(part) < COMMAND_WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)
