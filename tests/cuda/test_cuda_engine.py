"""The packed runner on the GPU computes the same as the plain model on the CPU."""

import copy
from typing import NamedTuple

import pytest
import torch

from server.engine.compute import attention_kernels
from tests.cuda.conftest import DEVICE
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.teacher_forcing import TeacherForcing, as_sequences, packed_runner, reference_logits
from tests.server.engine.tiny_models import PACKED, build_model, greedy_outputs, random_prompts

pytestmark = pytest.mark.cuda

_SLOT_LEN = 448
_LENGTHS = (80, 5, 33, 62, 1, 400)


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
    prompts = random_prompts(*_LENGTHS)
    exact = reference_logits(copy.deepcopy(model).float(), prompts)
    plain = reference_logits(model, prompts)
    runner = packed_runner(model.to(DEVICE), num_slots=11, slot_len=_SLOT_LEN)
    forcing = TeacherForcing(runner, as_sequences(prompts), seed=len(architecture))
    return _Errors(
        runner=forcing.largest_error([logits.to(DEVICE) for logits in exact]),
        plain=max(float((p - e).abs().max() / e.abs().max()) for p, e in zip(plain, exact, strict=True)),
    )
