"""The types of environment variables: one constructor and one parser each."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from envs.duration import EXPECTED as EXPECTED_DURATION
from envs.duration import parse_duration
from envs.home import expand_home
from envs.suggestion import did_you_mean
from envs.variable import EnvVar, InvalidValueError

N = TypeVar("N", int, float)

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def text(description: str) -> EnvVar[str | None]:
    """Any text; None if unset."""
    return EnvVar[str | None]("text", str, lambda: None, description)


def names(description: str) -> EnvVar[frozenset[str]]:
    """Names separated by commas; none if unset."""
    return EnvVar("names", lambda raw: frozenset(filter(None, map(str.strip, raw.split(",")))), frozenset, description)


def path(default_factory: Callable[[], Path], description: str) -> EnvVar[Path]:
    """A folder or file; `~` is expanded."""
    return EnvVar("path", lambda raw: Path(expand_home(raw)), default_factory, description)


def boolean(default: bool, description: str) -> EnvVar[bool]:
    """`1/true/yes/on` or `0/false/no/off`."""
    return EnvVar("boolean", _parse_boolean, lambda: default, description, choices=_TRUE + _FALSE)


def presence(description: str) -> EnvVar[bool]:
    """True if the variable has any value."""
    return EnvVar("presence", bool, lambda: False, description)


def integer(default: int, description: str, *, minimum: int) -> EnvVar[int]:
    """A whole number of at least `minimum`."""
    return EnvVar("integer", _integer_parser(minimum), lambda: default, description)


def number(default: float, description: str, *, above: float) -> EnvVar[float]:
    """A number above a bound."""
    return EnvVar("number", _number_parser(above), lambda: default, description)


def optional_duration(description: str) -> EnvVar[float | None]:
    """Seconds, or a number with a unit; None if unset."""
    return EnvVar[float | None]("duration", _parse_duration, lambda: None, description)


def optional_integer(description: str, *, minimum: int) -> EnvVar[int | None]:
    """A whole number of at least `minimum`; None if unset."""
    return EnvVar[int | None]("integer", _integer_parser(minimum), lambda: None, description)


def choice(default: str, choices: tuple[str, ...], description: str) -> EnvVar[str]:
    """One of a list of words."""
    return EnvVar("choice", _choice_parser(choices), lambda: default, description, choices=choices)


def choice_in_capitals(default: str, choices: tuple[str, ...], description: str) -> EnvVar[str]:
    """One of a list of words in capitals, accepted in any case."""
    parse = _choice_parser(choices)
    return EnvVar("choice", lambda raw: parse(raw.upper()), lambda: default, description, choices=choices)


def _parse_duration(raw: str) -> float:
    try:
        return parse_duration(raw)
    except ValueError as err:
        raise InvalidValueError(EXPECTED_DURATION) from err


def _parse_boolean(raw: str) -> bool:
    word = raw.strip().lower()
    if word not in _TRUE + _FALSE:
        raise InvalidValueError("one of " + ", ".join(_TRUE + _FALSE))
    return word in _TRUE


def _integer_parser(minimum: int) -> Callable[[str], int]:
    return _parser(int, lambda value: value >= minimum, f"a whole number, {minimum} or more")


def _number_parser(above: float) -> Callable[[str], float]:
    return _parser(float, lambda value: above < value < math.inf, f"a number above {above:g}")


def _parser(convert: Callable[[str], N], is_in_range: Callable[[N], bool], expected: str) -> Callable[[str], N]:
    def parse(raw: str) -> N:
        try:
            value = convert(raw)
        except ValueError as err:
            raise InvalidValueError(expected) from err
        if not is_in_range(value):
            raise InvalidValueError(expected)
        return value

    return parse


def _choice_parser(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in choices:
            raise InvalidValueError("one of " + ", ".join(choices), hint=did_you_mean(raw, choices))
        return raw

    return parse
