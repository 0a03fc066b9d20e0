import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from support.manifests import make_manifest, make_space

from study.config.manifest import FORMAT, SMALL, Manifest
from study.errors import ConfigError

RECORDS = Path(__file__).parents[1] / "records"


def recorded(name: str) -> dict:
    lines = (RECORDS / name / "journal.log").read_text().splitlines()
    return next(
        found["user_attr"]["manifest"] for found in map(json.loads, lines) if "manifest" in found.get("user_attr", {})
    )


def assert_holds(new: object, old: object) -> None:
    """Assert that a JSON value has all the values of an older one, and fields beside them at most."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert_holds(new[key], value)
    elif isinstance(old, list):
        for one, other in zip(new, old, strict=True):
            assert_holds(one, other)
    else:
        assert new == old


@pytest.mark.parametrize(
    "manifest", [make_manifest(), *(make_manifest(space=make_space(), repeats=repeats) for repeats in (3, "auto"))]
)
def test_manifest_survives_json(manifest):
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


@pytest.mark.parametrize("name", ["baseline", "search", "killed"])
def test_manifest_of_an_old_study_is_unchanged(name):
    old = recorded(name)
    new = Manifest.from_dict(old).to_dict()
    assert_holds(new, {**old, "format": SMALL})
    assert Manifest.from_dict(new) == Manifest.from_dict(old)


def test_manifest_is_frozen():
    with pytest.raises(FrozenInstanceError):
        make_manifest().seed = 1


def test_every_mistake_of_a_manifest_is_reported():
    values = {**make_manifest().to_dict(), "seed": -1, "fraction": 1.5, "classes": ["cat"]}
    with pytest.raises(ConfigError) as caught:
        Manifest.from_dict(values)
    assert sorted(str(caught.value).splitlines()) == [
        "manifest.classes: must hold 2 or more, but got ('cat',).",
        "manifest.fraction: must be at most 1, but got 1.5.",
        "manifest.seed: must be at least 0, but got -1.",
    ]


def test_manifest_without_a_key_is_refused():
    values = make_manifest().to_dict()
    del values["recipes"]
    with pytest.raises(ConfigError, match=r"^manifest\.recipes: must be given, but is missing\.$"):
        Manifest.from_dict(values)


def test_manifest_of_a_later_version_is_refused():
    with pytest.raises(ConfigError, match=r"a later version of study made it\. Update study\."):
        Manifest.from_dict({**make_manifest().to_dict(), "format": FORMAT + 1})


def test_each_study_has_its_own_uid():
    assert make_manifest().uid != make_manifest().uid
