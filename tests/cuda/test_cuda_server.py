"""A GPU gives the results of the CPU and of transformers. Only the engine process uses the GPU."""

import copy
import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from openai import OpenAI
from transformers import AutoModel

from envs.registry import START_METHODS
from server.engine.compute import attention_kernels
from tests.cuda.conftest import DEVICE, used_mib, uses_cuda
from tests.e2e.server_process import ServerProcess, wait_process
from tests.server.engine.features.tiny_vlm import expected_answer, image_messages, image_url, save_vlm
from tests.server.engine.pooling.tiny_poolers import hidden_states, save_pooler, save_sentence_files, unit
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.teacher_forcing import TeacherForcing, as_sequences, packed_runner, reference_logits
from tests.server.engine.tiny_models import PACKED, build_model, greedy_outputs, random_prompts
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
    arguments = [str(tmp_path), "--served-model-name", "tiny", "--runner", "pooling"]
    with ServerProcess(arguments) as server, server.openai() as client:
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


_SLOT_LEN = 448


@pytest.mark.parametrize("architecture", [pytest.param(name, id=name) for name in PACKED])
def test_chunks_of_scattered_sequences_have_the_plain_models_logits(architecture):
    assert _errors(architecture, torch.float32).runner < 1e-3


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2"])
def test_half_precision_is_as_close_to_float32_as_the_plain_model(architecture):
    errors = _errors(architecture, torch.bfloat16)
    assert 0 < errors.runner < 2 * errors.plain


def test_attention_never_uses_the_plain_kernel(monkeypatch):
    """A long prompt in chunks, with heads that share keys. The plain kernel would store all scores."""
    calls = []
    attend = attention_kernels.attend

    def attend_by_fused_kernels(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        calls.append(kwargs.get("mask") is not None)
        with torch.nn.attention.sdpa_kernel(
            [torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION]
        ):
            return attend(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("server.engine.compute.attention.attend", attend_by_fused_kernels)
    errors = _errors("llama", torch.bfloat16)
    assert 0 < errors.runner < 2 * errors.plain
    assert set(calls) == {True, False}


def test_greedy_output_of_a_batch_equals_generate():
    model = build_model("llama", PACKED["llama"])
    prompts = random_prompts(3, 17, 40, 5, 33, 90)
    expected = greedy_outputs(model, prompts, 40)
    assert all(len(set(output)) > 4 for output in expected), "the model repeats itself: nothing would be tested"
    engine = SmallEngine(model.to(DEVICE), max_num_batched_tokens=32, prefix_tokens=256)
    assert engine.generate(prompts, max_tokens=40) == expected
    assert engine.generate(prompts, max_tokens=40) == expected, "from the prefix cache"
    engine.assert_nothing_leaked()


def test_every_sampling_parameter_works_on_the_gpu():
    engine = SmallEngine(build_model("llama", PACKED["llama"]).to(DEVICE), eos_token_ids=(2,))
    prompts = random_prompts(9, 12)
    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 7, "min_tokens": 5}
    options |= {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.2, "logprobs": 3}
    options |= {"logit_bias": {9: -100.0}, "stop_token_ids": (14,)}
    first, second = (engine.complete(prompts, max_tokens=30, **options) for _ in range(2))
    assert [c.token_ids for c in first] == [c.token_ids for c in second]
    assert all(len(c.token_ids) >= 5 and 9 not in c.token_ids for c in first)
    allowed = engine.generate(prompts, allowed_token_ids=(5, 6), temperature=1.0, max_tokens=20)
    assert {token_id for output in allowed for token_id in output} <= {5, 6}


class _Errors(NamedTuple):
    """Largest errors of logits, relative to the largest logit in float32."""

    runner: float
    plain: float
    """The plain model on the CPU, in the same dtype as the runner."""


def _errors(architecture: str, dtype: torch.dtype) -> _Errors:
    model = build_model(architecture, PACKED[architecture], dtype=dtype)
    prompts = random_prompts(80, 5, 33, 62, 1, 400)
    exact = reference_logits(copy.deepcopy(model).float(), prompts)
    plain = reference_logits(model, prompts)
    runner = packed_runner(model.to(DEVICE), num_slots=11, slot_len=_SLOT_LEN)
    forcing = TeacherForcing(runner, as_sequences(prompts), seed=len(architecture))
    return _Errors(
        runner=forcing.largest_error([logits.to(DEVICE) for logits in exact]),
        plain=max(float((p - e).abs().max() / e.abs().max()) for p, e in zip(plain, exact, strict=True)),
    )
