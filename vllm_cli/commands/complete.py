"""`vllm-cli complete`: text completion by a model on a running server."""

from typing import Any

import click

from vllm_cli.client.dialogue import EXIT, Answer, Dialogue, dialogue_options, input_lines

_PATH = "/v1/completions"


@click.command()
@dialogue_options
@click.option("-q", "--quick", metavar="PROMPT", help="Complete one prompt, print the text and exit.")
def complete(*, quick: str | None, **options: Any) -> None:
    """Complete a text with a model on a running server.

    /exit exits. Ctrl-C stops a text; between texts it exits.

    \b
    Examples:
      vllm-cli complete
      vllm-cli complete --max-tokens 32 --temperature 0 --quick "The capital of France is"
      vllm-cli complete --url unix:/run/vllm.sock --temperature 0 --quick "Hi" --stats

    Exit codes: 0 answered, or /exit; 1 no response, or the request was rejected; 2 usage; 130 Ctrl-C.
    """
    dialogue = Dialogue(options)
    if quick is not None:
        dialogue.ask(_PATH, {"prompt": quick}, Answer())
        return
    for line in input_lines(f"Completing with {dialogue.model}; {EXIT} exits, Ctrl-C stops a text."):
        dialogue.ask_interruptibly(_PATH, {"prompt": line})
