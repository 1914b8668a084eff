"""What the command line knows about one flag of `vllm serve`."""

from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import Any

import click

from envs.variable import EnvVar


class Shape(Enum):
    """How many words follow a flag."""

    VALUE = "one value"
    SWITCH = "no value; --no-x is the opposite"
    LIST = "one value or more"
    OPTIONAL = "one value or none"


@dataclass(frozen=True)
class Flag:
    """A flag's names and shape: all that is needed to find where the next flag begins."""

    name: str
    aliases: tuple[str, ...] = ()
    _: KW_ONLY
    shape: Shape = Shape.VALUE
    harmless: tuple[str, ...] = ()
    """Values that ask for nothing that the embedded engine would not do anyway: vLLM's default, above all."""

    @property
    def names(self) -> tuple[str, ...]:
        """The long name first."""
        return (self.name, *self.aliases)

    @property
    def parameter(self) -> str:
        """The name as a Python identifier."""
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class HonouredFlag(Flag):
    """A flag that does what it says."""

    _: KW_ONLY
    help: str
    fields: tuple[str, ...] = ()
    """Where the value goes: `server.port` is the field `port` of `StartupConfig.server`."""
    type: click.ParamType[Any] | None = None
    """None takes text as it is."""
    metavar: str | None = None
    variable: EnvVar[Any] | None = None
    """Read where the flag is not given."""

    @property
    def is_secret(self) -> bool:
        """Whether nobody else should see its value."""
        return self.variable is not None and self.variable.is_secret


def value(name: str, *aliases: str, harmless: tuple[str, ...] = ()) -> Flag:
    """A flag that takes one value."""
    return Flag(name, aliases, harmless=harmless)


def values(name: str, *aliases: str, harmless: tuple[str, ...] = ()) -> Flag:
    """A flag that takes one value or more."""
    return Flag(name, aliases, shape=Shape.LIST, harmless=harmless)


def switch(name: str, *aliases: str, harmless: bool = False) -> Flag:
    """A flag that is on or off."""
    return Flag(name, aliases, shape=Shape.SWITCH, harmless=(str(harmless).lower(),))
