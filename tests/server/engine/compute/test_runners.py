"""Each runner gives the plain model's results: the packed one for every supported architecture.

The sequential one runs models with other state than keys and values.
"""

import copy
import logging
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from server.engine.compute import attention
from server.engine.compute import packed_runner as packed_runner_module
from server.engine.compute.attention import UnsupportedAttentionError
from server.engine.compute.attention_kernels import attend_in_parts
from server.engine.compute.packed_runner import PackedRunner
from server.engine.compute.sequential_runner import SequentialRunner
from server.engine.sequence import Chunk
from tests.server.engine.compute.test_linear import needs_bf16_kernels
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.teacher_forcing import TeacherForcing, as_sequences, packed_runner, reference_logits
from tests.server.engine.tiny_models import PACKED, SEQUENTIAL, build_model, greedy_outputs, pack_layers, random_prompts

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


@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_greedy_output_of_interleaved_sequences_equals_that_of_generate(architecture):
    model = build_model(architecture, SEQUENTIAL[architecture])
    prompts = random_prompts(3, 17, 40, 2)
    expected = greedy_outputs(model, prompts, 24)
    assert max(len(set(output)) for output in expected) > 4, "a model that repeats itself proves nothing"
    engine = SmallEngine(model, sequential=True)
    completions = []
    for i, prompt in enumerate(prompts):
        completions.append(engine.add(str(i), prompt, max_tokens=24))
        for _ in range(5):
            engine.step()
    engine.run()
    assert [completion.token_ids for completion in completions] == expected
    engine.assert_nothing_leaked()


def test_a_preempted_sequence_is_computed_again_from_its_first_token():
    model = build_model("mamba", SEQUENTIAL["mamba"])
    prompts = random_prompts(17, 16)
    expected = greedy_outputs(model, prompts, 12)
    engine = SmallEngine(model, sequential=True, num_slots=2, max_model_len=40, kv_cache_tokens=45)
    assert engine.generate(prompts, max_tokens=12) == expected
    assert engine.stats.num_preemptions > 0
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("architecture", [*SEQUENTIAL, "llama"])
def test_probe_rejects_the_model_and_does_not_change_it(architecture):
    model = build_model(architecture, (SEQUENTIAL | PACKED)[architecture])
    if architecture == "llama":
        model.model.layers[1].self_attn.layer_idx = 0
    before, implementation = _forward(model), model.config._attn_implementation
    message = "layer 0 attends more than once" if architecture == "llama" else None
    with pytest.raises(UnsupportedAttentionError, match=message):
        PackedRunner(model).probe()
    assert model.config._attn_implementation == implementation
    assert torch.equal(_forward(model), before)


def test_every_prompt_token_has_logits_if_prompt_logprobs_are_requested():
    model = build_model("mamba", SEQUENTIAL["mamba"])
    [sequence] = as_sequences(random_prompts(17), prompt_logprobs=1)
    result = SequentialRunner(model).step([Chunk(sequence, 17)])
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([sequence.token_ids])).logits[0]
    assert result.rows == [slice(0, 17)]
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("architecture", "is_logged"), [("mamba", False), ("rwkv", True), ("recurrent_gemma", True)])
def test_a_model_without_a_usable_cache_is_logged(architecture, is_logged, caplog):
    model = build_model(architecture, SEQUENTIAL[architecture])
    with caplog.at_level(logging.WARNING, logger="server.engine.compute.sequential_runner"):
        SequentialRunner(model)
    expected = [f"{type(model).__name__} is computed from the first token in every step"]
    assert [r.getMessage() for r in caplog.records] == (expected if is_logged else [])


def _forward(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(3, 30)[None]).logits
    return logits


PROMPTS = random_prompts(1, 9, 40)


def finish_idle_work(engine: SmallEngine) -> None:
    for _ in engine.core.prepare():
        pass


def count_traced(model: torch.nn.Module) -> tuple[int, int]:
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    return sum("forward" in vars(layer) for layer in layers), len(layers)


@pytest.mark.parametrize("model_type", PACKED)
def test_graphs_give_the_tokens_of_the_plain_model(model_type):
    model = build_model(model_type, PACKED[model_type])
    wanted = greedy_outputs(model, PROMPTS, 12)
    engine = SmallEngine(model)
    finish_idle_work(engine)
    num_traced, num_layers = count_traced(model)
    assert num_traced == num_layers
    assert engine.generate(PROMPTS, max_tokens=12) == wanted
    assert [engine.generate([p], max_tokens=12)[0] for p in PROMPTS] == wanted


@needs_bf16_kernels
def test_a_graph_has_the_bits_of_its_layer_in_bfloat16(llama):
    model = llama.to(torch.bfloat16)
    pack_layers(model)
    engine = SmallEngine(model)
    before = _logprobs(engine)
    finish_idle_work(engine)
    assert count_traced(model) == (2, 2)
    assert str(model.model.layers[0].forward.graph.graph).count("mkldnn::_linear_pointwise") == 4
    assert _logprobs(engine) == before


def test_layers_whose_values_decide_in_python_keep_their_forward(llama):
    for layer in llama.model.layers[1:]:
        layer.mlp.register_forward_pre_hook(lambda _, args: args[0] * 2 if args[0].mean() > 0 else args[0])
    wanted = greedy_outputs(llama, PROMPTS, 12)
    engine = SmallEngine(llama)
    finish_idle_work(engine)
    assert count_traced(llama) == (1, 2)
    assert [engine.generate([p], max_tokens=12)[0] for p in PROMPTS] == wanted


def _logprobs(engine: SmallEngine) -> list[list[float]]:
    completions = engine.complete(PROMPTS, max_tokens=8, logprobs=0)
    return [[logprob.logprob for logprob in each.logprobs] for each in completions]
