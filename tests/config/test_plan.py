"""What a study is made of, read off its design."""

import pytest
from support.manifests import make_space

from study.config.plan import Design, Plan
from study.config.search_space import Categorical, Float, Int


@pytest.mark.parametrize(
    ("domain", "base", "largest"),
    [
        ({}, 32, 64),
        ({}, 128, 128),
        ({"image_size": Int(32, 160)}, 32, 160),
        ({"image_size": Categorical((192, 96))}, 32, 192),
        ({"image_size": Int(32, 48)}, 32, 64),
    ],
)
def test_image_size_is_the_largest_that_any_trial_can_have(make_recipe, domain, base, largest):
    domains = {"lr": Float(1e-5, 1.0), **domain}
    space = make_space(domains=domains, base=make_recipe(image_size=base))
    assert Design("search", (make_recipe(image_size=64),), space, repeats=1).image_size == largest


def test_image_size_of_fixed_trials_is_the_largest_of_theirs(make_recipe):
    recipes = (make_recipe(image_size=96), make_recipe(image_size=64))
    assert Design("baseline", recipes).image_size == 96


def test_title_shows_the_searched_fields_that_do_something(make_recipe):
    domains = {"mixup": Categorical((0.0, 0.2)), "lr": Float(1e-5, 1.0), "momentum": Float(0.0, 0.9)}
    base = make_recipe()
    design = Design("search", (base,), make_space(domains=domains, base=base))
    adam = Plan(3, "search", base, seed=0)
    sgd = Plan(0, "final", make_recipe(optimizer="sgd", mixup=0.2), seed=7)
    common = "resnet18 · depth 1 · lr 0.001 · batch 16"
    assert design.title(adam) == f"#3 {common} · mixup 0"
    assert design.title(sgd) == f"#final-0 {common} · mixup 0.2 · momentum 0.9 · seed 7"
    assert Design("baseline", (base,)).title(adam) == adam.title == f"#3 {common}"
