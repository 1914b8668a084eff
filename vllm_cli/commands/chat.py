"""`vllm-cli chat`: a conversation with a model on a running server."""

from typing import Any

import click

from vllm_cli.client.dialogue import CLEAR, EXIT, Answer, Dialogue, dialogue_options, input_lines

_PATH = "/v1/chat/completions"

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
        dialogue.ask(_PATH, {"messages": [*beginning, _message("user", quick)]}, Answer())


def _converse(dialogue: Dialogue, beginning: list[Message]) -> None:
    history = list(beginning)
    for line in input_lines(
        f"Chatting with {dialogue.model}; {CLEAR} starts a new chat, {EXIT} exits, Ctrl-C stops an answer."
    ):
        if line == CLEAR:
            history = list(beginning)
            continue
        question = _message("user", line)
        answer = dialogue.ask_interruptibly(_PATH, {"messages": [*history, question]})
        if answer and answer.text:
            history += [question, _message("assistant", answer.text)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
