"""The commands of `vllm-cli` with their subcommands, as the program's own groups list them."""

from collections.abc import Iterator

import click

from vllm_cli.main import cli


def walk_commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each command with the words that call it, such as `standby stop`; a group comes before its members."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from walk_commands(command, f"{prefix}{name} ")
