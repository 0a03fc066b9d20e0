"""Write the command line that runs a recorded study again, with the flags that `flags.py` reads."""

import shlex
from pathlib import Path

from study.config.paths import search_spaces_directory
from study.config.plan import Design
from study.results.record import Record

COMMAND_WIDTH = 88
"""Characters per line of the command; a flag with its value is never split."""


def run_command(record: Record) -> str:
    """Return the command that runs the study again, with all flags that determine its results.

    Flags that do not determine the results are left out: those for hardware, cluster, cache, name and directories.
    """
    manifest, space = record.manifest, record.space
    design = Design.from_dict(manifest)
    recipe = design.recipes[0]
    flags: dict[str, object] = {
        "data": manifest["source"],
        "fraction": manifest["fraction"],
        "weights": manifest["weights"],
        "seed": manifest["seed"],
        "precision": manifest["precision"],
    }
    # A flag sets a field in both the baseline recipe and the space's base. If these differ, no flag was given.
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
