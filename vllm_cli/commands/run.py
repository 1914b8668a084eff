"""`vllm-cli run`: a chat with MODEL. If no server here has it, starts a server, which ends with the chat."""

import math
from contextlib import closing
from typing import Any, Final

import click

from startup.arguments.option import ServeFlagsCommand, complete_model
from startup.arguments.serve_command import parse_start
from startup.settings.config import DEFAULT_MODEL_ID
from vllm_cli.client.running_servers import find_servers
from vllm_cli.client.server import ServerClient, choose_key
from vllm_cli.client.server_address import parse_url
from vllm_cli.commands.chat import chat, chat_with
from vllm_cli.terminal import Reporter

_OPTIONS: Final = [option for option in chat.params if option.name in ("system_prompt", "quick", "temperature")]
_ACCEPTING: Final = ("ready", "stopped", "asleep")
"""States of servers that accept requests. Two of them start or wake the model for a request."""


@click.command("run", cls=ServeFlagsCommand, options_metavar="[OPTIONS] [SERVE FLAGS]", params=_OPTIONS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL]", shell_complete=complete_model)
def run(*, arguments: tuple[str, ...], **options: Any) -> int:
    """Chat with MODEL. Missing files are downloaded.

    If a server on this machine has MODEL, it answers, and still runs afterwards. Otherwise, and always with
    flags of `vllm-cli serve`, a server is started on a private socket, and stopped after the chat.

    \b
    Examples:
      vllm-cli run
      vllm-cli run Qwen/Qwen3-0.6B --max-model-len 8k
      vllm-cli run Qwen/Qwen3-0.6B --temperature 0 --quick "What is the capital of France?"

    Exit codes: 0 answered, or /exit; 1 no response, or the request was rejected; 2 usage; 3 the start failed;
    130 Ctrl-C.
    """
    parse_start(arguments, "vllm-cli run")  # rejects arguments that `serve` rejects
    model = arguments[0] if arguments else DEFAULT_MODEL_ID  # a flag is no server's model
    if len(arguments) < 2 and (address := _find(model)) is not None:
        return chat_with(ServerClient(parse_url(address), choose_key(None)), model_name=model, **options)
    from vllm_cli.private_server import start_private_server  # noqa: PLC0415 - imports psutil

    with start_private_server(arguments, {}) as server:
        with closing(Reporter()) as reporter:
            server.wait_ready(math.inf, reporter)
        return chat_with(ServerClient(server.address), model_name=None, **options)


def _find(model: str) -> str | None:
    """The address of a server that has the model and accepts requests. None if there is no such server."""
    for server in find_servers():
        names = [server.model, *(each.model for each in server.models or ())]
        if model in names and server.state in _ACCEPTING:
            return server.address
    return None
