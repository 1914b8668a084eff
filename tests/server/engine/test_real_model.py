"""SmolLM2-135M-Instruct: the engine's greedy output equals the plain model's. The slow test has all prompts.

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
from tests.server.engine.tiny_models import greedy_outputs, pack_layers

NUM_TOKENS = 32
SOME = slice(0, None, 4)
"""Selects five of the prompts: questions, including the longest one, and texts."""
NUM_TOKENS_OF_SOME = 12
_BF16_STEP = 2**-7
"""The largest relative difference between neighbouring bfloat16 numbers."""
CHATS = [
    "What is the capital of France?",
    "Write a short poem about the sea in autumn.",
    "Explain how a bicycle stays upright, step by step.",
    "Give me three names for a bakery.",
    "Is 91 a prime number? Explain your answer.",
    "Schreibe einen kurzen Brief an meine Großmutter.",
    "¿Cuáles son los planetas del sistema solar?",
    "日本の首都はどこですか？",
    "Translate to French: The weather is nice today, so we will go for a walk.",
    "Hi",
    (
        "Summarise this text in one sentence. The steam engine changed how goods were made. Before it, most work was "
        "done by hand or with the help of animals, wind and water. With it, factories could be built anywhere, and "
        "they grew quickly near coal fields and harbours. Cities grew with them, and so did the railways that joined "
        "them. Not everybody gained: many people worked long hours in bad air for little pay, and children worked too. "
        "Only slowly did laws limit the hours and the age of those who worked. Historians still argue about whether "
        "life became better or worse for most people in the first fifty years, and the answer depends on what is "
        "counted: wages, height, length of life, or how people wrote about it themselves."
    ),
    "List the ingredients of a simple vegetable soup, one per line, with amounts.",
]

TEXTS = [
    "def fibonacci(n):\n    ",
    "The three laws of motion are",
    "Once upon a time, in a village at the edge of a forest,",
    "SELECT name, COUNT(*) FROM orders",
    "1, 1, 2, 3, 5, 8,",
    "<html>\n<head>\n<title>",
    "Q: What do bees make?\nA: Honey.\nQ: What do cows give?\nA:",
    "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows, columns):\n",
]


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
    some = prompts[SOME]
    engine = SmallEngine(float32, num_slots=8, max_model_len=300, prefix_tokens=2000)
    first, second = (engine.complete(some, max_tokens=NUM_TOKENS_OF_SOME) for _ in range(2))
    for prompt, completion in zip(some, first, strict=True):
        logits = _logits_before_each(plain_float32, prompt, completion.token_ids)
        assert completion.token_ids == logits.argmax(-1).tolist()
    assert [c.token_ids for c in second] == [c.token_ids for c in first]
    assert [c.num_cached_tokens for c in second] == [(len(p) - 1) // 16 * 16 if len(p) > 32 else 0 for p in some]


@pytest.mark.slow
def test_long_outputs_one_by_one_equal_those_of_generate(float32, plain_float32, prompts):
    engine = SmallEngine(float32, num_slots=1, max_model_len=300)
    outputs = [engine.generate([p], max_tokens=NUM_TOKENS)[0] for p in prompts]
    assert outputs == greedy_outputs(plain_float32, prompts, NUM_TOKENS)


@pytest.mark.thorough
def test_in_bfloat16_every_token_is_within_rounding_of_the_plain_models_best(real_model, plain_float32, prompts):
    plain, some = copy.deepcopy(plain_float32).to(torch.bfloat16), prompts[SOME]
    outputs = SmallEngine(real_model, num_slots=8, max_model_len=300).generate(some, max_tokens=NUM_TOKENS_OF_SOME)
    num_best = 0
    for prompt, output in zip(some, outputs, strict=True):
        logits = _logits_before_each(plain, prompt, output)
        best = logits.max(dim=-1)
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert ((best.values - chosen) <= 4 * _BF16_STEP * best.values.abs()).all()
        num_best += int((best.indices == torch.tensor(output)).sum())
    assert num_best > 0.9 * len(some) * NUM_TOKENS_OF_SOME


@pytest.mark.thorough
def test_the_capital_of_france_is_paris(real_model, real_tokenizer, prompts):
    engine = SmallEngine(real_model, max_model_len=300, eos_token_ids=(2,))
    [completion] = engine.complete(prompts[:1], max_tokens=40)
    assert "Paris" in real_tokenizer.decode(completion.token_ids)
    assert (completion.finish_reason, completion.stop_token_id) == ("stop", 2)


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
