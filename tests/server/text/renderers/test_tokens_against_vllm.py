"""Texts of outputs and of their tokens equal vLLM's, wherever the tokens split characters."""

import random
from pathlib import Path
from typing import Any

import pytest

from server.text.renderers.detokenizer import UNFINISHED, PromptTail
from server.text.renderers.renderer import Renderer
from tests.server.text.renderers.conftest import TEXTS, encode, feed
from tests.support.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]

SCRIPT = Path(__file__).with_name("vllm_tokens.py")
KINDS = ("real", "byte_level", "llama")
"""The tokenizers whose tokens can split a character."""


def cases_of(renderer: Renderer, folder: Path) -> list[dict[str, Any]]:
    rng = random.Random(3)
    found = []
    for text in [*TEXTS, "a 🦊 b", "🦊🦊", "ꙮ"]:
        token_ids = encode(renderer, text)
        for _ in range(8):
            begin = rng.randrange(len(token_ids))
            output = token_ids[begin : begin + rng.randint(1, 12)]
            top = [[token_id, *rng.sample(token_ids, min(2, len(token_ids)))] for token_id in output]
            prompt = [*token_ids[:begin]] or [token_ids[0]]
            found.append({"tokenizer": str(folder), "prompt": prompt, "output": output, "top": top})
    return [case for case in found if all(len(candidates) == 3 for candidates in case["top"])]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_have_the_same_texts(kind, renderers, tokenizer_folders, tmp_path):
    renderer = renderers[kind]
    cases = cases_of(renderer, tokenizer_folders[kind])
    for case, answer in zip(cases, ask_vllm(SCRIPT, cases, tmp_path), strict=True):
        prompt, output = case["prompt"], case["output"]
        if not renderer.detokenize(prompt).endswith(UNFINISHED):  # else vLLM repeats text of the prompt
            detokenizer = renderer.create_detokenizer(skip_special_tokens=False, prompt=PromptTail(prompt))
            assert feed(detokenizer, output) == answer["text"], case
        for i, [expected] in enumerate(answer["prompt"], start=1):
            assert is_same(renderer.token_text(prompt[i], prompt[1:i]), expected, kind), case
        for i, candidates in enumerate(case["top"]):
            for token_id in candidates:
                text = renderer.token_text(token_id, output[:i])
                assert is_same(text, answer["output"][i][str(token_id)], kind), case


def is_same(text: str, expected: str, kind: str) -> bool:
    """Compares two texts. vLLM keeps a word's space only if the tokenizer has a Metaspace pre-tokenizer."""
    return text == expected or (kind == "llama" and text == " " + expected)
