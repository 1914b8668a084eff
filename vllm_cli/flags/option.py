"""A supported flag as an option of click, which converts its values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from envs.registry import env
from envs.variable import EnvError
from vllm_cli.flags.arguments import Arguments
from vllm_cli.flags.flag import Shape, SupportedFlag

_MODELS: Final = ("--model", "--tokenizer")
_KINDS: Final = {"FILE": "file", "PATH": "file", "FOLDER": "dir"}
"""Metavar of a flag -> what a shell completes."""


class FlagOption(click.Option):
    """A flag with its type, help and completion."""

    def __init__(self, flag: SupportedFlag) -> None:
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes models, files, folders and choices."""
        if self.flag.name in _MODELS:
            return complete_model(ctx, self, incomplete)
        if kind := _KINDS.get(self.flag.metavar or ""):
            return [CompletionItem(incomplete, type=kind)]
        return super().shell_complete(ctx, incomplete)

    def find_value(self, given: Arguments, in_file: Arguments) -> Any:
        """Precedence: option, variable, file; None if none of them has a value."""
        name, variable = self.flag.name, self.flag.variable
        if name in given.flags:
            return given.flags[name].value
        if variable is not None and variable.raw is not None:
            value = variable.get()
            return (value,) if self.multiple else value
        return in_file.flags[name].value if name in in_file.flags else None


_PREFIX: Final = "models--"


def complete_model(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """If no model matches, the shell completes folders."""
    download_dir = ctx.params.get("download_dir")
    names = [name for name in sorted(cached_models(download_dir)) if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


def cached_models(download_dir: str | None = None) -> Iterator[str]:
    """Hub ids of downloaded models, taken from the names of folders."""
    try:
        folder = Path(download_dir) if download_dir else env.HF_HUB_CACHE.get()
        for entry in folder.iterdir():
            if entry.name.startswith(_PREFIX) and (entry / "snapshots").is_dir():
                yield entry.name.removeprefix(_PREFIX).replace("--", "/")
    except (OSError, EnvError):
        return
