"""Parses texts with vLLM's reasoning parsers; run by vLLM's own interpreter.

`python vllm_reasoning.py QUESTION ANSWER`: the question has, by the format's name, `tags`, template `kwargs`
and `cases` of a text and the tags in its prompt. Every answer has vLLM's result for the whole text and for
one token after the other: `reasoning` and `content`, or `error`.

The tokenizer has one token per character, and one per tag as in the real models.
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
    Path(answer).write_text(json.dumps({name: answers(name, **form) for name, form in asked.items()}))


def answers(name: str, tags: list[str], kwargs: dict, cases: list[tuple[str, list[str]]]) -> list[dict]:
    tokenizer = create_tokenizer([text for text, _ in cases], tags)
    create = ParserManager.get_parser(reasoning_parser_name=name)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], chat_template_kwargs=kwargs)

    def attempt(parse, *args) -> dict:
        try:
            return parse(create(tokenizer, None, chat_template_kwargs=dict(kwargs)), *args)
        except Exception as err:  # noqa: BLE001 - any error of vLLM's is an answer
            return {"error": f"{type(err).__name__}: {err}"}

    def whole(parser, text: str) -> dict:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        reasoning, content, _ = parser.parse(text, request, model_output_token_ids=tokens)
        return {"reasoning": reasoning, "content": content}

    def streamed(parser, text: str, prompt: list[str]) -> dict:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        prompt_ids = tokenizer.convert_tokens_to_ids(prompt)
        reasoning, content = "", ""
        for index, token in enumerate(tokens):
            delta = parser.parse_delta(
                tokenizer.decode([token]),
                [token],
                request,
                prompt_token_ids=prompt_ids,
                finished=index == len(tokens) - 1,
            )
            if delta is not None:
                reasoning += delta.reasoning or ""
                content += delta.content or ""
        return {"reasoning": reasoning, "content": content}

    return [
        {"whole": attempt(whole, text) if not prompt else None, "streamed": attempt(streamed, text, prompt)}
        for text, prompt in cases
    ]


def create_tokenizer(texts: list[str], tags: list[str]):
    words = [*sorted({character for text in texts for character in text}), *OLMO_TOKENS]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
