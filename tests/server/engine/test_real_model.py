"""SmolLM2-135M-Instruct: the engine's greedy output is the plain model's within rounding.

Two ways to compute the same value in bfloat16 round differently. The logits of this model are multiples of
0.125 or 0.25, so two logits are often equal, and one matrix row is rounded differently from two rows.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from server.terms.types import GuidedDecoding
from tests.server.engine.small_engine import SmallEngine

NUM_TOKENS = 12
_BF16_STEP = 2**-7
"""The largest relative difference between neighbouring bfloat16 numbers."""
CHATS = [
    "Is 91 a prime number? Explain your answer.",
    "日本の首都はどこですか？",
    "Summarise this text in one sentence. " + "The steam engine changed how goods were made, and where. " * 12,
]
TEXTS = ["def fibonacci(n):\n    ", "1, 1, 2, 3, 5, 8,"]


@pytest.fixture(scope="module")
def prompts(real_tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [_chat(real_tokenizer, chat) for chat in CHATS] + [real_tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.thorough
def test_in_bfloat16_every_token_is_within_rounding_of_the_plain_models_best(real_model, model_path, prompts):
    plain = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
    outputs = SmallEngine(real_model, num_slots=8, max_model_len=300).generate(prompts, max_tokens=NUM_TOKENS)
    num_best = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        logits = _logits_before_each(plain, prompt, output)
        best = logits.max(dim=-1)
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert ((best.values - chosen) <= 4 * _BF16_STEP * best.values.abs()).all()
        num_best += int((best.indices == torch.tensor(output)).sum())
    assert num_best > 0.9 * len(prompts) * NUM_TOKENS


@torch.inference_mode()
def _logits_before_each(model: PreTrainedModel, prompt: list[int], output: list[int]) -> torch.Tensor:
    """The plain model's logits for each output token, from one forward pass over prompt and output."""
    logits: torch.Tensor = model(input_ids=torch.tensor([prompt + output[:-1]])).logits[0, len(prompt) - 1 :].float()
    return logits


@pytest.mark.thorough
def test_the_real_model_answers_within_each_kind_of_grammar(real_model, real_tokenizer, model_path):
    engine = SmallEngine(real_model, num_slots=8, max_model_len=600, tokenizer_path=model_path, eos_token_ids=(2,))
    json_text = real_tokenizer('{"a": 1}\n{"b": 2}\n{"c": 3}\n')["input_ids"]
    question = _chat(real_tokenizer, "What is the capital of Japan?")
    found = {
        name: engine.add(name, prompt, guided=guided, max_tokens=80)
        for name, prompt, guided in (
            ("object", json_text, GuidedDecoding("json_object")),
            ("choice", question, GuidedDecoding("choice", '["Paris", "Tokyo", "Rome"]')),
            ("regex", question, GuidedDecoding("regex", "The capital of Japan is [A-Z][a-z]{2,11}\\.")),
            ("lark", question, GuidedDecoding("grammar", 'start: "I think: " CITY\nCITY: "Tokyo" | "Kyoto"')),
        )
    }
    engine.run()
    texts = {name: real_tokenizer.decode(c.token_ids) for name, c in found.items()}
    assert isinstance(json.loads(texts["object"]), dict)
    assert texts["choice"] in ("Paris", "Tokyo", "Rome")
    assert texts["regex"] == "The capital of Japan is Tokyo."
    assert texts["lark"] in ("I think: Tokyo", "I think: Kyoto")
    assert {c.finish_reason for c in found.values()} == {"stop"}


def _chat(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    token_ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return token_ids
