"""Declares and reads one environment variable. Each type of variable has a constructor."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from envs.foreign import expand_home
from envs.redaction import MASK, is_secret_name, without_login
from envs.suggestion import did_you_mean

T = TypeVar("T")

Source = Literal["default", "environment"]

N = TypeVar("N", int, float)

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

EXPECTED_DURATION: Final = "a duration of at least 1 s such as 90s, 10m or 1h"

_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhd]?)")
_FACTORS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class EnvError(ValueError):
    """A variable has a value that is not allowed. The command line prints one line and exits with code 2."""

    def __init__(self, name: str, shown_value: str, expected: str, *, hint: str = "") -> None:
        super().__init__(f"{name} must be {expected}, got {shown_value!r}{hint}")
        self.name = name


class InvalidValueError(ValueError):
    """Raised by the parser of a variable, with the expected form of the value and a suggestion as hint."""

    def __init__(self, expected: str, *, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


@dataclass(eq=False)
class EnvVar(Generic[T]):
    """A declared variable. It is named like the attribute to which it is assigned.

    An empty value counts as unset, because container files often leave variables empty.
    """

    kind: str
    parse: Callable[[str], T]
    default_factory: Callable[[], T]
    description: str
    _: KW_ONLY
    choices: tuple[str, ...] = ()
    is_internal: bool = False
    """Whether only this program sets the variable, for its own processes."""
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def is_secret(self) -> bool:
        """Whether output must mask the variable's value."""
        return self.kind == "text" and is_secret_name(self.name)

    @property
    def default(self) -> T:
        """The value that counts if the variable is not set."""
        return self.default_factory()

    @property
    def raw(self) -> str | None:
        """The text in the environment. None if the variable is unset."""
        return os.environ.get(self.name) or None

    @property
    def source(self) -> Source:
        return "default" if self.raw is None else "environment"

    def get(self) -> T:
        """The typed value. Raises EnvError if the text in the environment is not valid."""
        raw = self.raw
        if raw is None:
            return self.default
        try:
            return self.parse(raw)
        except InvalidValueError as err:
            raise EnvError(self.name, self.show(raw), err.expected, hint=err.hint) from err

    def show(self, value: object) -> str:
        """The value as text for output, without secrets and logins in URLs. Empty for None."""
        if value is None:
            return ""
        text = ",".join(sorted(value)) if isinstance(value, frozenset) else str(value)
        return MASK if self.is_secret and text else without_login(text)

    @contextmanager
    def override(self, value: str | None) -> Iterator[None]:
        """Sets the variable for the block and processes started in it. None removes it. Then restores it."""
        before = os.environ.get(self.name)
        self._write(value)
        try:
            yield
        finally:
            self._write(before)

    def _write(self, value: str | None) -> None:
        if value is None:
            os.environ.pop(self.name, None)
        else:
            os.environ[self.name] = value


def text(description: str) -> EnvVar[str | None]:
    """Any text. None if the variable is not set."""
    return EnvVar[str | None]("text", str, lambda: None, description)


def internal(variable: EnvVar[T]) -> EnvVar[T]:
    """Marks a variable that only this program sets."""
    variable.is_internal = True
    return variable


def names(description: str) -> EnvVar[frozenset[str]]:
    """Names separated by commas. An empty set if the variable is unset."""
    return EnvVar("names", lambda raw: frozenset(filter(None, map(str.strip, raw.split(",")))), frozenset, description)


def path(default_factory: Callable[[], Path], description: str) -> EnvVar[Path]:
    """A folder or file. `~` is expanded."""
    return EnvVar("path", lambda raw: Path(expand_home(raw)), default_factory, description)


def hub_path(default_factory: Callable[[], Path | str], description: str) -> EnvVar[Path]:
    """A folder or file. `~` and `$VARIABLE` are expanded as in the hub's client, also in the default."""

    def parse(raw: Path | str) -> Path:
        return Path(os.path.expandvars(expand_home(str(raw))))

    return EnvVar("path", parse, lambda: parse(default_factory()), description)


def hub_seconds(default: int, description: str) -> EnvVar[int]:
    """Whole seconds, in the form that the Hugging Face hub's client reads. 0 means the default."""
    return EnvVar("integer", lambda raw: _integer_parser(0)(raw) or default, lambda: default, description)


def boolean(default: bool, description: str) -> EnvVar[bool]:
    """True for `1/true/yes/on`, False for `0/false/no/off`."""
    return EnvVar("boolean", _parse_boolean, lambda: default, description, choices=_TRUE + _FALSE)


def hub_boolean(description: str) -> EnvVar[bool]:
    """A boolean, in the form that the Hugging Face hub's client reads. Only `1/true/yes/on` are true."""
    return EnvVar("boolean", lambda raw: raw.lower() in _TRUE, lambda: False, description)


def presence(description: str) -> EnvVar[bool]:
    """True if the variable has any value."""
    return EnvVar("presence", bool, lambda: False, description)


def integer(default: int, description: str, *, minimum: int) -> EnvVar[int]:
    """A whole number of at least `minimum`."""
    return EnvVar("integer", _integer_parser(minimum), lambda: default, description)


def number(default: float, description: str, *, above: float) -> EnvVar[float]:
    """A number above a bound."""
    parse = _parser(float, lambda value: above < value < math.inf, f"a number above {above:g}")
    return EnvVar("number", parse, lambda: default, description)


def seconds(default: float, description: str) -> EnvVar[float]:
    """A number of seconds, 0 or more."""
    parse = _parser(float, lambda value: 0 <= value < math.inf, "a number of seconds, 0 or more")
    return EnvVar("number", parse, lambda: default, description)


def optional_duration(description: str) -> EnvVar[float | None]:
    """A duration in seconds. Its text may have a unit. None if the variable is not set."""
    return EnvVar[float | None]("duration", parse_duration, lambda: None, description)


def optional_integer(description: str, *, minimum: int) -> EnvVar[int | None]:
    """A whole number of at least `minimum`. None if the variable is unset."""
    return EnvVar[int | None]("integer", _integer_parser(minimum), lambda: None, description)


def choice(default: str, choices: tuple[str, ...], description: str) -> EnvVar[str]:
    """One of these words. If they are capitals, any case is accepted."""

    def parse(raw: str) -> str:
        value = raw.upper() if default.isupper() else raw
        if value not in choices:
            raise InvalidValueError("one of " + ", ".join(choices), hint=did_you_mean(value, choices))
        return value

    return EnvVar("choice", parse, lambda: default, description, choices=choices)


def _parse_boolean(raw: str) -> bool:
    word = raw.strip().lower()
    if word not in _TRUE + _FALSE:
        raise InvalidValueError("one of " + ", ".join(_TRUE + _FALSE))
    return word in _TRUE


def _integer_parser(minimum: int) -> Callable[[str], int]:
    return _parser(int, lambda value: value >= minimum, f"a whole number, {minimum} or more")


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


def parse_duration(text: str) -> float:
    """The seconds of a duration such as `10m`. Raises InvalidValueError for other texts and below 1 s."""
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match[1]) * _FACTORS[match[2]] if match else 0.0
    if seconds < 1:
        raise InvalidValueError(EXPECTED_DURATION)
    return seconds
