"""`vllm-cli completion`: prints a script with which a shell completes commands, flags and models."""

from typing import Final

import click
from click.shell_completion import get_completion_class

_SHELLS: Final = ("bash", "zsh", "fish")
_PROGRAM: Final = "vllm-cli"
_VARIABLE: Final = "_VLLM_CLI_COMPLETE"
"""The variable that click reads. If it is set, the program prints completions for the shell and exits."""
_ZSH_BEGINNING: Final = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"
"""Enables completion in zsh. Click's script expects that ~/.zshrc has enabled it already."""


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script with which a shell completes commands, flags, choices, and models in the cache folder.

    \b
    Examples:
      echo 'eval "$(vllm-cli completion bash)"' >> ~/.bashrc
      echo 'eval "$(vllm-cli completion zsh)"' >> ~/.zshrc
      vllm-cli completion fish > ~/.config/fish/completions/vllm-cli.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source()
    if shell == "zsh":
        tag, rest = script.split("\n", maxsplit=1)  # `#compdef vllm-cli` must stay the first line
        script = f"{tag}\n{_ZSH_BEGINNING}\n{rest}"
    click.echo(script)
