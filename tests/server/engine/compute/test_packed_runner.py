"""The packed runner gives the plain model's results, for every supported architecture."""

import copy
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch

from server.engine.compute import attention
from server.engine.compute import packed_runner as packed_runner_module
from server.engine.compute.attention_kernels import attend_in_parts
from server.engine.compute.packed_runner import PackedRunner
from server.engine.sequence import Chunk
from tests.server.engine.teacher_forcing import TeacherForcing, as_sequences, packed_runner, reference_logits
from tests.server.engine.tiny_models import PACKED, build_model, random_prompts

pytestmark = pytest.mark.thorough

SLOT_LEN = 448


@pytest.mark.parametrize("architecture", PACKED)
def test_chunks_of_scattered_sequences_give_the_plain_models_logits(architecture):
    model = build_model(architecture, PACKED[architecture])
    prompts = random_prompts(80, 5, 33, 62, 1, 400)
    references = reference_logits(model, prompts)
    runner = packed_runner(model, num_slots=11, slot_len=SLOT_LEN)
    forcing = TeacherForcing(runner, as_sequences(prompts), seed=len(architecture))
    assert forcing.largest_error(references) < 1e-4


@pytest.mark.parametrize("architecture", ("llama", "phi3", "gemma3_text"))
def test_rope_computes_positions_beyond_the_models_own_length(architecture):
    """VLLM_ALLOW_LONG_MAX_MODEL_LEN permits such positions."""
    model = build_model(architecture, PACKED[architecture] | {"max_position_embeddings": 64})
    prompts = random_prompts(100, 5, 150)
    references = reference_logits(model, prompts)
    forcing = TeacherForcing(packed_runner(model, num_slots=4, slot_len=200), as_sequences(prompts), seed=1)
    assert forcing.largest_error(references) < 1e-4


@pytest.mark.parametrize("is_idle_first", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_as_close_to_float32_as_the_plain_model(dtype, is_idle_first):
    model = build_model("llama", PACKED["llama"], dtype=dtype)
    prompts = random_prompts(80, 5, 33, 300)
    exact = reference_logits(copy.deepcopy(model).float(), prompts)
    plain = reference_logits(model, prompts)
    plain_error = max(float((p - e).abs().max() / e.abs().max()) for p, e in zip(plain, exact, strict=True))
    runner = packed_runner(model, num_slots=7, slot_len=SLOT_LEN)
    for _ in runner.prepare() if is_idle_first else ():
        pass
    error = TeacherForcing(runner, as_sequences(prompts), seed=1).largest_error(exact)
    assert 0 < error < 1.5 * plain_error
    assert error < {torch.bfloat16: 0.12, torch.float16: 0.01}[dtype]


@pytest.mark.parametrize(("architecture", "num_shared"), [("llama", 2), ("mistral", 0), ("gemma2", 0), ("gpt_oss", 0)])
def test_threads_share_the_keys_of_one_long_sequence(architecture, num_shared, monkeypatch):
    model = build_model(architecture, PACKED[architecture])
    prompts = random_prompts(430)
    [expected] = reference_logits(model, prompts)
    runner = packed_runner(model, num_slots=2, slot_len=SLOT_LEN)
    [sequence] = as_sequences(prompts)
    sequence.slot = 1
    runner.step([Chunk(sequence, 429)])
    sequence.num_computed_tokens = 429
    in_parts = Mock(wraps=attend_in_parts)
    monkeypatch.setattr(attention, "attend_in_parts", in_parts)
    monkeypatch.setattr(attention, "_MIN_PART_TOKENS", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    result = runner.step([Chunk(sequence, 1)])
    assert [call.kwargs["num_parts"] for call in in_parts.call_args_list] == [3] * num_shared
    assert (result.logits[-1] - expected[-1]).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("architecture", PACKED)
def test_probe_finds_the_shapes_of_a_whole_forward_pass(architecture, monkeypatch):
    model = build_model(architecture, PACKED[architecture])
    shapes = PackedRunner(model).probe()
    monkeypatch.setattr(packed_runner_module, "light_forward", nullcontext)
    assert PackedRunner(model).probe() == shapes
