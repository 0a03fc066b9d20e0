"""Keys of feature files tell all that outputs depend on apart."""

import dataclasses

import pytest

from study.compute.feature_file import Key

KEY = Key("resnet18", "0" * 16, 1, 32, "1" * 16, "2" * 16, "autoaugment", 0, 1, "bf16", "a machine")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Key)])
def test_key_depends_on_every_field(field):
    value = getattr(KEY, field)
    other = dataclasses.replace(KEY, **{field: value + ("x" if isinstance(value, str) else 1)})
    assert KEY.digest != other.digest
