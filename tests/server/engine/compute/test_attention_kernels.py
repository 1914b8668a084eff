"""Attention with grouped query heads equals attention with repeated keys. Parts of the keys can be merged."""

import pytest
import torch

from server.engine.compute import attention_kernels
from server.engine.compute.attention_kernels import KeyValueCopies, attend, attend_to_part, merge_attention


@pytest.mark.parametrize("has_mask", [True, False])
def test_repeated_heads_give_the_same_result_as_groups(has_mask, monkeypatch):
    torch.manual_seed(0)
    query, keys, values = torch.randn(1, 8, 5, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    mask = torch.zeros(1, 1, 5, 9).masked_fill_(torch.ones(5, 9).triu(5).bool(), float("-inf")) if has_mask else None
    grouped = attend(query, keys, values, scale=0.3, mask=mask)
    monkeypatch.setattr(attention_kernels, "_takes_groups", lambda *_: False)
    assert torch.allclose(attend(query, keys, values, scale=0.3, mask=mask), grouped, atol=1e-6)


def test_parts_of_very_different_weight_are_merged_without_overflow():
    query = torch.full((1, 1, 1, 16), 100.0)
    keys, values = torch.full((1, 1, 2, 16), 100.0), torch.ones(1, 1, 2, 16)
    heavy = attend_to_part(query, keys, values, scale=1.0)
    light = attend_to_part(query, -keys, -values, scale=1.0)
    assert torch.equal(merge_attention(heavy, light), values[:, :, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attention_to_copies_has_the_same_bits(dtype, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(attention_kernels, "_FEWEST_BYTES", 1)
    monkeypatch.setattr(attention_kernels, "_PIECE_BYTES", 3 * 40 * 2 * 128 * dtype.itemsize)
    query = torch.randn(7, 2, 3, 64, dtype=dtype)
    keys, values = (torch.randn(9, 50, 2, 64, dtype=dtype)[1:8, :40].transpose(1, 2) for _ in range(2))
    copies, found = KeyValueCopies(), []
    for slots, some_keys, some_values in copies.pieces(keys, values):
        assert some_keys.data_ptr() != keys[slots].data_ptr()
        found.append((slots, attend(query[slots], some_keys, some_values, scale=0.3)))
    assert [slots for slots, _ in found] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert torch.equal(torch.cat([output for _, output in found]), attend(query, keys, values, scale=0.3))


@pytest.mark.parametrize("limit", [{"_FEWEST_BYTES": 1 << 20}, {"_MOST_SLOT_BYTES": 1 << 10}], ids=["few", "many"])
def test_few_keys_and_long_sequences_are_not_copied(limit, monkeypatch):
    for name, num_bytes in limit.items():
        monkeypatch.setattr(attention_kernels, name, num_bytes)
    keys, values = torch.zeros(2, 3, 50, 2, 16).transpose(2, 3)
    ((slots, *same),) = KeyValueCopies().pieces(keys, values)
    assert slots == slice(3)
    assert same[0] is keys
    assert same[1] is values
