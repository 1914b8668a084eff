"""prompt_embeds on the real model, through real processes, from the real `openai` client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.e2e.server_process import ServerProcess
from tests.embeds_payloads import safetensors_payload, torch_payload

pytestmark = pytest.mark.thorough

MODEL = "smol"
PROMPT = "The capital of France is"
STORY = "Once upon a time there was a small robot who lived in a library by the sea. " * 20
IGNORE_EOS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="module")
def model(model_path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def exact_server(start_server: Any) -> Iterator[ServerProcess]:
    """In float32, where the rest of a batch does not change how a sequence is rounded."""
    arguments = ("--enable-prompt-embeds", "--dtype", "float32", "--max-model-len", "1024")
    with start_server(*arguments, "--max-num-batched-tokens", "128") as running:
        yield running


@pytest.fixture(scope="module")
def exact(exact_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{exact_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@torch.inference_mode()
def rows_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The embeddings of the text's tokens, as a client would take them from the model."""
    return model.get_input_embeddings()(torch.tensor(tokenizer(text)["input_ids"])).clone()


def continued(client: OpenAI, **fields: Any) -> list[str]:
    """The greedy continuations of what the fields hold."""
    extra = {"prompt_embeds": fields.pop("prompt_embeds", None), **IGNORE_EOS}
    options = {"prompt": "", "model": MODEL, "temperature": 0, "max_tokens": 24} | fields
    return [choice.text for choice in client.completions.create(**options, extra_body=extra).choices]


@pytest.mark.parametrize("write", [torch_payload, safetensors_payload])
@pytest.mark.parametrize("text", [PROMPT, STORY], ids=["short", "in chunks"])
def test_embeddings_continue_as_the_text_does_whose_they_are(
    exact: OpenAI, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, write: Any, text: str
) -> None:
    rows = rows_of(model, tokenizer, text)
    (expected,) = continued(exact, prompt=text)
    assert continued(exact, prompt_embeds=write(rows)) == [expected]
    both = continued(exact, prompt=[text, "Berlin is"], prompt_embeds=[write(rows), write(rows[:3])])
    assert [both[0], both[2]] == [expected] * 2


def test_it_is_what_generate_makes_of_them(
    exact: OpenAI, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Rows that are no token's: each is the mean of two."""
    rows = rows_of(model, tokenizer, STORY)[:90]
    rows = (rows + rows.roll(1, 0)) / 2
    output = model.generate(
        inputs_embeds=rows[None],
        attention_mask=torch.ones(1, len(rows), dtype=torch.long),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert continued(exact, prompt_embeds=torch_payload(rows)) == [tokenizer.decode(output[0])]


def test_choices_and_streams_of_embeddings(
    exact: OpenAI, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    embeds = torch_payload(rows_of(model, tokenizer, PROMPT))
    (expected,) = continued(exact, prompt_embeds=embeds)
    stream = exact.completions.create(
        model=MODEL,
        prompt="",
        temperature=0,
        max_tokens=24,
        stream=True,
        logprobs=1,
        extra_body={"prompt_embeds": embeds, **IGNORE_EOS},
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == expected
    answer = exact.completions.create(
        model=MODEL, prompt="", n=3, seed=1, max_tokens=8, extra_body={"prompt_embeds": embeds, **IGNORE_EOS}
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 24)
    assert len({choice.text for choice in answer.choices}) > 1


def test_a_real_server_takes_them_in_bfloat16(
    start_server: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(model, tokenizer, PROMPT)
    with (
        start_server("--enable-prompt-embeds", "--max-model-len", "512") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for given in (rows, rows.bfloat16(), rows.to_sparse()):
            (text,) = continued(client, prompt_embeds=torch_payload(given))
            assert text.startswith(" Paris")
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text(), "the API process has no torch"


def test_faults_are_the_client_s_own(exact: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="hidden size is 576"):
        continued(exact, prompt_embeds=torch_payload(torch.zeros(3, 5)))
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024"):
        continued(exact, prompt_embeds=torch_payload(torch.zeros(1024, 576)))


def test_without_the_flag_it_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="--enable-prompt-embeds"):
        continued(client, prompt_embeds=torch_payload(torch.zeros(3, 576)))
