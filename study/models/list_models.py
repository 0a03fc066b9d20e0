"""List the models of the catalogue: by family, or those whose names match a pattern.

Reads file names alone and imports neither torch nor timm, so that listing thousands of models takes no time.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from study.config.catalogue import TIMM, Entry, known_models
from study.config.paths import hugging_face_directory, torch_hub_directory
from study.errors import ConfigError, nearest_name

SHOWN = 100
"""Number of models that a pattern lists at most."""
EVERYTHING = "*"
"""Pattern that lists all models, however many there are."""


def find_models(pattern: str) -> list[Entry]:
    """Return the models whose names match a pattern, such as `resnet*`, or contain it, in the catalogue's order.

    Raises:
        ConfigError: there is none.
    """
    known = known_models()
    wild = any(letter in pattern for letter in "*?[")
    found = [
        entry
        for name, entry in known.items()
        if (fnmatchcase(name, pattern) or fnmatchcase(name, TIMM + pattern) if wild else pattern in name)
    ]
    if not found:
        near = nearest_name(pattern, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(f"--models: must match a model's name, but {pattern!r} matches none.{hint}")
    return found


def format_families() -> str:
    """Format a summary: one line for each family of each library, and how to see more."""
    known = known_models()
    lines = [f"{'family':<34}{'models':>7}{'with tags':>11}{'parameters':>18}   smallest"]
    groups: dict[tuple[bool, str], list[Entry]] = {}
    for entry in known.values():
        groups.setdefault((entry.name.startswith(TIMM), entry.family), []).append(entry)
    for (timm, family), entries in sorted(groups.items()):
        plain = [entry for entry in entries if "." not in entry.name]
        ordered = sorted(plain, key=lambda entry: entry.parameters)
        span = f"{_millions(ordered[0].parameters)} to {_millions(ordered[-1].parameters)}"
        place = f"{TIMM if timm else ''}{family}"
        tags = len(entries) - len(plain)
        lines.append(f"{place:<34}{len(plain):>7}{tags or '':>11}{span:>18}   {ordered[0].name}")
    lines += [
        "",
        f"{len(known):,} names. --models PATTERN lists those that match, such as 'timm/vit_small*' or resnet18;"
        f" --models '{EVERYTHING}' lists all.",
    ]
    return "\n".join(lines)


def format_models(models: Sequence[Entry], limit: int | None = SHOWN) -> str:
    """Format models as a table, one line each: parameters, multiply-adds, input, and where the weights are."""
    shown = models[:limit]
    width = max(len("model"), *(len(entry.name) for entry in shown)) + 2
    lines = [f"{'model':<{width}}{'parameters':>11}{'multiply-adds':>15}{'input':>9}  other inputs{'':<22}weights"]
    here = local_weights(shown)
    for entry in shown:
        sizes = "none" if entry.step == 0 else entry.describe_sizes()
        where = "none" if not entry.weights else "here" if entry.name in here else "to download"
        lines.append(
            f"{entry.name:<{width}}{_millions(entry.parameters):>11}{_billions(entry.operations):>15}{entry.size:>6} px"
            f"  {sizes:<34}{where}"
        )
    if len(models) > len(shown):
        lines.append(f"… and {len(models) - len(shown):,} more. Give a narrower pattern.")
    return "\n".join(lines)


def local_weights(models: Iterable[Entry]) -> set[str]:
    """Return the names of the models whose weights lie in the caches of torch and of the Hugging Face hub."""
    files = {path.name for path in (torch_hub_directory() / "checkpoints").glob("*")}
    repositories = {path.parts[-4] for path in hugging_face_directory().glob("models--*/snapshots/*/*.safetensors")}
    return {
        entry.name
        for entry in models
        if entry.weights in files or f"models--{entry.weights.replace('/', '--')}" in repositories
    }


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} G" if count else "–"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
