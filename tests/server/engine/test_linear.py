"""Packed linear layers give the same results as plain ones, bit for bit."""

import psutil
import pytest
import torch
import torch.nn.functional as F

from server.engine import linear as linear_module
from server.engine.linear import LinearPacker
from tests.server.engine.tiny_models import PACKED, build_model

needs_bf16_kernels = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="oneDNN has no bfloat16 kernels on this processor",
)


@needs_bf16_kernels
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    ("in_features", "out_features"),
    [(576, 576), (576, 192), (1536, 576), (64, 96), (33, 47), (129, 32), (40, 1001)],
    ids=lambda n: str(n),
)
def test_packed_layer_is_bit_equal_for_every_batch_size(in_features: int, out_features: int, bias: bool) -> None:
    torch.manual_seed(in_features * out_features)
    layer = torch.nn.Linear(in_features, out_features, bias=bias, dtype=torch.bfloat16)
    _pack_all(layer)
    for batch in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64):
        x = torch.randn(1, batch, in_features, dtype=torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)), batch


@needs_bf16_kernels
def test_layers_are_packed_in_the_models_order_siblings_together() -> None:
    model = build_model("llama", PACKED["llama"], dtype=torch.bfloat16)
    packer = LinearPacker(model)
    packed = []
    more = True
    while more:
        before = {name for name, m in model.named_modules() if _is_packed(m)}
        more = packer.pack_next()
        packed.append(sorted({name for name, m in model.named_modules() if _is_packed(m)} - before))
    layer = [["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [[name.rpartition(".")[2] for name in names] for names in packed] == [*layer * 3, ["lm_head"]]
    assert packer.pack_next() is False


@needs_bf16_kernels
def test_siblings_with_different_inputs_give_correct_results() -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    for name in ("gate_proj", "up_proj"):
        module.register_module(name, torch.nn.Linear(64, 96, dtype=torch.bfloat16))
    gate, up = module.gate_proj, module.up_proj
    a, b = (torch.randn(1, 3, 64, dtype=torch.bfloat16) for _ in range(2))
    _pack_all(module)
    with torch.inference_mode():
        for layer, x in ((gate, a), (up, b), (up, a), (gate, b), (up, b), (gate, a), (gate, b), (up, b)):
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@needs_bf16_kernels
@pytest.mark.parametrize("model_type", PACKED)
def test_packing_changes_no_logits_of_any_architecture(model_type: str) -> None:
    model = build_model(model_type, PACKED[model_type], dtype=torch.bfloat16)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        _pack_all(model)
        assert torch.equal(model(input_ids=ids).logits, before)


@needs_bf16_kernels
def test_tied_embeddings_stay_tied() -> None:
    options = {**PACKED["llama"], "tie_word_embeddings": True}
    model = build_model("llama", options, dtype=torch.bfloat16)
    _pack_all(model)
    assert _is_packed(model.lm_head)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (model.config.vocab_size, model.config.hidden_size)


@needs_bf16_kernels
def test_small_layers_are_not_packed() -> None:
    layer = torch.nn.Linear(64, 31, dtype=torch.bfloat16)
    assert LinearPacker(layer).pack_next() is False
    assert not _is_packed(layer)


@needs_bf16_kernels
def test_nothing_is_packed_without_room_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    num_bytes = 64 * 64 * 2
    monkeypatch.setattr(linear_module, "available_bytes", lambda: 2 * num_bytes)
    LinearPacker(layer).pack_next()
    assert not _is_packed(layer)
    monkeypatch.setattr(linear_module, "available_bytes", lambda: 2 * num_bytes + 1)
    LinearPacker(layer).pack_next()
    assert _is_packed(layer)


def test_other_types_than_bfloat16_are_not_packed() -> None:
    layer = torch.nn.Linear(64, 64, dtype=torch.float32)
    assert LinearPacker(layer).pack_next() is False
    assert not _is_packed(layer)


@needs_bf16_kernels
def test_packing_takes_one_copy_of_the_weights() -> None:
    layer = torch.nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16)
    before = _own_bytes()
    LinearPacker(layer).pack_next()
    assert _is_packed(layer)
    assert _own_bytes() - before < 1.5 * layer.weight.numel() * layer.weight.element_size()


def _own_bytes() -> int:
    """The process's memory without mapped files, as the first call reads much of the library."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared  # type: ignore[no-any-return]


def _pack_all(model: torch.nn.Module) -> None:
    packer = LinearPacker(model)
    while packer.pack_next():
        pass


def _is_packed(layer: torch.nn.Module) -> bool:
    return "forward" in vars(layer)
