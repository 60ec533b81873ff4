"""Types, ranges and choices of config values, declared beside the fields that hold them. No torch.

A field says what it takes in its annotation: ``epsilon: Annotated[float, Range(0)]``. Dataclasses of the schema and
components are checked by the same functions.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 1e30  # a float32 holds little more, and a step multiplies it
LARGEST_WHOLE = 10**18  # a tensor's integer holds little more
MOST_ROWS = 10**6  # rows that a step, an evaluation or a task may hold: a typing error must not fill the memory
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        low, high: smallest and largest value; infinite where there is no bound.
        above, below: whether the bound itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        if self.high == math.inf:
            return f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        low, high = (f"{int(end)}" if float(end).is_integer() else f"{end:g}" for end in (self.low, self.high))
        return f"in {'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}"


@dataclass(frozen=True, init=False)
class OneOf:
    """The values that a text may have."""

    options: tuple[str, ...]

    def __init__(self, *options: str) -> None:
        object.__setattr__(self, "options", options)

    def __contains__(self, value: str) -> bool:
        return value in self.options

    def __str__(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Key:
    """What a field takes.

    Attributes:
        type: its annotation without ``Annotated``.
        bounds: its ``Range`` or ``OneOf``; None where it has neither.
    """

    type: Any
    bounds: Range | OneOf | None


@cache
def keys_of(cls: Any) -> dict[str, Key]:
    """Return the keys of a dataclass by name, including those of its base classes."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _key(hints[field.name]) for field in fields(cls) if field.init}


def _key(hint: Any) -> Key:
    if get_origin(hint) is not Annotated:
        return Key(hint, None)
    inner, *extras = get_args(hint)
    return Key(inner, next((one for one in extras if isinstance(one, (Range, OneOf))), None))


def convert(cls: type, prefix: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert values to the types of the fields of a dataclass; return them with a line for each problem.

    Args:
        prefix: of the keys in messages, such as ``token_sampler``.
        values: by key, as YAML gives them.
    """
    keys, converted, problems = keys_of(cls), {}, []
    for name in values:
        if name not in keys:
            problems.append(f"{prefix}.{name}: no such key; here there are {', '.join(sorted(keys)) or 'none'}")
    for name, key in keys.items():
        where = f"{prefix}.{name}"
        if name not in values:
            problems.append(f"{where}: has no value; give +{where}=..., or a line in the yaml file of the option")
            continue
        try:
            converted[name] = _converted(key.type, values[name])
        except TypeError:
            problems.append(f"{where}={shown(values[name])}: must be {_kind(key.type)}")
        else:
            problems += value_problems(where, key, converted[name])
    return converted, problems


def value_problems(where: str, key: Key, value: Any) -> Iterator[str]:
    """Yield what is wrong with a value; items of a list are reported under its key."""
    for item in value if isinstance(value, (list, tuple)) else [value]:
        remedy = _unusable(item)
        if remedy is None and not _within(item, key.bounds):
            remedy = str(key.bounds)
        if remedy is not None:
            yield f"{where}={shown(item)}: must be {remedy}"


def _within(value: Any, bounds: Range | OneOf | None) -> bool:
    if isinstance(bounds, Range):
        return not isinstance(value, (int, float)) or value in bounds
    return not isinstance(bounds, OneOf) or not isinstance(value, str) or value in bounds


def shown(value: Any) -> str:
    """Return a value as written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if value.isprintable() and not _has_surrogate(value) else repr(value)
    return str(value)


def _converted(hint: Any, value: Any) -> Any:
    """Return the value converted to a type.

    Raises:
        TypeError: it cannot be one without a loss.
    """
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin is Annotated:
        return _converted(get_args(hint)[0], value)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise TypeError
    if origin in (Union, UnionType):
        for option in sorted(get_args(hint), key=lambda one: one is not type(value)):  # the very type first
            try:
                return _converted(option, value)
            except TypeError:
                continue
    elif origin in (list, tuple):
        item = get_args(hint)[0]
        if isinstance(value, (list, tuple)) and value:
            return [_converted(item, one) for one in value]
    elif hint is dict or origin is dict:
        if isinstance(value, dict):
            return value
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value) + 0.0  # no -0.0, which is another text than 0.0
            except OverflowError:
                raise TypeError from None
    elif type(value) is hint:
        return value
    raise TypeError


def _kind(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(_kind(option) for option in get_args(hint))
    if origin is Annotated:
        return _kind(get_args(hint)[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if hint is dict or origin is dict:
        return "a mapping"
    if origin in (list, tuple):
        return f"a list of {_kind(get_args(hint)[0])}s".replace("a whole", "whole").replace("texts", "names")
    return KINDS.get(hint, getattr(hint, "__name__", str(hint)))


def _unusable(value: Any) -> str | None:
    """Return what a value must be, or None if it is usable for any key."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "a finite number"
        if abs(value) > LARGEST:
            return f"between -{LARGEST:g} and {LARGEST:g}"
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return "a whole number of at most 18 digits"
    elif isinstance(value, str) and ("\0" in value or _has_surrogate(value)):
        return "text that UTF-8 can write, without a zero byte"
    return None


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
