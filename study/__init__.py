"""Run hyperparameter studies for transfer learning of image classifiers.

The functions of docs/python.md are imported when they are first used, so `import study` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.api.functions import audit_data, baseline, list_studies, load, probe, search
    from study.api.handle import Study

__version__ = "0.1.0"
__all__ = ["Study", "audit_data", "baseline", "list_studies", "load", "probe", "search"]


def __getattr__(name: str) -> Any:
    """Import a function of the Python API when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'study' has no attribute {name!r}")
    return getattr(import_module("study.api.handle" if name == "Study" else "study.api.functions"), name)


def __dir__() -> list[str]:
    """Name what the module offers, imported or not."""
    return sorted({*globals(), *__all__})
