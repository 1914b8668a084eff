"""`vllm-cli serve` on a GPU answers as transformers on this GPU. Only the engine process uses the GPU."""

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from transformers import AutoModel

from envs.registry import START_METHODS
from tests.cuda.conftest import DEVICE, used_mib, uses_cuda
from tests.e2e.server_process import ServerProcess, wait_process
from tests.server.engine.features.tiny_vlm import expected_answer, image_messages, image_url, save_vlm
from tests.server.engine.pooling.tiny_poolers import hidden_states, save_pooler, save_sentence_files, unit
from tests.server.engine.tiny_models import greedy_outputs
from tests.support.cli import run_cli
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cuda

_NUM_TOKENS = 24
_PROMPTS = ["Paris", "Once upon a time there was", "x", "All that is gold does not glitter, " * 7]
_SMALL_STEPS = ["--max-num-batched-tokens", "64", "--max-num-seqs", "8"]
"""With these flags, the longest prompt is computed in several chunks."""


@pytest.fixture(scope="module")
def client(llama_folder: Path) -> Iterator[OpenAI]:
    with ServerProcess([str(llama_folder), "--served-model-name", "tiny", *_SMALL_STEPS]) as server:
        assert f"on {DEVICE}" in server.log, server.log
        with server.openai() as openai:
            yield openai


@pytest.mark.thorough
def test_greedy_tokens_equal_generate(client, llama_on_gpu):
    prompts = [list(prompt.encode()) for prompt in _PROMPTS]
    expected = greedy_outputs(llama_on_gpu, prompts, _NUM_TOKENS)
    assert all(len(set(output)) > 4 for output in expected), "the model repeats itself: nothing would be tested"
    with ThreadPoolExecutor(len(_PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: _complete(client, prompt), _PROMPTS * 2))
    assert [answer.choices[0].token_ids for answer in answers] == expected * 2


def _complete(client: OpenAI, prompt: str) -> Any:
    extra = {"ignore_eos": True, "return_token_ids": True}
    return client.completions.create(
        model="tiny", prompt=prompt, temperature=0, max_tokens=_NUM_TOKENS, extra_body=extra
    )


_NUM_IMAGE_TOKENS = 12


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
def test_answers_about_images_equal_those_of_transformers(family, tmp_path):
    folder = save_vlm(tmp_path, family)
    messages = image_messages(image_url(1))
    arguments = [str(folder), "--served-model-name", "seer", "--dtype", "float32", "--max-num-seqs", "4"]
    with ServerProcess(arguments) as server, server.openai() as client:
        answer: Any = client.chat.completions.create(
            model="seer",
            messages=messages,
            temperature=0,
            max_tokens=_NUM_IMAGE_TOKENS,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
    assert answer.choices[0].token_ids == expected_answer(folder, messages, _NUM_IMAGE_TOKENS, device=DEVICE)


@pytest.mark.thorough
def test_embeddings_equal_those_of_the_model(tmp_path):
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path)
    words = [str(tmp_path), "--served-model-name", "tiny", "--runner", "pooling"]
    with ServerProcess(words) as server, server.openai() as client:
        texts = ["hello world", "the capital of france is paris"] * 8
        vectors = [item.embedding for item in client.embeddings.create(model="tiny", input=texts).data]
    model = AutoModel.from_pretrained(tmp_path).eval()
    expected = unit(hidden_states(model, [2, 5, 6, 3]).mean(0))
    assert vectors[0] == pytest.approx(expected.tolist(), abs=1e-4)
    assert vectors[14] == pytest.approx(vectors[0], abs=1e-5)


_CONTEXT_MIB = 100
"""Less memory than the CUDA context of one process takes."""


@pytest.fixture
def arguments(llama_folder: Path) -> list[str]:
    return [str(llama_folder), "--served-model-name", "tiny", "--max-num-seqs", "8"]


@pytest.mark.thorough
@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_only_the_engine_uses_the_gpu_and_frees_its_memory_when_the_server_ends(
    arguments, method, signal_number, monkeypatch
):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    before = used_mib()
    with ServerProcess(arguments) as server:
        assert server.complete(max_tokens=2) == 200
        assert [process for process in server.family() if uses_cuda(process)] == [wait_process(server, "engine")]
        assert used_mib() > before + _CONTEXT_MIB
        server.terminate(signal_number)
    wait_until(lambda: used_mib() < before + _CONTEXT_MIB)


def test_cache_larger_than_the_gpu_fails_the_start_with_one_line(arguments):
    huge = ["--max-num-seqs", "10000000", "--kv-cache-memory-bytes", str(1 << 50)]
    run = run_cli("serve", *arguments, *huge, "--port", "0")
    assert run.returncode == 3
    assert "lower --gpu-memory-utilization or --kv-cache-memory-bytes" in run.stderr
    assert "Traceback" not in run.stderr


def test_bug_report_names_the_gpu():
    first, *_ = json.loads(run_cli("doctor", "--json").stdout)["machine"]["gpus"]
    assert re.fullmatch(r"NVIDIA .+, [1-9]\d+ MiB, driver \d+\.\d+.*", first)
