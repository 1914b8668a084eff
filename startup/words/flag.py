"""Describes flags of `vllm serve`, and the use of each flag in the embedded engine."""

from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import Any

import click

from base.setting import Role
from envs.redaction import is_secret_name
from envs.variable import EnvVar


class Shape(Enum):
    """The number of values that follow a flag, in the form of argparse's `nargs`."""

    VALUE = 1
    SWITCH = 0
    """A flag without a value. `--no-x` turns it off."""
    LIST = "+"
    OPTIONAL = "?"


@dataclass(frozen=True)
class Flag:
    """A flag's names and number of values. These suffice to find where the next flag begins."""

    name: str
    aliases: tuple[str, ...] = ()
    _: KW_ONLY
    shape: Shape = Shape.VALUE
    neutral: tuple[str, ...] = ()
    """Values that change nothing in the embedded engine, such as vLLM's default."""
    role: Role | None = None
    """The processes that read the setting if the server has a router (`base.setting.Role`)."""
    variable: EnvVar[Any] | None = None
    """The variable that is read if the flag is not given."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names. The long name comes first."""
        return (self.name, *self.aliases)

    @property
    def num_values(self) -> int | str:
        """The value of `shape`, in the form of argparse's `nargs`."""
        number: int | str = self.shape.value
        return number

    @property
    def opposite(self) -> str:
        """The name that turns the switch off."""
        return f"--no-{self.name.removeprefix('--')}"

    @property
    def is_secret(self) -> bool:
        """Whether output must mask the flag's value."""
        return self.shape is not Shape.SWITCH and is_secret_name(self.name)

    @property
    def is_set(self) -> bool:
        return self.variable is not None and self.variable.raw is not None

    @property
    def parameter(self) -> str:
        """The name as a Python identifier."""
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, eq=False)
class SupportedFlag(Flag):
    """A flag that has an effect in the embedded engine or the launcher."""

    _: KW_ONLY
    help: str
    fields: tuple[str, ...] = ()
    """The fields of `StartupConfig` that get the value, such as `server.port`."""
    default: Any = None
    """The default value of the first field."""
    type: click.ParamType | None = None
    """The type to which click converts the value. None keeps the text."""
    metavar: str | None = None
