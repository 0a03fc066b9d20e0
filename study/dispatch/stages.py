"""Hand the images, weights and settings of each stage of a study to its trials, through Ray's object store.

A stage is a group of trials that train on the same images: those of the search, of a re-ranking, or of a round of the
verdict. Knows no record.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, Self, cast

import ray
from ray import tune
from ray.tune.result import DONE

from study.training.run_trial import Inputs

KEY = "stage"
"""Key of the stage in Ray Tune's configuration of a trial."""


class Stage(int):
    """Number of a stage, with the references of its inputs in Ray's object store.

    It is a number because Ray Tune writes configurations to its files: numbers as they are, and all else pickled. Ray
    never frees an object whose reference was pickled outside of its own messages.
    """

    references: "tuple[ray.ObjectRef[Any], ray.ObjectRef[Any]] | None" = None
    """Of the inputs without their weights, and of the weights; None once the stage has ended."""

    def inputs(self) -> Inputs:
        """Read the inputs, in a trial's process; arrays are not copied."""
        assert self.references, "a trial must run before its stage ends"
        inputs, weights = (_read(reference) for reference in self.references)
        return replace(cast(Inputs, inputs), pretrained=weights)

    def __deepcopy__(self, memo: object) -> Self:
        """Return the stage itself: Ray Tune copies configurations, whose stage must end with it."""
        return self


def put_stages(stages: Iterable[Inputs]) -> Iterator[Stage]:
    """Put the inputs of one stage after the other into Ray's object store; all have the weights of the first.

    Going on to the next stage lets Ray free the inputs of the one before, once no process reads them.
    """
    weights = None
    for number, inputs in enumerate(stages):
        weights = weights or ray.put(inputs.pretrained)
        stage = Stage(number)
        stage.references = ray.put(replace(inputs, pretrained={})), weights
        yield stage
        stage.references = None


def with_inputs(function: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """Return a trainable that calls `function` with a trial's configuration and the `inputs` of its stage."""

    def run(config: dict[str, Any]) -> None:
        stage = config.pop(KEY)  # else each result would have the configuration with it, and Ray Tune would keep those
        if stage is None:  # the process was started ahead, and has now imported what `function` needs
            tune.report({DONE: True})  # of a trial without any result, Ray Tune would print that it is complete
        else:
            function(config, inputs=stage.inputs())

    run.__name__ = function.__name__
    return run


@lru_cache(maxsize=2)
def _read(reference: "ray.ObjectRef[Any]") -> Any:
    return ray.get(reference)
