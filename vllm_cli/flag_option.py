"""A flag of the table as an option of click, which converts values and keeps the order of precedence."""

from typing import Any

import click

from vllm_cli.flag import HonouredFlag, Shape


class FlagOption(click.Option):
    """Option over variable over file over default; the variable is read by `envs`, not by click."""

    def __init__(self, flag: HonouredFlag) -> None:
        name = flag.name.removeprefix("--")
        declaration = f"--{name}/--no-{name}" if flag.shape is Shape.SWITCH else flag.name
        super().__init__(
            [declaration, flag.parameter],
            type=flag.type,
            multiple=flag.shape is Shape.LIST,
            default=None,
            help=flag.help,
            metavar=flag.metavar,
        )
        self.flag = flag

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """The variable's typed value, None where it is unset."""
        variable = self.flag.variable
        if variable is None or variable.raw is None:
            return None
        value = variable.get()
        return (value,) if self.multiple else value
