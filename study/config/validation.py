"""Make dataclasses that check themselves and list all mistakes, one a line: `key: rule, but got value. Hint.`.

pydantic checks the values, and this module words its errors. Knows no recipe and no file.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from study.errors import ConfigError, nearest_name, unknown_name

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""True and '3' are no numbers, and nan is no rate; only a whole number becomes a float where the field is one."""
UNKNOWN = "unexpected_keyword_argument"
"""pydantic's kind of error for an unknown field."""
RULES = {
    "greater_than": "be above {gt:g}",
    "greater_than_equal": "be at least {ge:g}",
    "less_than": "be below {lt:g}",
    "less_than_equal": "be at most {le:g}",
    "finite_number": "be a finite number",
    "int_type": "be a whole number",
    "float_type": "be a finite number",
    "bool_type": "be true or false",
    "string_type": "be a string",
    "string_too_short": "not be empty",
    "list_type": "be a list",
    "tuple_type": "be a list",
    "dict_type": "be a table",
    "dataclass_exact_type": "be a table",
    "too_short": "hold {min_length} or more",
    "too_long": "hold {max_length} or fewer",
}
"""Our words for pydantic's kinds of errors; the others keep its own."""

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(min_length=1)]

_Made = TypeVar("_Made")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(cls: type[_Made]) -> type[_Made]:
    """Make `cls` a frozen dataclass that checks its fields by their types when it is made.

    Its constructor raises one ConfigError that lists every field that is missing, unknown or wrong, one a line. Rules
    that need several fields belong in `__post_init__`, which runs when each field is right.
    """
    made: Any = dataclass(frozen=True, config=STRICT)(cls)
    names = [field.name for field in dataclasses.fields(made)]
    check = made.__init__

    @functools.wraps(check)
    def __init__(self: object, /, *values: object, **named: object) -> None:
        with _in_our_words(names):
            check(self, *values, **named)

    made.__init__ = __init__
    return made  # type: ignore[no-any-return]


@functools.lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)


def check_value(kind: Any, value: object) -> Any:
    """Return a value as the annotated type `kind`.

    Raises:
        ConfigError: the value breaks a rule of `kind`.
    """
    with _in_our_words():
        return _adapter(kind).validate_python(value)


def one_of(what: str, names: Collection[str]) -> AfterValidator:
    """Return the rule that a string is among `names`; `what` says what they are names of."""

    def check(name: str) -> str:
        if name not in names:
            raise ConfigError(unknown_name(what, name, names))
        return name

    return AfterValidator(check)


def from_table(cls: Callable[..., object]) -> BeforeValidator:
    """Return the rule that makes `cls` of a table of its fields."""
    return BeforeValidator(lambda value: cls(**value) if isinstance(value, dict) else value)


def gather(parts: Mapping[str, Callable[[], _Made]]) -> dict[str, _Made]:
    """Make each part, by key; go on after a mistake.

    Raises:
        ConfigError: parts raised it; the message lists the mistakes of all parts, each after the part's key.
    """
    made, mistakes = {}, []
    for key, make in parts.items():
        try:
            made[key] = make()
        except ConfigError as error:
            mistakes.append(_put_after(key, str(error)))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return made


@contextmanager
def within(place: str) -> Iterator[None]:
    """Prefix each line of a configuration error's message with `place`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(f"{place}{line}" for line in str(error).splitlines())) from None


@contextmanager
def _in_our_words(names: Collection[str] = ()) -> Iterator[None]:
    """Word pydantic's errors; `names` are the names of the constructor's fields, in order."""
    try:
        yield
    except ValidationError as error:
        found = error.errors()
        misspelt = {nearest_name(str(one["loc"][0]), names) for one in found if one["type"] == UNKNOWN}
        mistakes = [one for one in found if one["type"] != "missing" or one["loc"][0] not in misspelt]
        raise ConfigError("\n".join(_describe(one, [*names]) for one in mistakes)) from None


def _describe(found: Any, names: list[str]) -> str:
    """Write one error of pydantic in our words."""
    first, *rest = found["loc"] or [""]
    key = ".".join(map(str, [names[first] if isinstance(first, int) else first, *rest]))
    if found["type"] == UNKNOWN:
        return f"{key}: {unknown_name('key', key, names)}"
    if found["type"] == "missing":
        return f"{key}: must be given, but is missing."
    if found["type"] == "value_error":
        return _put_after(key, str(found["ctx"]["error"]))
    rule = RULES.get(found["type"], found["msg"].removeprefix("Input should ")).format(**found.get("ctx", {}))
    return _put_after(key, f"must {rule[0].lower()}{rule[1:]}, but got {_shorten(found['input'])}.")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _put_after(key: str, lines: str) -> str:
    """Put a key before each line: `a` before `b: must …` is `a.b: must …`, before `must …` it is `a: must …`."""
    if not key:
        return lines
    return re.sub(r"^(?=([\w.-]+: )?)", lambda at: key + ("." if at[1] else ": "), lines, flags=re.MULTILINE)
