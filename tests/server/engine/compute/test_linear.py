"""Packed layers equal plain layers bit for bit in bfloat16 with oneDNN. Otherwise they round sums once."""

import gc

import psutil
import pytest
import torch
import torch.nn.functional as F

from server.engine.compute import linear as linear_module
from server.engine.compute.linear import FbgemmProduct, choose_product, multiply_in_float32, pack_linear_layers
from tests.base.machine.huge_pages import count_huge_bytes, needs_huge_pages
from tests.server.engine.tiny_models import PACKED, build_model, pack_layers

pytestmark = pytest.mark.thorough

HAS_BF16_KERNELS = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()

needs_bf16_kernels = pytest.mark.skipif(not HAS_BF16_KERNELS, reason="oneDNN has no bfloat16 kernels on this processor")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
needs_fbgemm = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="FBGEMM does not support this processor"
)
needs_packing = pytest.mark.skipif(
    choose_product(torch.nn.Linear(1, 1, dtype=torch.bfloat16)) is None, reason="nothing is packed on this processor"
)
SIZES = pytest.mark.parametrize(
    ("in_features", "out_features"),
    [(576, 192), (33, 47), (40, 1001), (576, 576), (1536, 576), (64, 96), (129, 32)],
    ids=lambda n: str(n),
)


@needs_bf16_kernels
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@SIZES
def test_packed_layer_is_bit_equal_for_every_batch_size(in_features, out_features, bias):
    torch.manual_seed(in_features * out_features)
    layer = torch.nn.Linear(in_features, out_features, bias=bias, dtype=torch.bfloat16)
    pack_layers(layer)
    for batch in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64):
        x = torch.randn(1, batch, in_features, dtype=torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)), batch


