"""One environment variable: its type, its default and the only way to read it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Generic, Literal, TypeVar

from envs.errors import EnvError
from envs.redaction import MASK, without_login

T = TypeVar("T")

Source = Literal["default", "environment"]


class InvalidValueError(ValueError):
    """What a variable's parser raises: what it expected, and perhaps a guess."""

    def __init__(self, expected: str, *, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


@dataclass(eq=False)
class EnvVar(Generic[T]):
    """A declared variable. Its name is the name of the attribute that it is assigned to.

    An empty value counts as unset, as container files often leave variables empty.
    """

    kind: str
    parse: Callable[[str], T]
    default_factory: Callable[[], T]
    description: str
    _: KW_ONLY
    is_secret: bool = False
    choices: tuple[str, ...] = ()
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def default(self) -> T:
        """The value of an unset variable."""
        return self.default_factory()

    @property
    def raw(self) -> str | None:
        """The text as the environment holds it, None where unset."""
        return os.environ.get(self.name) or None

    @property
    def is_set_to_nothing(self) -> bool:
        """For a variable that says something by being empty; else the same as unset."""
        return os.environ.get(self.name) == ""

    @property
    def source(self) -> Source:
        """Where `get` takes the value from."""
        return "default" if self.raw is None else "environment"

    def get(self) -> T:
        """The typed value; raises EnvError where the environment holds something else."""
        raw = self.raw
        if raw is None:
            return self.default
        try:
            return self.parse(raw)
        except InvalidValueError as err:
            raise EnvError(self.name, self.show(raw), err.expected, hint=err.hint) from err

    def show(self, value: object) -> str:
        """The value as it may be shown to people: secrets and logins in URLs are masked, None is nothing."""
        if value is None:
            return ""
        return MASK if self.is_secret else without_login(str(value))

    @contextmanager
    def override(self, value: str | None) -> Iterator[None]:
        """Sets the variable (None removes it) for a block, for children started there too, then restores it."""
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
