"""One environment variable: its type, its default and the only way to read it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Generic, Literal, TypeVar

from envs.redaction import MASK, is_secret_name, without_login

T = TypeVar("T")

Source = Literal["default", "environment"]


class EnvError(ValueError):
    """A variable has a value that is not allowed; the command line makes it one line and exit code 2."""

    def __init__(self, name: str, shown_value: str, expected: str, *, hint: str = "") -> None:
        super().__init__(f"{name} must be {expected}, got {shown_value!r}{hint}")
        self.name = name


class InvalidValueError(ValueError):
    """Raised by a variable's parser: what it expected, with a suggestion as hint."""

    def __init__(self, expected: str, *, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


@dataclass(eq=False)
class EnvVar(Generic[T]):
    """A declared variable. Its name is the name of the attribute that it is assigned to.

    An empty value counts as unset, because container files often leave variables empty.
    """

    kind: str
    parse: Callable[[str], T]
    default_factory: Callable[[], T]
    description: str
    _: KW_ONLY
    choices: tuple[str, ...] = ()
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def is_secret(self) -> bool:
        """Whether output must mask its value."""
        return is_secret_name(self.name)

    @property
    def default(self) -> T:
        """The value of an unset variable."""
        return self.default_factory()

    @property
    def raw(self) -> str | None:
        """The text in the environment; None if unset."""
        return os.environ.get(self.name) or None

    @property
    def is_empty(self) -> bool:
        """Whether the variable exists and is empty, for variables where that differs from unset."""
        return os.environ.get(self.name) == ""

    @property
    def source(self) -> Source:
        """The source of the value that `get` returns."""
        return "default" if self.raw is None else "environment"

    def get(self) -> T:
        """The typed value; raises EnvError if the text in the environment is not valid."""
        raw = self.raw
        if raw is None:
            return self.default
        try:
            return self.parse(raw)
        except InvalidValueError as err:
            raise EnvError(self.name, self.show(raw), err.expected, hint=err.hint) from err

    def show(self, value: object) -> str:
        """The value for output: secrets and logins in URLs are masked, None is empty."""
        if value is None:
            return ""
        return MASK if self.is_secret else without_login(str(value))

    @contextmanager
    def override(self, value: str | None) -> Iterator[None]:
        """Sets (None: removes) the variable for a block and the processes started in it, then restores it."""
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
