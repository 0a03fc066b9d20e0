"""Check values with pydantic, and report all their mistakes as ConfigErrors with place, rule and value.

Knows no recipe and no file.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from study.errors import ConfigError, unknown_name


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
    known = [*required, *optional]
    lines = [unknown_name("key", key, known) for key in table if key not in known]
    lines += [f"{key} must be given, but is missing." for key in required if key not in table]
    if lines:
        raise ConfigError("\n".join(lines))


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


class Mistakes:
    """Collects the configuration errors of several steps, so that all mistakes of a file are reported at once."""

    def __init__(self) -> None:
        """Begin without a mistake."""
        self._lines: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a configuration error of the block for later."""
        try:
            yield
        except ConfigError as error:
            self._lines += str(error).splitlines()

    def report(self) -> None:
        """Raise all collected errors as one, a line each.

        Raises:
            ConfigError: there was a mistake.
        """
        if self._lines:
            raise ConfigError("\n".join(dict.fromkeys(self._lines)))


@contextmanager
def within(place: str) -> Iterator[None]:
    """Prefix the messages of configuration errors with `place`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(f"{place}{line}" for line in str(error).splitlines())) from None


RULES = {
    "greater_than": "be above {gt:g}",
    "greater_than_equal": "be at least {ge:g}",
    "less_than": "be below {lt:g}",
    "less_than_equal": "be at most {le:g}",
    "finite_number": "be a finite number",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "string_type": "be a string",
    "string_too_short": "not be empty",
    "too_short": "hold {min_length} or more",
}
"""Our words for pydantic's kinds of errors; the others keep its own."""

_Checked = TypeVar("_Checked")


@dataclass_transform(frozen_default=True)
def checked(*, flags: bool = False) -> Callable[[type[_Checked]], type[_Checked]]:
    """Make a frozen dataclass whose constructor checks every field, and reports all mistakes in one ConfigError.

    Args:
        flags: whether the fields are command-line flags, and are named so in errors.
    """

    def decorate(cls: type[_Checked]) -> type[_Checked]:
        made: Any = dataclass(frozen=True, config=ConfigDict(strict=True))(cls)
        construct = made.__init__
        names = [field.name for field in dataclasses.fields(made)]

        @functools.wraps(construct)
        def __init__(self: _Checked, *arguments: Any, **fields: Any) -> None:
            try:
                construct(self, *arguments, **fields)
            except ValidationError as error:
                raise explain(error, names=names, flags=flags) from None

        made.__init__ = __init__
        return made  # type: ignore[no-any-return]

    return decorate


def one_of(*choices: str) -> AfterValidator:
    """Return a check that a field holds one of a few names."""

    def check(value: str) -> str:
        if value not in choices:
            raise PydanticCustomError("name", "{text}", {"text": unknown_name("choice", value, choices)})
        return value

    return AfterValidator(check)


def matches(holds: Callable[[Any], bool], rule: str) -> AfterValidator:
    """Return a check of any rule, which is written as in 'must <rule>, but got …'."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError("rule", "{text}", {"text": rule})
        return value

    return AfterValidator(check)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def explain(error: ValidationError, place: str = "", *, names: Sequence[str] = (), flags: bool = False) -> ConfigError:
    """Translate all errors that pydantic found, one a line, into our form: place, rule, value.

    Args:
        error: from a pydantic dataclass.
        place: put in front of each line.
        names: names of fields that were given by position.
        flags: whether to spell fields as command-line flags.
    """
    lines = []
    for found in error.errors():
        first, *others = (names[part] if isinstance(part, int) and names else str(part) for part in found["loc"])
        key = ".".join([f"--{first.replace('_', '-')}" if flags else first, *others])
        if found["type"] == "name":
            lines.append(f"{place}{key}: {found['msg']}")
            continue
        rule = RULES.get(found["type"], found["msg"].removeprefix("Input should ")).format(**found.get("ctx", {}))
        lines.append(f"{place}{key}: must {rule[0].lower()}{rule[1:]}, but got {_shorten(found['input'])}.")
    return ConfigError("\n".join(lines))
