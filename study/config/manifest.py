"""Define the manifest: what a study is, as its record keeps it from the first line on.

A manifest checks itself when it is made or read. Knows no file and no trial.
"""

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, InstanceOf

from study.config.plan import Design
from study.config.validation import AtLeastOne, Count, Fraction, Name, checked, within
from study.errors import ConfigError

FORMAT = 2
"""Version of the manifest's keys; to be raised with any change that older versions of `study` cannot read."""


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
    """Fingerprint of the training and test images."""
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
    uid: Name = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    """Identifier of the study, unique among all studies."""

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
        kind = "search" if self.design.space else "baseline"
        return {"format": FORMAT, **plain, "classes": list(self.classes), "kind": kind, **self.design.to_dict()}
