"""Define what a study runs: a Plan for each trial, a Design for the whole, a StudyConfig for its surroundings."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from study.config.recipe import Recipe
from study.config.search_space import Categorical, Resources, SearchSpace
from study.config.validation import AtLeastOne, Count, Fraction, checked
from study.errors import ConfigError
from study.formatting import format_value

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
"""Metrics that can decide a search."""
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
AUTO_PRIOR, NO_PRIOR = "auto", "none"
"""Values of --prior beside names of studies: every fitting study, or none."""
Repeats = int | Literal["auto"]
"""Number of seeds in a verdict, or auto: as many as the answer needs, within the bounds of `statistics.py`."""


def _check_name(name: str) -> str:
    if not STUDY_NAME.fullmatch(name) or name == "latest":
        rule = "must be 1 to 64 letters, digits, '.', '_' or '-', begin with a letter or digit, and not be 'latest'"
        raise ConfigError(f"{rule}, but got {name!r}.")
    return name


@dataclass(frozen=True)
class Plan:
    """One trial to run."""

    number: int | None
    """Optuna's trial number, from 0, refits counted separately; None until the record has numbered it."""
    stage: str
    """Part of the study: baseline, as-written, probe, search, screen (a model's probe before a search), rerank (a
    candidate's refit) or final (for the verdict)."""
    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """Unique name of the trial within its study; stages beside the main one number their trials from 0 again."""
        assert self.number is not None, "the record must have numbered the trial"
        return f"{self.stage}-{self.number}" if self.stage in {"screen", "rerank", "final"} else str(self.number)

    @property
    def probes(self) -> bool:
        """Whether the trial fits a linear classifier on the pretrained network's features, instead of fine-tuning."""
        return self.stage in {"probe", "screen"}

    @property
    def validates(self) -> bool:
        """Whether the trial measures its metric on validation images, and sees no test images."""
        return self.stage in {"probe", "screen", "search", "rerank"}

    @property
    def keeps_weights(self) -> bool:
        """Whether the trial's last weights stay on disk until the study ends, since they may become a kept model."""
        return self.stage in {"baseline", "final"}

    @property
    def checkpoint(self) -> str:
        """Name of the trial's checkpoint file."""
        return f"{self.key}.safetensors"

    @property
    def short_title(self) -> str:
        """Label for narrow columns: number and model, without the source and the variant of the weights."""
        model = self.recipe.model.rpartition("/")[2].partition(".")[0]
        refit = f" · seed {self.seed}" if self.stage in {"rerank", "final"} else ""
        return f"#{self.key} {model}{refit}"

    @property
    def title(self) -> str:
        """Label that distinguishes the trial from the others of its study."""
        return self.title_with(())

    def title_with(self, fields: Iterable[str]) -> str:
        """Return the title with further fields of the recipe, but without those that do nothing in it."""
        recipe = self.recipe
        if self.probes:
            return f"#{self.key} {recipe.model} · linear probe"
        names = {"unfreeze_depth": "depth", "lr": "lr", "batch_size": "batch"}
        names |= {field: field.replace("_", " ") for field in fields if field not in {"model", *names}}
        shown = "".join(
            f" · {name} {format_value(getattr(recipe, field))}"
            for field, name in names.items()
            if field not in recipe.unused
        )
        refit = f" · seed {self.seed}"
        kind = {"as-written": " · as written", "rerank": refit, "final": refit}.get(self.stage, "")
        return f"#{self.key} {recipe.model}{shown}{kind}"


def probe_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a linear probe, which sees the images as `recipe` does, but without augmentation."""
    return replace(recipe, unfreeze_depth=0, augmentation="none", epochs=1)


@checked
class StudyConfig:
    """Settings of a study besides its recipes; paths are absolute, since Ray Tune changes the working directory."""

    name: Annotated[str, AfterValidator(_check_name)]
    """Name of the study and of its directory: at most 64 letters, digits, '.', '_' or '-'."""
    data: str
    """Image data set: cifar10, digits, or the path of a folder or of a CSV file."""
    data_dir: Path
    """Directory of downloaded data sets."""
    fraction: Fraction
    """Fraction of the training and of the test images to use, in (0, 1]."""
    weights: str
    """Initial weights: imagenet, none (random), or the path of a state dict."""
    seed: Count
    """Seed from which all others are derived, at least 0."""
    precision: str
    """Precision of the arithmetic: auto, bf16 or fp32."""
    mlruns: Path
    """Directory for everything that a study writes."""
    tracking_uri: str | None
    """URI of MLflow's tracking store; None for a SQLite file in `mlruns`."""
    ray_address: str | None
    """Address of an existing Ray cluster; None to start a local Ray."""
    cpus_per_trial: Annotated[float, Field(gt=0)] | None
    """CPU cores per trial, above 0; None to choose by the machine."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | None
    """GPUs per trial, at least 0; a fraction lets trials share a GPU. None to choose by the machine."""
    concurrent: AtLeastOne | None
    """Maximum number of trials at a time, at least 1; None to choose by the machine."""
    cache_gb: Annotated[float, Field(ge=0)] | None
    """Maximum size of the feature cache in GB; 0 for no cache, None for a fifth of the free disk, at most 50."""
    verbose: bool
    """Show the messages of Ray, Optuna and MLflow."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of each class to hold out as test images, in (0, 1); None for the default, or if there are some."""
    skip_broken: bool = False
    """Leave broken image files out, instead of ending the study."""
    leaks: str = "keep"
    """What happens to training images that have a copy among the test images: keep or drop."""

    def with_resources(self, asked: Resources) -> Self:
        """Return the settings, with the resources that a file or a record asks for where these ask for none."""
        return replace(
            self,
            cpus_per_trial=self.cpus_per_trial or asked.cpus_per_trial,
            gpus_per_trial=asked.gpus_per_trial if self.gpus_per_trial is None else self.gpus_per_trial,
            concurrent=self.concurrent or asked.concurrent,
        )


