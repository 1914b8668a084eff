"""Parses texts with vLLM's parsers of tool calls, or of reasoning; run by vLLM's own interpreter.

`python vllm_parsers.py QUESTION ANSWER`: the question has `functions`, empty for parsers of reasoning, and in
`formats`, by the parser's name, its `markers`, variables of the chat template as `kwargs`, and `cases` of a
text and the markers in its prompt. The answer has vLLM's results for every text: a `whole`, unless there are
markers, and `streamed`, one token after the other; each with `reasoning`, `content`, `calls`, or an `error`.

The tokenizer has one token per character, and one per marker as in the real models.
"""

import json
import logging
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

logging.disable(logging.WARNING)

OLMO_TOKENS = ["Ġ</", "</", "think", ">"]
"""Olmo's parser looks them up; the tokenizer never uses them."""


def main(question: str, answer: str) -> None:
    asked = json.loads(Path(question).read_text())
    written = {name: answers(name, asked["functions"], **form) for name, form in asked["formats"].items()}
    Path(answer).write_text(json.dumps(written))


def answers(
    name: str, functions: list[dict], markers: list[str], kwargs: dict, cases: list[tuple[str, list[str]]]
) -> list[dict]:
    tokenizer = create_tokenizer(name, [text for text, _ in cases], markers, are_special=bool(functions))
    create = create_parsers(name, has_tools=bool(functions))
    tools = [{"type": "function", "function": function} for function in functions]

    def attempt(parse, *args) -> dict:
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": "?"}],
            chat_template_kwargs=kwargs,
            **({"tools": tools, "tool_choice": "auto"} if tools else {}),
        )
        try:
            return parse(create(tokenizer, request.tools, chat_template_kwargs=dict(kwargs)), request, *args)
        except Exception as err:  # noqa: BLE001 - any error of vLLM's is an answer
            return {"error": f"{type(err).__name__}: {err}"}

    def parse_whole(parser, request: ChatCompletionRequest, text: str) -> dict:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        reasoning, content, calls = parser.parse(
            text, request, enable_auto_tools=bool(tools), model_output_token_ids=tokens
        )
        return {
            "reasoning": reasoning or "",
            "content": content or "",
            "calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls or ()],
        }

    def parse_streamed(parser, request: ChatCompletionRequest, text: str, prompt: list[str]) -> dict:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        prompt_ids = tokenizer.convert_tokens_to_ids(prompt) if prompt else []
        reasoning, content, calls = "", "", {}
        for index, token in enumerate(tokens):
            is_last = index == len(tokens) - 1
            delta = parser.parse_delta(
                tokenizer.decode([token]), [token], request, prompt_token_ids=prompt_ids, finished=is_last
            )
            if delta is None:
                continue
            reasoning += delta.reasoning or ""
            content += delta.content or ""
            for part in delta.tool_calls or ():
                call = calls.setdefault(part.index, {"id": None, "name": "", "arguments": ""})
                call["id"] = part.id or call["id"]
                call["name"] += (part.function and part.function.name) or ""
                call["arguments"] += (part.function and part.function.arguments) or ""
        return {"reasoning": reasoning, "content": content, "calls": list(calls.values())}

    return [
        {
            "whole": attempt(parse_whole, text) if not prompt else None,
            "streamed": attempt(parse_streamed, text, prompt),
        }
        for text, prompt in cases
    ]


def create_parsers(name: str, *, has_tools: bool):
    if not has_tools:
        return ParserManager.get_parser(reasoning_parser_name=name)
    return ParserManager.get_parser(
        tool_parser_name=name,
        reasoning_parser_name="openai_gptoss" if name == "openai" else None,
        enable_auto_tools=True,
        is_harmony=name == "openai",
    )


def create_tokenizer(name: str, texts: list[str], markers: list[str], *, are_special: bool):
    if name == "openai":
        return HarmonyTokenizer()
    words = [*sorted({character for text in texts for character in text}), *OLMO_TOKENS]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(marker, special=are_special, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=markers if are_special else [],
        clean_up_tokenization_spaces=False,
    )


class HarmonyTokenizer:
    """The vocabulary of gpt-oss, which openai_harmony has."""

    def __init__(self) -> None:
        from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

        self._encoding = get_encoding()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def decode(self, tokens: list[int]) -> str:
        return self._encoding.decode(tokens)

    def get_vocab(self) -> dict[str, int]:
        return {}


if __name__ == "__main__":
    main(*sys.argv[1:])
