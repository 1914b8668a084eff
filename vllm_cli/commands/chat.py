"""`vllm-cli chat` and `vllm-cli complete`: requests to a model on a running server, typed by a user."""

from typing import Any, Final

import click

from vllm_cli.client.dialogue import CLEAR, EXIT, Answer, Dialogue, dialogue_options, input_lines

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"

Message = dict[str, str]


@click.command()
@dialogue_options
@click.option("--system-prompt", "--system", help="System message before the first message.")
@click.option("-q", "--quick", metavar="MESSAGE", help="Send one message, print the answer and exit.")
def chat(*, system_prompt: str | None, quick: str | None, **options: Any) -> None:
    """Chat with a model on a running server.

    /clear starts a new conversation, /exit exits. Ctrl-C stops an answer; between answers it exits.

    \b
    Examples:
      vllm-cli chat
      vllm-cli chat --temperature 0 --quick "What is the capital of France?"
      vllm-cli chat --temperature 0 --system "You are a pirate." --quick "Who are you?"
      vllm-cli chat --url unix:/run/vllm.sock --temperature 0 --quick "Hi" --stats

    Exit codes: 0 answered, or /exit; 1 no response, or the request was rejected; 2 usage; 130 Ctrl-C.
    """
    dialogue = Dialogue(options)
    beginning = [_message("system", system_prompt)] if system_prompt else []
    if quick is None:
        _converse(dialogue, beginning)
    else:
        dialogue.ask(_CHAT, {"messages": [*beginning, _message("user", quick)]}, Answer())


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
        dialogue.ask(_COMPLETIONS, {"prompt": quick}, Answer())
        return
    for line in input_lines(f"Completing with {dialogue.model}; {EXIT} exits, Ctrl-C stops a text."):
        dialogue.ask_interruptibly(_COMPLETIONS, {"prompt": line})


def _converse(dialogue: Dialogue, beginning: list[Message]) -> None:
    history = list(beginning)
    for line in input_lines(
        f"Chatting with {dialogue.model}; {CLEAR} starts a new chat, {EXIT} exits, Ctrl-C stops an answer."
    ):
        if line == CLEAR:
            history = list(beginning)
            continue
        question = _message("user", line)
        answer = dialogue.ask_interruptibly(_CHAT, {"messages": [*history, question]})
        if answer and answer.text:
            history += [question, _message("assistant", answer.text)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
