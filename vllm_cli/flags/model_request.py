"""From the words of `serve` to what the start will read, for commands that take serve's flags."""

from collections.abc import Sequence

from startup.model.request import ModelRequest
from vllm_cli.errors import InputError
from vllm_cli.flags.serve_command import CONFIG_OF_START, SEVERAL_MODELS, VLLM, ServeCommand, serve_parameters


def request_of(words: Sequence[str], *, command: str) -> ModelRequest:
    """The request of `vllm-cli serve` with these words.

    Args:
        words: MODEL and flags, of either engine.
        command: the name in usage errors.

    Raises:
        ClickException: `serve` would reject the words.
    """
    serve = ServeCommand(name="serve", params=serve_parameters())
    with serve.make_context(command, list(words)) as ctx:
        if SEVERAL_MODELS in ctx.meta:
            raise InputError(f"{command} is for one model: name one of them.")
        if (options := ctx.meta.get(VLLM)) is not None:
            from startup.vllm.command_line import CommandLine

            return CommandLine.of(options.words).request
        return ModelRequest.of_start(ctx.meta[CONFIG_OF_START])
