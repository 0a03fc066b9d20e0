"""Define the design of a study, which a resumed study must keep: its fixed trials, or the space that it searches.

Knows no torch, Ray, Optuna or MLflow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from study.config import Recipe
from study.search_space import Categorical, SearchSpace


@dataclass(frozen=True)
class Design:
    """Everything about a study's trials that is known before the study begins."""

    stage: str
    """Stage of `recipes`: baseline, as-written or search."""
    recipes: tuple[Recipe, ...]
    """Recipes of the fixed trials; for a search, only the baseline's recipe, which is its first trial."""
    space: SearchSpace | None = None
    """Space from which a search proposes recipes; None for fixed trials."""
    repeats: int = 0
    """Number of seeds in a search's verdict."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models of the study, each once."""
        return tuple(dict.fromkeys(recipe.model for recipe in self.recipes))

    @property
    def image_size(self) -> int:
        """Largest input side of any trial in pixels, for which the images are stored."""
        sizes = [recipe.image_size for recipe in self.recipes]
        if self.space:
            domain = self.space.domains.get("image_size")
            searched = () if domain is None else domain.choices if isinstance(domain, Categorical) else (domain.high,)
            sizes += [self.space.recipe({"image_size": size}).image_size for size in searched]
            sizes.append(self.space.base.image_size)
        return max(sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return the design as JSON values; `from_dict` is the inverse."""
        return {
            "stage": self.stage,
            "recipes": [recipe.to_dict() for recipe in self.recipes],
            "space": self.space.to_dict() if self.space else None,
            "repeats": self.repeats,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a design from the values that `to_dict` returned."""
        return cls(
            stage=values["stage"],
            recipes=tuple(Recipe.from_dict(recipe) for recipe in values["recipes"]),
            space=SearchSpace.from_dict(values["space"]) if values["space"] else None,
            repeats=values["repeats"],
        )
