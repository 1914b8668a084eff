"""A click group that imports a command when it runs, but not to list it."""

from importlib import import_module
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from envs.suggestion import did_you_mean


class CommandEntry(NamedTuple):
    """One line of the table of commands."""

    name: str
    target: str
    """`package.module:attribute` of the click command."""
    help: str


class LazyGroup(click.Group):
    """A group with a table of commands; `--help` imports none of them."""

    def __init__(self, *, table: tuple[CommandEntry, ...], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._entries = {entry.name: entry for entry in table}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command."""
        entry = self._entries.get(cmd_name)
        return load_command(entry) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """An unknown command is a usage error with a suggestion."""
        if args[0] not in self._entries and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{did_you_mean(args[0], self._entries)}.")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names of the table, without importing the commands."""
        fitting = [entry for entry in self._entries.values() if entry.name.startswith(incomplete)]
        commands = [CompletionItem(entry.name, help=entry.help) for entry in fitting]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Prints the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.help) for entry in self._entries.values()])


def load_command(entry: CommandEntry) -> click.Command:
    """Imports the command of a table entry."""
    module, _, attribute = entry.target.partition(":")
    command = getattr(import_module(module), attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{entry.target} is not a click command")
    return command