@pytest.fixture
def fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs layers for FBGEMM even if oneDNN has bfloat16 kernels."""
    monkeypatch.setattr(linear_module, "choose_product", lambda model: FbgemmProduct)


@pytest.fixture(
    params=[
        pytest.param(torch.bfloat16, id="fbgemm, bfloat16", marks=needs_fbgemm),
        pytest.param(torch.float16, id="fbgemm, float16", marks=needs_fbgemm),
        pytest.param(torch.float32, id="onednn, float32", marks=needs_onednn),
    ]
)
def rounding(request: pytest.FixtureRequest) -> torch.dtype:
    """A data type whose sums are rounded once, with the product that packs layers of this type."""
    if request.param is not torch.float32:
        request.getfixturevalue("fbgemm")
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@SIZES
def test_float32_sums_are_rounded_once(in_features, out_features, bias, rounding):
    torch.manual_seed(in_features * out_features)
    layer = torch.nn.Linear(in_features, out_features, bias=bias, dtype=rounding)
    pack_layers(layer)
    assert _is_packed(layer)
    for batch in (1, 2, 3, 5, 8, 16, 33):
        _assert_one_rounding(layer, torch.randn(1, batch, in_features, dtype=rounding))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_rows_are_multiplied_in_float32_before_a_layer_is_packed(dtype, bias, fbgemm, monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Linear(576, 192, bias=bias, dtype=dtype)
    multiply_in_float32(layer)
    types, product = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: types.append(x.dtype) or product(x, *rest))
    many, few = torch.randn(1, 33, 576, dtype=dtype), torch.randn(1, 3, 576, dtype=dtype)
    results = [layer(many), layer(few)]
    assert types == [torch.float32, dtype]
    monkeypatch.undo()
    _assert_one_rounding(layer, many)
    assert torch.equal(results[1], F.linear(few, layer.weight, layer.bias))


def test_inputs_may_have_any_layout(rounding):
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 96, dtype=rounding)
    pack_layers(layer)
    x = torch.randn(40, 6, 5, dtype=rounding).permute(2, 1, 0)
    for inputs in (x, x[:, ::2], x[:, :0], x[0, 0]):
        _assert_one_rounding(layer, inputs)


@needs_fbgemm
@pytest.mark.parametrize("scale", [2.0**-90, 2.0**-20, 2.0**60], ids=["tiny", "small", "huge"])
def test_fbgemm_keeps_weights_that_float16_cannot_represent(scale, fbgemm):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.mul_(scale)
    pack_layers(layer)
    _assert_one_rounding(layer, torch.randn(3, 64, dtype=torch.bfloat16))


@needs_fbgemm
def test_fbgemm_packs_large_weights_in_parts(monkeypatch, fbgemm):
    monkeypatch.setattr(linear_module, "_PART_ELEMENTS", 64 * 40)
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 150, dtype=torch.bfloat16)
    assert [_is_packed(layer) for _ in pack_linear_layers(layer)] == [False, False, True]
    _assert_one_rounding(layer, torch.randn(2, 3, 40, dtype=torch.bfloat16))


@needs_fbgemm
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=["inf", "nan"])
def test_weights_that_are_not_finite_show_in_the_output(value, fbgemm):
    layer = torch.nn.Linear(40, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight[3, 4] = value
    pack_layers(layer)
    with torch.inference_mode():
        assert not layer(torch.ones(1, 40, dtype=torch.bfloat16)).isfinite().any()


@needs_packing
@pytest.mark.parametrize("model_type", PACKED)
def test_packing_moves_no_logit_far_and_none_with_bfloat16_kernels(model_type):
    model = build_model(model_type, PACKED[model_type], dtype=torch.bfloat16)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits.float()
        pack_layers(model)
        after = model(input_ids=ids).logits.float()
    assert any(_is_packed(module) for module in model.modules())
    assert (after - before).abs().max() <= (0 if HAS_BF16_KERNELS else 0.02) * before.abs().max()


@needs_packing
def test_layers_are_packed_in_the_models_order_siblings_together():
    model = build_model("llama", PACKED["llama"], dtype=torch.bfloat16)
    packed: list[list[str]] = []
    for _ in pack_linear_layers(model):
        before = {name for names in packed for name in names}
        packed.append(sorted({name for name, m in model.named_modules() if _is_packed(m)} - before))
    layer = [["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [[name.rpartition(".")[2] for name in names] for names in packed if names] == [*layer * 2, ["lm_head"]]


@needs_packing
def test_siblings_with_different_inputs_give_correct_results():
    torch.manual_seed(0)
    module = torch.nn.Module()
    for name in ("gate_proj", "up_proj"):
        module.register_module(name, torch.nn.Linear(64, 96, dtype=torch.bfloat16))
    gate, up = module.gate_proj, module.up_proj
    a, b = (torch.randn(1, 3, 64, dtype=torch.bfloat16) for _ in range(2))
    pack_layers(module)
    with torch.inference_mode():
        for layer, x in ((gate, a), (up, b), (up, a), (gate, b), (up, b), (gate, a), (gate, b), (up, b)):
            _assert_one_rounding(layer, x)


@needs_packing
def test_tied_embeddings_stay_tied():
    options = {**PACKED["llama"], "tie_word_embeddings": True}
    model = build_model("llama", options, dtype=torch.bfloat16)
    pack_layers(model)
    assert _is_packed(model.lm_head)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (model.config.vocab_size, model.config.hidden_size)


@needs_packing
def test_small_layers_are_not_packed():
    layer = torch.nn.Linear(64, 31, dtype=torch.bfloat16)
    assert list(pack_linear_layers(layer)) == []
    assert not _is_packed(layer)


@needs_packing
def test_nothing_is_packed_without_room_for_a_copy(monkeypatch):
    layer = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    product = choose_product(layer)
    num_bytes = product.count_bytes(layer.weight)
    monkeypatch.setattr(linear_module, "available_bytes", lambda: 2 * num_bytes)
    pack_layers(layer)
    assert not _is_packed(layer)
    monkeypatch.setattr(linear_module, "available_bytes", lambda: 2 * num_bytes + 1)
    pack_layers(layer)
    assert _is_packed(layer)


@needs_packing
def test_float32_layers_of_a_half_precision_model_are_not_packed():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16), torch.nn.Linear(64, 64))
    pack_layers(model)
    assert [_is_packed(layer) for layer in model] == [True, False]


@needs_packing
def test_packing_takes_one_copy_of_the_weights():
    layer = torch.nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16)
    before = _own_bytes()
    pack_layers(layer)
    assert _is_packed(layer)
    assert _own_bytes() - before < 1.5 * layer.weight.numel() * layer.weight.element_size()


@needs_onednn
@needs_huge_pages
def test_packed_weights_lie_in_huge_pages():
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(5)))
    gc.collect()  # models of other tests must not go while this one is measured
    before = count_huge_bytes()
    pack_layers(model)
    assert count_huge_bytes() - before >= 4 * 1024 * 1024 * 4


def _assert_one_rounding(layer: torch.nn.Linear, x: torch.Tensor) -> None:
    """Checks that the output differs from the double-precision product by the type's rounding only."""
    bias = layer.bias.double() if layer.bias is not None else None
    wanted = F.linear(x.double(), layer.weight.double(), bias)
    size = F.linear(x.double().abs(), layer.weight.double().abs())
    with torch.inference_mode():
        found = layer(x)
    assert found.dtype == x.dtype
    assert found.shape == wanted.shape
    assert ((found.double() - wanted).abs() <= torch.finfo(x.dtype).eps * wanted.abs() + 1e-5 * size).all()


def _own_bytes() -> int:
    """The process's memory without mapped files, because the first call reads large parts of a library."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared  # type: ignore[no-any-return]


def _is_packed(layer: torch.nn.Module) -> bool:
    return "forward" in vars(layer)
