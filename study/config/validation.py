"""Check single values, and put the place of a mistake in front of its message.

Knows no recipe and no file.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

from pydantic import ValidationError

from study.errors import ConfigError, unknown_name


def check(holds: bool, field: str, rule: str, value: object) -> None:
    """Require that a field keeps its rule."""
    if not holds:
        raise ConfigError(f"{field}: {rule}, but got {value!r}.")


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Require one of a few names."""
    if value not in choices:
        raise ConfigError(f"{field}: {unknown_name('choice', value, choices)}")


def read_table(
    document: Mapping[str, Any], key: str, required: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return a copy of the table `key`, or an empty one if it is missing; check the table's keys."""
    table = document.get(key, {})
    with within(f"{key}: "):
        require(isinstance(table, dict), "must be a table", table)
        check_keys(table, required, optional)
    return dict(table)


def check_keys(table: Mapping[str, Any], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Require the keys that must be there, and refuse unknown ones."""
    for key in table:
        if key not in [*required, *optional]:
            raise ConfigError(unknown_name("key", key, [*required, *optional]))
    for key in required:
        if key not in table:
            raise ConfigError(f"{key} must be given, but is missing.")


def check_whole(key: str, value: object, *, at_least: int) -> None:
    """Require a whole number."""
    require(type(value) is int and value >= at_least, f"{key}: must be a whole number, at least {at_least}", value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether `value` is a number within the range of floats; whole numbers in TOML can exceed it."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def require(holds: bool, rule: str, value: object) -> None:
    """Require that a rule holds."""
    if not holds:
        raise ConfigError(f"{rule}, but got {value!r}.")


@contextmanager
def within(place: str) -> Iterator[None]:
    """Prefix the messages of configuration errors with `place`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


RULES = {
    "greater_than": "be above {gt:g}",
    "greater_than_equal": "be at least {ge:g}",
    "less_than": "be below {lt:g}",
    "less_than_equal": "be at most {le:g}",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "string_type": "be a string",
    "string_too_short": "not be empty",
    "too_short": "hold {min_length} or more",
}
"""Our words for pydantic's kinds of errors; the others keep its own."""


def explain(error: ValidationError, place: str) -> ConfigError:
    """Translate all errors that pydantic found, one a line, into our form: place, rule, value."""
    lines = []
    for found in error.errors():
        key = ".".join(str(part) for part in found["loc"])
        rule = RULES.get(found["type"], found["msg"].removeprefix("Input should ")).format(**found.get("ctx", {}))
        lines.append(f"{place}{key}: must {rule[0].lower()}{rule[1:]}, but got {found['input']!r}.")
    return ConfigError("\n".join(lines))
