"""What a study is: the trials that it runs, or the space that it searches; all of it that a resumed study must keep.

Knows no torch, Ray, Optuna or MLflow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from study.config import Recipe
from study.search_space import Categorical, SearchSpace


@dataclass(frozen=True)
class Design:
    """The trials of a study, as far as they are known before it begins."""

    stage: str
    """Of the recipes below: baseline, as-written or search."""
    recipes: tuple[Recipe, ...]
    """Fixed trials; of a search the baseline's alone, which is its first."""
    space: SearchSpace | None = None
    """What a search proposes from; None for fixed trials."""
    repeats: int = 0
    """Seeds of a search's verdict."""

    @property
    def models(self) -> tuple[str, ...]:
        """All that need weights."""
        return tuple(dict.fromkeys(recipe.model for recipe in self.recipes))

    @property
    def image_size(self) -> int:
        """The largest side that any network sees, in pixels: what stored images are made for."""
        sizes = [recipe.image_size for recipe in self.recipes]
        if self.space:
            domain = self.space.domains.get("image_size")
            searched = () if domain is None else domain.choices if isinstance(domain, Categorical) else (domain.high,)
            sizes += [self.space.recipe({"image_size": size}).image_size for size in searched]
            sizes.append(self.space.base.image_size)
        return max(sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return the design as JSON values, from which `from_dict` builds it again."""
        return {
            "stage": self.stage,
            "recipes": [recipe.to_dict() for recipe in self.recipes],
            "space": self.space.to_dict() if self.space else None,
            "repeats": self.repeats,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the design that `to_dict` was called on."""
        return cls(
            stage=values["stage"],
            recipes=tuple(Recipe.from_dict(recipe) for recipe in values["recipes"]),
            space=SearchSpace.from_dict(values["space"]) if values["space"] else None,
            repeats=values["repeats"],
        )
