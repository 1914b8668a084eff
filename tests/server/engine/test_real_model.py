"""SmolLM2-135M-Instruct: the engine's greedy output equals the plain model's.

In float32, every token must be equal. In bfloat16, two ways to compute the same value round differently.
The logits of this model are multiples of 0.125 or 0.25, so two logits are often equal, and one matrix row
is rounded differently from two rows. So in bfloat16, the plain model's logit of every token must be within
rounding of the plain model's highest logit.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from server.terms.types import GuidedDecoding
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import pack_layers

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


@pytest.fixture(scope="module")
def plain_float32(model_path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def float32(plain_float32: PreTrainedModel) -> PreTrainedModel:
    """The model for engines. Its linear layers are packed, as in an engine that serves."""
    model = copy.deepcopy(plain_float32)
    pack_layers(model)
    return model


@pytest.mark.thorough
def test_some_prompts_together_give_the_plain_models_tokens(float32, plain_float32, prompts):
    """In the second run, the prompts come from the prefix cache."""
    engine = SmallEngine(float32, num_slots=8, max_model_len=300, prefix_tokens=2000)
    first, second = (engine.complete(prompts, max_tokens=NUM_TOKENS) for _ in range(2))
    for prompt, completion in zip(prompts, first, strict=True):
        logits = _logits_before_each(plain_float32, prompt, completion.token_ids)
        assert completion.token_ids == logits.argmax(-1).tolist()
    assert [c.token_ids for c in second] == [c.token_ids for c in first]
    assert [c.num_cached_tokens for c in second] == [(len(p) - 1) // 16 * 16 if len(p) > 32 else 0 for p in prompts]


@pytest.mark.thorough
def test_in_bfloat16_every_token_is_within_rounding_of_the_plain_models_best(real_model, plain_float32, prompts):
    plain = copy.deepcopy(plain_float32).to(torch.bfloat16)
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
