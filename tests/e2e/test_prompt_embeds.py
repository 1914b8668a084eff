"""The `openai` client sends `prompt_embeds`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.support.embeds_payloads import torch_payload

MODEL = "smol"
PROMPT = "The capital of France is"
STORY = "Once upon a time there was a small robot who lived in a library by the sea. " * 6
IGNORE_EOS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def exact(start_tiny_server: Any) -> Iterator[OpenAI]:
    """The client of a float32 server, in which the batch's other sequences do not change the rounding."""
    arguments = ("--enable-prompt-embeds", "--dtype", "float32", "--max-model-len", "1024")
    with start_tiny_server(*arguments, "--max-num-batched-tokens", "128") as running, running.openai() as client:
        yield client
        assert "libtorch" not in Path(f"/proc/{running.process.pid}/maps").read_text(), "the API process has no torch"


@torch.inference_mode()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The model's embeddings of the text's tokens."""
    return model.get_input_embeddings()(torch.tensor(tokenizer(text)["input_ids"])).clone()


def continue_greedily(client: OpenAI, **fields: Any) -> list[str]:
    """The greedy continuations of the prompts in `fields`."""
    extra = {"prompt_embeds": fields.pop("prompt_embeds", None), **IGNORE_EOS}
    options = {"prompt": "", "model": MODEL, "temperature": 0, "max_tokens": 24} | fields
    return [choice.text for choice in client.completions.create(**options, extra_body=extra).choices]


@pytest.mark.parametrize("text", [PROMPT, STORY], ids=["short", "in chunks"])
def test_embeddings_of_a_text_continue_as_the_text_does(exact, model, tokenizer, text):
    rows = embed(model, tokenizer, text)
    (expected,) = continue_greedily(exact, prompt=text)
    assert continue_greedily(exact, prompt_embeds=torch_payload(rows)) == [expected]
    both = continue_greedily(
        exact, prompt=[text, "Berlin is"], prompt_embeds=[torch_payload(rows), torch_payload(rows[:3])]
    )
    assert [both[0], both[2]] == [expected] * 2
