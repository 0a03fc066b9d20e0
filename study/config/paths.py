"""Find studies, the shipped search spaces and the cache on disk."""

import os
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

from study.errors import ConfigError, RecordError, unknown_name


def find_study(name: str, mlruns: Path, *, needs: str = "*") -> Path:
    """Return the directory of the study `name`; 'latest' is the study whose journal changed last.

    Args:
        name: name of the study, or latest.
        mlruns: directory of all runs.
        needs: pattern of a file that a study must hold to be suggested in place of an unknown name.

    Raises:
        ConfigError: no such study exists below `mlruns`.
    """
    journals = list_journals(mlruns)
    if not journals:
        raise ConfigError(f"{mlruns}: must hold a study, but holds none. Change to the directory of your study.")
    if name == "latest":
        return journals[0].parent
    known = {journal.parent.name: journal.parent for journal in journals}
    if name not in known:
        raise ConfigError(unknown_name("study", name, [one for one in known if any(known[one].glob(needs))]))
    return known[name]


def list_journals(mlruns: Path) -> list[Path]:
    """Return the journals of all studies, the one that changed last first."""
    journals = (mlruns / "studies").glob("[!.]*/journal.log")
    return sorted(journals, key=lambda journal: journal.stat().st_mtime, reverse=True)


def check_new(directory: Path) -> None:
    """Check that no study exists in `directory`.

    Raises:
        RecordError: a study exists there.
    """
    if directory.exists():
        raise RecordError(
            f"{directory}: a study named {directory.name!r} exists. Choose another --name, or --resume it."
        )


def make_writable(mlruns: Path) -> None:
    """Create the directory of all runs, and check that it is writable before any slow step.

    Raises:
        RecordError: it cannot be made or written.
    """
    try:
        mlruns.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=mlruns):
            pass
    except OSError as error:
        raise RecordError(
            f"{mlruns}: must be writable, but got: {error.strerror}. Run in a writable directory."
        ) from None


def search_spaces_directory() -> Path:
    """Return the directory of the shipped `*.toml`: in the installed package, or beside the package in a checkout."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "search_spaces"
    return installed if installed.is_dir() else here.parent / "search_spaces"


def absolute(path: str | Path) -> Path:
    """Return an absolute path, `~` expanded."""
    return Path(path).expanduser().absolute()


def cache_directory() -> Path:
    """Return the directory of everything that studies of this user share: downloads and prefix outputs."""
    return user_cache_path("study")


def torch_hub_directory() -> Path:
    """Return the directory in which torch keeps what it downloads."""
    return Path(os.environ.get("TORCH_HOME") or _plain_cache() / "torch") / "hub"


def hugging_face_directory() -> Path:
    """Return the directory in which the Hugging Face hub's client keeps what it downloads."""
    home = Path(os.environ.get("HF_HOME") or _plain_cache() / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _plain_cache() -> Path:
    """Return the user's cache directory as these two find it, on every system."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
