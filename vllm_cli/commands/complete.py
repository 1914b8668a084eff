"""`vllm-cli complete`: lets a model on a running server continue a text."""

from typing import Any

import click

from vllm_cli.client.answer import Answer
from vllm_cli.client.dialogue import EXIT, Dialogue, server_options, typed_lines

_PATH = "/v1/completions"


@click.command()
@server_options
@click.option("-q", "--quick", metavar="PROMPT", help="Continue one prompt, print the text and leave.")
def complete(*, quick: str | None, **server: Any) -> None:
    """Let a model on a running server continue a text.

    /exit ends; Ctrl-C stops a text, and ends where there is none.

    \b
    Examples:
      vllm-cli complete
      vllm-cli complete --max-tokens 32 --temperature 0 --quick "The capital of France is"
      vllm-cli complete --url unix:/run/vllm.sock --quick "Hi" --stats

    Exit codes: 0 answered, or ended by you; 1 the server did not answer, or refused; 2 usage; 130 Ctrl-C.
    """
    dialogue = Dialogue(**server)
    if quick is not None:
        dialogue.ask(_PATH, {"prompt": quick}, Answer())
        return
    for line in typed_lines(f"Continuing with {dialogue.model}; {EXIT} ends, Ctrl-C stops a text."):
        dialogue.ask_interruptibly(_PATH, {"prompt": line})
