"""`vllm-cli serve` on a GPU answers as transformers does on the same GPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from tests.cuda.gpu import DEVICE
from tests.e2e.server_process import ServerProcess
from tests.server.engine.tiny_models import greedy_outputs

pytestmark = [pytest.mark.cuda, pytest.mark.thorough]

_NUM_TOKENS = 24
_PROMPTS = ["Paris", "Once upon a time there was", "x", "All that is gold does not glitter, " * 7]
_SMALL_STEPS = ["--max-num-batched-tokens", "64", "--max-num-seqs", "8"]
"""The longest prompt is computed in several chunks."""


@pytest.fixture(scope="module")
def client(llama_folder: Path) -> Iterator[OpenAI]:
    arguments = [str(llama_folder), "--served-model-name", "tiny", *_SMALL_STEPS]
    with ServerProcess(arguments) as server:
        assert f"on {DEVICE}" in server.log, server.log
        with server.openai() as openai:
            yield openai


def test_greedy_tokens_equal_generate(client, llama_on_gpu):
    prompts = [list(prompt.encode()) for prompt in _PROMPTS]
    expected = greedy_outputs(llama_on_gpu, prompts, _NUM_TOKENS)
    assert all(len(set(output)) > 4 for output in expected), "the model repeats itself: nothing would be tested"
    with ThreadPoolExecutor(len(_PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: _complete(client, prompt), _PROMPTS * 2))
    assert [answer.choices[0].token_ids for answer in answers] == expected * 2


def test_logprobs_equal_those_of_the_model(client, llama_on_gpu):
    answer = _complete(client, _PROMPTS[1], logprobs=4, tokens_as_ids=True).choices[0]
    prompt = list(_PROMPTS[1].encode())
    with torch.inference_mode():
        logits = llama_on_gpu(torch.tensor([prompt + answer.token_ids], device=DEVICE)).logits[0]
    rows = torch.log_softmax(logits.float(), dim=-1)[len(prompt) - 1 : -1]
    own = rows.gather(1, torch.tensor(answer.token_ids, device=DEVICE)[:, None])[:, 0]
    assert answer.logprobs.token_logprobs == pytest.approx(own.tolist(), abs=1e-3)
    best = [max(top.values()) for top in answer.logprobs.top_logprobs]
    assert best == pytest.approx(rows.amax(-1).tolist(), abs=1e-3)


def test_seed_draws_the_same_tokens_again(client):
    drawn = [_complete(client, "Paris", temperature=1.0, seed=seed).choices[0].token_ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_bias_decides_the_token(client):
    answer = _complete(client, "Paris", logit_bias={"65": 100})
    assert answer.choices[0].text == "A" * _NUM_TOKENS


def _complete(client: OpenAI, prompt: str, *, tokens_as_ids: bool = False, **options: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": _NUM_TOKENS} | options
    extra = {"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": tokens_as_ids}
    return client.completions.create(model="tiny", prompt=prompt, extra_body=extra, **settings)
