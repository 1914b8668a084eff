"""A script for vLLM's Python: parses texts with vLLM's parsers, for `test_against_vllm.py`.

`python vllm_parsers.py QUESTION ANSWER`: the question has `tools` and `reasoning`. Each is an object with
the name of a parser -> its task. A task has `tokens`, template `kwargs`, `functions` and `cases`. A case is
a text and the last tokens of its prompt. The answer has two results of vLLM for each text: `whole` (None if
there are tokens of a prompt), and `streamed` for one token after the other. A result has `reasoning`,
`content` and `calls`, or `error`.

The tokenizer has one token per character, and one per marker or tag as in the real models.
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
"""Tokens that Olmo's parser needs in the vocabulary. The tokenizer never uses them."""


class Task:
    """The texts to parse with one parser."""

    def __init__(self, kind: str, name: str, tokens: list[str], kwargs: dict, functions: list, cases: list) -> None:
        self._cases = cases
        self._kwargs = kwargs
        self._has_calls = kind == "tools"
        self._tools = [{"type": "function", "function": function} for function in functions]
        self._tokenizer = (
            HarmonyTokenizer()
            if name == "openai"
            else create_tokenizer([text for text, _ in cases], tokens, are_special=self._has_calls)
        )
        parsers = {"reasoning_parser_name": name}
        if self._has_calls:
            parsers = {
                "tool_parser_name": name,
                "reasoning_parser_name": "openai_gptoss" if name == "openai" else None,
                "enable_auto_tools": True,
                "is_harmony": name == "openai",
            }
        self._create = ParserManager.get_parser(**parsers)

    def answers(self) -> list[dict]:
        return [
            {
                "whole": None if prompt else self._attempt(self._whole, text),
                "streamed": self._attempt(self._streamed, text, prompt),
            }
            for text, prompt in self._cases
        ]

    def _attempt(self, parse, *args) -> dict:
        choice = {"tools": self._tools, "tool_choice": "auto"} if self._has_calls else {}
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": "?"}], chat_template_kwargs=self._kwargs, **choice
        )
        try:
            if self._has_calls:
                parser = self._create(self._tokenizer, request.tools)
            else:
                parser = self._create(self._tokenizer, None, chat_template_kwargs=dict(self._kwargs))
            return parse(parser, request, *args)
        except Exception as err:  # noqa: BLE001 - any error of vLLM's is an answer
            return {"error": f"{type(err).__name__}: {err}"}

    def _whole(self, parser, request: ChatCompletionRequest, text: str) -> dict:
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        options = {"enable_auto_tools": True} if self._has_calls else {}
        reasoning, content, calls = parser.parse(text, request, model_output_token_ids=tokens, **options)
        return {
            "reasoning": reasoning or "",
            "content": content or "",
            "calls": [{"name": call.name, "arguments": call.arguments} for call in calls or ()],
        }

    def _streamed(self, parser, request: ChatCompletionRequest, text: str, prompt: list[str]) -> dict:
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        prompt_ids = self._tokenizer.convert_tokens_to_ids(prompt) if prompt else []
        reasoning, content, calls = "", "", {}
        for index, token in enumerate(tokens):
            finished = index == len(tokens) - 1
            piece = self._tokenizer.decode([token])
            delta = parser.parse_delta(piece, [token], request, prompt_token_ids=prompt_ids, finished=finished)
            if delta is None:
                continue
            reasoning += delta.reasoning or ""
            content += delta.content or ""
            for part in delta.tool_calls or ():
                call = calls.setdefault(part.index, {"name": "", "arguments": ""})
                call["name"] += (part.function and part.function.name) or ""
                call["arguments"] += (part.function and part.function.arguments) or ""
        return {"reasoning": reasoning, "content": content, "calls": list(calls.values())}


def create_tokenizer(texts: list[str], tokens: list[str], *, are_special: bool):
    words = [*sorted({character for text in texts for character in text}), *OLMO_TOKENS]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    added = [AddedToken(token, special=are_special, normalized=False) for token in tokens]
    (tokenizer.add_special_tokens if are_special else tokenizer.add_tokens)(added)
    options = {"additional_special_tokens": tokens} if are_special else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)


class HarmonyTokenizer:
    """A tokenizer with the vocabulary of gpt-oss, which comes from openai_harmony."""

    def __init__(self) -> None:
        from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

        self._encoding = get_encoding()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def decode(self, tokens: list[int]) -> str:
        return self._encoding.decode(tokens)

    def get_vocab(self) -> dict[str, int]:
        return {}


question, answer = map(Path, sys.argv[1:])
asked = json.loads(question.read_text())
written = {kind: {name: Task(kind, name, **task).answers() for name, task in asked[kind].items()} for kind in asked}
answer.write_text(json.dumps(written))
