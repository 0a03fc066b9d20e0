"""Audit images before a study: count them, and find copies, leaks and contradicting labels."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study.api.keywords import in_python
from study.config.paths import absolute, cache_directory

if TYPE_CHECKING:
    from study.data.audit import Audit
    from study.data.decoding import Watch

IMAGE_SIZE = 224
"""Side in pixels that the images are read for: that of most networks."""


@dataclass(frozen=True)
class DataAudit:
    """What an audit of a data set found; as text, it says what `python -m study.audit` prints, in words of Python."""

    data: str
    """Name of the data set."""
    size: tuple[int, int]
    """(width, height) in pixels at which the images were read."""
    found: tuple[tuple[str, str], ...]
    """Short names and texts about the source: its layout, what was left out, and others."""
    audit: "Audit"
    """Counts by class and split, groups of copies, leaks and contradictions."""

    @property
    def warnings(self) -> list[str]:
        """A sentence for each fault that makes results doubtful."""
        return [in_python(warning) for warning in self.audit.warnings()]

    def describe(self) -> str:
        """Return all findings as lines, in the words of a command."""
        width, height = self.size
        lines = [f"data     {self.data}: read at {width}×{height} px"]
        lines += [f"{name:<8} {text}" for name, text in self.found]
        lines += ["", *self.audit.tables(), "", *(f"audit    {warning}" for warning in self.audit.warnings())]
        if not self.audit.groups:
            lines.append("audit    no image is a copy of another")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return all findings as lines, with keyword arguments in the place of flags."""
        return in_python(self.describe())

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def audit_source(
    source: str,
    *,
    data_dir: str | Path | None,
    test_fraction: float | None,
    seed: int,
    skip_broken: bool,
    watch: "Watch | None" = None,
) -> DataAudit:
    """Load the images of a source and audit them.

    Args:
        source: cifar10, digits, or the path of a folder or CSV file.
        data_dir: directory for downloaded images; None for the user's cache.
        test_fraction: share of each class to hold out as test images; None for the default.
        seed: seed of these test images.
        skip_broken: whether to leave out image files that cannot be read.
        watch: receiver of the progress of reading; None for nobody.

    Raises:
        StudyError: there are no such images, or they cannot be read.
    """
    from study.data.audit import audit_images
    from study.data.decoding import Unwatched
    from study.data.pixel_store import PixelStore, default_directory
    from study.data.sources import load_dataset

    watch = watch or Unwatched()
    dataset = load_dataset(
        source,
        fraction=1.0,
        seed=seed,
        image_size=IMAGE_SIZE,
        data_dir=absolute(data_dir or cache_directory() / "data"),
        test_fraction=test_fraction,
        skip_broken=skip_broken,
        store=PixelStore(default_directory()),
        watch=watch,
    )
    height, width = dataset.train.pixels.shape[2:]
    found = tuple(dataset.found.describe(searched=True))
    return DataAudit(dataset.name, (width, height), found, audit_images(dataset, watch))
