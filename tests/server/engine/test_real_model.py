"""SmolLM2-135M-Instruct: the engine's greedy output is the plain model's within rounding.

Two ways to compute the same value in bfloat16 round differently. The logits of this model are multiples of
0.125 or 0.25, so two logits are often equal, and one matrix row is rounded differently from two rows.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

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


@pytest.mark.thorough
def test_in_bfloat16_every_token_is_within_rounding_of_the_plain_models_best(real_model, real_tokenizer, model_path):
    asked = [[{"role": "user", "content": chat}] for chat in CHATS]
    prompts = [real_tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"] for each in asked]
    prompts += [real_tokenizer(text)["input_ids"] for text in TEXTS]
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