@dataclass(frozen=True)
class Proposal:
    """A recipe that was good in an earlier study, to be tried before the sampler's own proposals."""

    study: str
    """Name of the earlier study."""
    trial: int
    """Number of its trial."""
    values: Mapping[str, Any]
    """Values of the searched fields, within the bounds of this study's space."""


@dataclass(frozen=True)
class Design:
    """Everything about a study's trials that is known before the study begins."""

    stage: str
    """Stage of `recipes`: baseline, as-written or search."""
    recipes: tuple[Recipe, ...]
    """Recipes of the fixed trials; for a search, only the baseline's recipe, which is its first trial."""
    space: SearchSpace | None = None
    """Space from which a search proposes recipes; None for fixed trials."""
    repeats: Repeats = 0
    """Number of seeds in a search's verdict, or auto."""
    rerank: int = 0
    """Number of candidates of a search that are refitted before the verdict; 0 for none."""
    metric: str = "accuracy"
    """Metric that decides a search: its values, the pruning, the winner, the verdict and the champion."""
    portfolio: tuple[Mapping[str, Any], ...] = ()
    """Values of some fields of recipes that are known to work, which a search tries before the sampler's proposals."""
    prior: tuple[str, ...] = (NO_PRIOR,)
    """What was asked for with --prior: auto, none, or the names of earlier studies."""
    proposals: tuple[Proposal, ...] = ()
    """Recipes of those studies that a search tries before the portfolio; only their recipes are taken, no results."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models of the study, each once."""
        return tuple(dict.fromkeys([*(recipe.model for recipe in self.recipes), *self.screened]))

    @property
    def screened(self) -> tuple[str, ...]:
        """Models that a search compares, each of which is probed before; () if it searches one model."""
        return self.space.models if self.space and len(self.space.models) > 1 else ()

    @property
    def validates(self) -> bool:
        """Whether trials are compared on validation images: in a search, and where models are probed."""
        return self.space is not None or self.stage == "probe"

    def title(self, plan: Plan) -> str:
        """Return the title of one of the study's trials with all searched fields that do something in it."""
        return plan.title_with(self.space.domains if self.space else ())

    @property
    def fit(self) -> str:
        """What happens to images that are not square, in all trials: crop, pad or squash."""
        return self.recipes[0].fit

    @property
    def image_size(self) -> int:
        """Largest input side of any trial in pixels, for which the images are stored."""
        sizes = [recipe.image_size for recipe in self.recipes]
        if self.space:
            domain = self.space.domains.get("image_size")
            searched = () if domain is None else domain.choices if isinstance(domain, Categorical) else (domain.high,)
            sizes += [self.space.recipe({"image_size": size}).image_size for size in searched]
            sizes += [self.space.recipe({"model": model}).image_size for model in self.space.models]
        return max(sizes)

    @property
    def batch_size(self) -> int:
        """Largest batch of any trial, in images."""
        domain = self.space.domains.get("batch_size") if self.space else None
        searched = () if domain is None else domain.choices if isinstance(domain, Categorical) else (domain.high,)
        return max(int(size) for size in (*(recipe.batch_size for recipe in self.recipes), *searched))

    def to_dict(self) -> dict[str, Any]:
        """Return the design as JSON values; `from_dict` is the inverse."""
        return {
            "stage": self.stage,
            "recipes": [recipe.to_dict() for recipe in self.recipes],
            "space": self.space.to_dict() if self.space else None,
            "repeats": self.repeats,
            "rerank": self.rerank,
            "metric": self.metric,
            "portfolio": [dict(values) for values in self.portfolio],
            "prior": [*self.prior],
            "proposals": [asdict(proposal) for proposal in self.proposals],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a design from the values that `to_dict` returned."""
        return cls(
            stage=values["stage"],
            recipes=tuple(Recipe(**recipe) for recipe in values["recipes"]),
            space=SearchSpace.from_dict(values["space"]) if values["space"] else None,
            repeats=values["repeats"],
            rerank=values.get("rerank", 0),
            metric=values.get("metric", "accuracy"),
            portfolio=tuple(values.get("portfolio", ())),
            prior=tuple(values.get("prior", (NO_PRIOR,))),
            proposals=tuple(Proposal(**proposal) for proposal in values.get("proposals", ())),
        )
