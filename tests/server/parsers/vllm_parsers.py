"""Parses texts with vLLM's tool parsers; run by vLLM's own interpreter.

`python vllm_parsers.py QUESTION ANSWER`: the question holds `functions` and `formats`, which have `markers`
and `texts` by the parser's name. The answer has vLLM's results for each text as a `whole` and, `streamed`,
for one token after the other: `reasoning`, `content` and `calls`, or `error`.

The tokenizer has one token per character, and one per marker as in the real models.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager


def main(question: str, answer: str) -> None:
    asked = json.loads(Path(question).read_text())
    written = {
        name: answers(name, asked["functions"], texts["markers"], texts["texts"])
        for name, texts in asked["formats"].items()
    }
    Path(answer).write_text(json.dumps(written))


def answers(name: str, functions: list[dict], markers: list[str], texts: list[str]) -> list[dict]:
    tokenizer = create_tokenizer(name, texts, markers)
    parser = ParserManager.get_parser(
        tool_parser_name=name,
        reasoning_parser_name="openai_gptoss" if name == "openai" else None,
        enable_auto_tools=True,
        is_harmony=name == "openai",
    )

    def both(text: str) -> dict:
        return {"whole": attempt(parse_whole, text), "streamed": attempt(parse_streamed, text)}

    def attempt(parse, text: str) -> dict:
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": "?"}],
            tools=[{"type": "function", "function": function} for function in functions],
            tool_choice="auto",
        )
        try:
            return parse(parser(tokenizer, request.tools), text, request)
        except Exception as err:  # noqa: BLE001 - any error of vLLM's is an answer
            return {"error": f"{type(err).__name__}: {err}"}

    def parse_whole(one, text: str, request: ChatCompletionRequest) -> dict:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        reasoning, content, calls = one.parse(text, request, enable_auto_tools=True, model_output_token_ids=tokens)
        return {
            "reasoning": reasoning or "",
            "content": content or "",
            "calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls or ()],
        }

    def parse_streamed(one, text: str, request: ChatCompletionRequest) -> dict:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        reasoning, content, calls = "", "", {}
        for index, token in enumerate(tokens):
            delta = one.parse_delta(
                tokenizer.decode([token]), [token], request, prompt_token_ids=[], finished=index == len(tokens) - 1
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

    return [both(text) for text in texts]


def create_tokenizer(name: str, texts: list[str], markers: list[str]):
    if name == "openai":
        return HarmonyTokenizer()
    characters = sorted({character for text in texts for character in text})
    tokenizer = Tokenizer(
        models.WordLevel({character: index for index, character in enumerate(characters)}, characters[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=markers, clean_up_tokenization_spaces=False
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
