"""Layers that run as graphs give the plain model's tokens. Layers without a graph keep their `forward`."""

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.server.engine.compute.test_linear import needs_bf16_kernels
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import PACKED, build_model, greedy_outputs, pack_layers, random_prompts

pytestmark = pytest.mark.thorough

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
        layer.mlp.register_forward_pre_hook(_double_if_positive)
    wanted = greedy_outputs(llama, PROMPTS, 12)
    engine = SmallEngine(llama)
    finish_idle_work(engine)
    assert count_traced(llama) == (1, 2)
    assert [engine.generate([p], max_tokens=12)[0] for p in PROMPTS] == wanted


def _double_if_positive(module: torch.nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    return args[0] * 2 if args[0].mean() > 0 else args[0]


def _logprobs(engine: SmallEngine) -> list[list[float]]:
    completions = engine.complete(PROMPTS, max_tokens=8, logprobs=0)
    return [[logprob.logprob for logprob in each.logprobs] for each in completions]
