"""Models with other state than keys and values run one sequence at a time, and equal their own `generate`."""

import logging

import pytest
import torch
from transformers import PreTrainedModel

from server.engine.compute.attention import UnsupportedAttentionError
from server.engine.compute.packed_runner import PackedRunner
from server.engine.compute.sequential_runner import SequentialRunner
from server.engine.sequence import Chunk
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.teacher_forcing import as_sequences
from tests.server.engine.tiny_models import PACKED, SEQUENTIAL, build_model, greedy_outputs, random_prompts

pytestmark = pytest.mark.thorough


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
