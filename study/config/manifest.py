"""Define the manifest: what a study is, as its record keeps it from the first line on.

A manifest checks itself when it is made or read. Knows no file and no trial.
"""

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, InstanceOf

from study.config.plan import Design
from study.config.search_space import Resources
from study.config.validation import AtLeastOne, Count, Fraction, Name, checked, from_table, within
from study.errors import ConfigError

FORMAT = 3
"""Version of records; to be raised with any change that older versions of `study` cannot read."""
SMALL = 2
"""Version of the records of small studies, which keep no array in a file of its own."""
MOST_CLASSES, MOST_IMAGES = 128, 16_384
"""Largest numbers of classes and of test images of a small study."""


CROP_LIMIT = 0.334
"""Share of a typical image above which cropping is worth a word: a third, which photographs of 3 : 2 just lose."""


@checked
class Found:
    """What was found in a source of images. The defaults describe a source in which all files were used as they are."""

    layout: str = ""
    """How images and splits were given, in words; "" for a source known by name."""
    validation: bool = False
    """Whether the source itself sets images apart for validation."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each class to hold out as test images, in (0, 1); None if the source has test images."""
    left_out: Mapping[str, Count] = dataclasses.field(default_factory=dict)
    """Number of files that were left out, by reason."""
    skip_broken: bool = False
    """Whether broken files are left out, instead of being an error."""
    grey_range: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """16-bit grey values that become 0 and 255; None for 0 and 65535."""
    cropped: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a typical (median) image that is cut off to make it fill a square, in [0, 1)."""
    leaks_dropped: Count | None = None
    """Training images that were dropped since they have a copy among the test images; None if such images are kept."""
    sizes: str = ""
    """Sizes of the image files in pixels, in words; "" for a source known by name."""
    held_in_groups: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the images outside val that the held-out test images are, in (0, 1), if they are whole groups."""

    @property
    def leaks(self) -> str:
        """What happens to training images that have a copy among the test images: keep or drop."""
        return "keep" if self.leaks_dropped is None else "drop"

    def describe(self, *, searched: bool) -> list[tuple[str, str]]:
        """Return what a user must know, as short names and texts; `searched` tells whether the study is a search."""
        layout = [self.layout]
        if self.validation:
            layout.append("the search validates on val" if searched else "val is not used, since nothing is searched")
        if self.held_in_groups:
            layout.append(
                f"{self.held_in_groups:.0%} of the images held out for testing in whole groups, drawn from the seed"
                f" (aim: {self.test_fraction:.0%} of each class)"
            )
        elif self.test_fraction:
            layout.append(f"{self.test_fraction:.0%} of each class held out for testing, drawn from the seed")
        left_out = [f"{count:,} × {reason}" for reason, count in self.left_out.items()]
        if self.leaks_dropped:
            left_out.append(f"{self.leaks_dropped:,} with a copy among the test images")
        grey, cut = "", ""
        if self.grey_range:
            low, high = self.grey_range
            grey = f"grey values {low:,} to {high:,} become 0 to 255, in predictions too"
        if self.cropped > CROP_LIMIT:
            lost = f"a typical image loses {self.cropped:.0%} to become a square"
            cut = f"{lost}; --fit pad and --fit squash keep all of it"
        lines = [
            ("layout", "; ".join(layout)),
            ("sizes", self.sizes),
            ("left out", ", ".join(left_out)),
            ("16 bit", grey),
            ("cropping", cut),
        ]
        return [(name, text) for name, text in lines if text]


@checked
class Manifest:
    """Everything that makes a study this study: a resumed study must keep it."""

    design: InstanceOf[Design]
    """Fixed trials, or the search."""
    data: Name
    """Name of the data set, and of its experiment in MLflow."""
    source: Name
    """cifar10, digits, or the path of an image folder."""
    data_dir: str
    """Directory of downloaded data sets."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Class names, in the order of the labels."""
    fraction: Fraction
    """Share of the source's images that is used, in (0, 1]."""
    image_size: AtLeastOne
    """Largest side in pixels that a network of the study sees."""
    train_images: Count
    val_images: Count
    """Images that a search holds out of the training images; 0 without a search."""
    test_images: Count
    data_fingerprint: Name
    """Fingerprint of the training and test images, and of the class names in their order."""
    split_fingerprint: Name
    """Fingerprint of the training images and of the held-out images."""
    weights: Name
    """imagenet, none, or the path of a file."""
    weights_digests: Mapping[str, str]
    """Digest of the pretrained weights of each model."""
    seed: Count
    precision: Name
    """auto, bf16 or fp32."""
    tracking_uri: str | None
    """MLflow's store without credentials; None for the local one."""
    versions: Mapping[str, str]
    """Versions of the packages that results depend on."""
    git_commit: str | None
    """Commit of the checkout in which the study was begun, if any."""
    test_fingerprint: str | None = None
    """Fingerprint of the test images; None in records of version 0.1.0."""
    uid: Name = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    """Identifier of the study, unique among all studies."""
    found: Annotated[Found, from_table(Found)] = Found()
    """What was found in the source of the images."""
    resources: Annotated[Resources, from_table(Resources)] = Resources()
    """What flags and the space's file have asked for; a resumed study asks for the same, unless flags say otherwise."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the manifest that `to_dict` was called on, by this version of `study` or an earlier one.

        Raises:
            ConfigError: the values are of a later format, or break a rule.
        """
        if values.get("format", FORMAT) > FORMAT:
            raise ConfigError(
                f"manifest: must have format {FORMAT} or lower, but got {values['format']}: a later version of study"
                " made it. Update study."
            )
        fields = {field.name for field in dataclasses.fields(cls)} & values.keys()
        with within("manifest."):
            try:
                plain = {**{name: values[name] for name in fields}, "classes": tuple(values["classes"])}
                return cls(design=Design.from_dict(values), **plain)
            except KeyError as error:
                raise ConfigError(f"{error.args[0]}: must be given, but is missing.") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON values; the design's parts stand beside the other keys."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "design"}
        kind = "search" if self.design.space else "probe" if self.design.stage == "probe" else "baseline"
        values = {**plain, "classes": list(self.classes)}
        values |= {name: dataclasses.asdict(getattr(self, name)) for name in ("found", "resources")}
        large = len(self.classes) > MOST_CLASSES or self.test_images > MOST_IMAGES
        return {"format": FORMAT if large else SMALL, **values, "kind": kind, **self.design.to_dict()}
