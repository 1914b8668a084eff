"""int8 layers are near plain layers, and compute a row equally in any batch. They free the weights."""

import pytest
import torch

import server.engine.compute.int8_product as int8_module
from base.errors import EngineMemoryError, EngineStartError
from server.engine.compute.int8_product import Int8Product, QuantizedLayers
from server.engine.compute.linear import pack_linear_layers
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import PACKED, build_model, random_prompts

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BATCHES = (1, 2, 7, 8, 33, 128)


_HAS_VNNI = torch.cpu._is_vnni_supported()


@pytest.fixture(params=[True, False] if _HAS_VNNI else [False], ids=lambda has_vnni: "8 bits" if has_vnni else "7 bits")
def has_vnni(request, monkeypatch):
    """Runs tests with VNNI if the processor has it, and without VNNI."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: request.param)
    int8_module._largest_activation.cache_clear()
    yield request.param
    int8_module._largest_activation.cache_clear()


def layer_and_rows(dtype, *, num_rows=128, in_features=600, out_features=200):
    torch.manual_seed(0)
    layer = torch.nn.Linear(in_features, out_features, dtype=dtype)
    rows = torch.randn(1, num_rows, in_features, dtype=dtype)
    rows[0, 3] = 0
    rows[0, 4, 7] = 300  # an outlier takes the precision of its own row only
    return layer, rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_results_are_near_those_of_the_plain_layer(dtype, has_vnni):
    layer, rows = layer_and_rows(dtype)
    expected = layer(rows).float()
    product = Int8Product(layer.weight, layer.bias)
    product.pack_next()
    output = product(rows)
    assert output.dtype == dtype and output.shape == expected.shape
    error = ((output.float() - expected).norm(dim=-1) / expected.norm(dim=-1))[0]
    assert error[4] < (0.1 if has_vnni else 0.2)
    assert error[:4].max() < (0.02 if has_vnni else 0.04)
    assert error[5:].max() < (0.02 if has_vnni else 0.04)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_batch_packed_or_not(dtype, has_vnni):
    layer, rows = layer_and_rows(dtype, in_features=4096)
    product = Int8Product(layer.weight, layer.bias)
    before = [product(rows[:, :n]) for n in BATCHES]
    product.pack_next()
    after = [product(rows[:, :n]) for n in BATCHES]
    alone = torch.cat([product(row[None, None]) for row in rows[0]], dim=1)
    for n, plain, packed in zip(BATCHES, before, after, strict=True):
        assert torch.equal(plain, packed)
        assert torch.equal(packed, alone[:, :n])


@torch.inference_mode()
def test_the_largest_sums_are_exact(has_vnni):
    """With eight bits, sums of two products would overflow int16."""
    weight = torch.ones(64, 1024)
    product = Int8Product(weight, None)
    product.pack_next()
    assert torch.allclose(product(torch.ones(2, 1024)), torch.full((2, 64), 1024.0))
    assert torch.allclose(product(-torch.ones(2, 1024)), torch.full((2, 64), -1024.0))


def test_weights_are_not_changed_while_they_are_quantized():
    layer, _ = layer_and_rows(torch.float32)
    before = layer.weight.detach().clone()
    Int8Product(layer.weight.detach(), None)
    assert torch.equal(layer.weight, before)


def test_weights_that_are_not_finite_are_an_error():
    with pytest.raises(EngineStartError, match="not finite"):
        Int8Product(torch.tensor([[1.0, torch.inf]]), None)


@torch.inference_mode()
def test_rows_that_are_not_finite_stay_so():
    layer, rows = layer_and_rows(torch.bfloat16)
    rows[0, 5, 2], rows[0, 6, 2] = torch.nan, torch.inf
    output = Int8Product(layer.weight, None)(rows)
    assert not output[0, 5].isfinite().any() and not output[0, 6].isfinite().any()
    assert output[0, 7:].isfinite().all()


@pytest.mark.parametrize("model_type", PACKED)
@torch.inference_mode()
def test_every_architecture_computes_without_the_weights_of_its_linear_layers(model_type):
    model = build_model(model_type, PACKED[model_type], dtype=torch.bfloat16)
    ids = torch.arange(3, 40)[None]
    before = model(input_ids=ids).logits.float()
    quantized = QuantizedLayers(model)
    plain = model(input_ids=ids).logits
    for _ in quantized.pack():
        pass
    assert torch.equal(model(input_ids=ids).logits, plain)
    assert (plain.float() - before).norm() < 0.5 * before.norm()  # random weights amplify every rounding
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear and m.out_features >= 32]
    assert linears and all(m.weight is None for m in linears)
    assert list(pack_linear_layers(model)) == []


def test_sizes_and_experts_are_told():
    text = str(QuantizedLayers(build_model("qwen3_moe", PACKED["qwen3_moe"], dtype=torch.bfloat16)))
    assert text == "13 linear layers in int8 (44.0 KiB instead of 88.0 KiB); its experts are not quantized"
    assert "experts" not in str(QuantizedLayers(build_model("llama", PACKED["llama"])))


def test_an_embedding_that_shares_the_heads_weight_keeps_it():
    model = build_model("llama", {**PACKED["llama"], "tie_word_embeddings": True, "vocab_size": 4096})
    before = model.model.embed_tokens.weight.detach().clone()
    QuantizedLayers(model)
    assert model.lm_head.weight is None
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_too_little_memory_for_the_moment_is_an_error(monkeypatch):
    model = build_model("llama", PACKED["llama"])
    monkeypatch.setattr(int8_module, "available_bytes", lambda: 1000)
    with pytest.raises(EngineMemoryError, match="needs .* while it quantizes, and 1000 bytes are available"):
        QuantizedLayers(model)
    assert model.lm_head.weight is not None


def test_answers_do_not_depend_on_other_requests_or_on_packing():
    model = build_model("llama", PACKED["llama"])
    prompts = random_prompts(5, 11, 17, 4)
    quantized = QuantizedLayers(model)
    engine = SmallEngine(model)
    alone = [engine.generate([prompt])[0] for prompt in prompts]
    assert engine.generate(prompts) == alone
    engine.runner.use_quantized(quantized)
    for _ in engine.core.prepare():
        pass
    assert engine.generate(prompts) == alone


def test_layers_in_int8_run_as_graphs_with_the_same_bits():
    model = build_model("llama", PACKED["llama"]).to(torch.bfloat16)
    quantized = QuantizedLayers(model)
    engine = SmallEngine(model)
    prompts = random_prompts(5, 11, 17, 4)
    engine.runner.use_quantized(quantized)
    before = [each.logprobs for each in engine.complete(prompts, max_tokens=6, logprobs=0)]
    for _ in engine.core.prepare():
        pass
    for layer in model.model.layers:
        assert str(layer.forward.graph.graph).count("onednn::qlinear_pointwise") == 4
        layer.forward._forward = None  # would fail if it were called
    assert [each.logprobs for each in engine.complete(prompts, max_tokens=6, logprobs=0)] == before
