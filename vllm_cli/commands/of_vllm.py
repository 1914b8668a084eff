"""The commands `run-batch` and `bench serve` of the installed vLLM. They run in this process."""

from collections.abc import Iterator
from typing import Final

import click

from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.arguments.errors import InputError
from startup.settings.serve_arguments import split


class VllmCommand(click.Command):
    """Passes all arguments that follow, even `--help`, to the installed vLLM's command of the same name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps all arguments for `invoke`. Fails with a suggestion for former arguments of this program."""
        path = _path(ctx)
        for former in filter(REPLACEMENTS.get, self._names(path, args)):
            if not ctx.resilient_parsing:
                argument = former.removeprefix(f"{path} ")
                ctx.fail(
                    f"No such {'option' if argument[:1] == '-' else 'command'} {argument!r}{did_you_mean(former, ())}."
                )
        ctx.args = args
        return []

    @staticmethod
    def _names(path: str, args: list[str]) -> Iterator[str]:
        """Yields the names that an argument, a flag or a value may have in the table of replacements."""
        yield " ".join((path, *args[:1]))
        for given in split(args, lambda _: "?"):
            yield f"{path} {given.typed}"
            yield from (f"{path} {given.typed} {value.partition(':')[0]}" for value in given.values)

    def invoke(self, ctx: click.Context) -> int:
        """Runs vLLM's command. Returns the exit code, unless vLLM ends the process itself."""
        from startup.vllm.vllm_main import run_plain
        from startup.vllm_arguments.installed import find_vllm

        path = _path(ctx)
        if find_vllm() is None:
            raise InputError(f"`{path}` is a command of vLLM, which is not installed here (pip install vllm).")
        return run_plain([*path.split(), *ctx.args])


def _path(ctx: click.Context) -> str:
    """The arguments of the command after the program's name, such as `bench serve`."""
    return ctx.command_path.partition(" ")[2]


run_batch: Final = VllmCommand("run-batch", help="vLLM's command: answer the requests of a file.")


def vllms_own(path: str) -> str:
    """The last paragraph of the help, for a command that vLLM has, too."""
    return f"This is vllm-cli's own command. `vllm {path}` is the installed vLLM's."
