"""Grouped query heads give the same results with grouped and with repeated keys."""

import pytest
import torch

from server.engine import fused_attention
from server.engine.fused_attention import attend, repeat_heads


@pytest.mark.parametrize("has_mask", [True, False])
def test_repeated_heads_give_the_same_result_as_groups(has_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(1, 8, 5, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    mask = torch.zeros(1, 1, 5, 9).masked_fill_(torch.ones(5, 9).triu(5).bool(), float("-inf")) if has_mask else None
    grouped = attend(query, keys, values, scale=0.3, mask=mask)
    monkeypatch.setattr(fused_attention, "_takes_groups", lambda *_: False)
    assert torch.allclose(attend(query, keys, values, scale=0.3, mask=mask), grouped, atol=1e-6)


def test_each_head_is_repeated_for_its_own_group() -> None:
    heads = torch.arange(3.0)[None, :, None, None]
    assert repeat_heads(heads, 6).flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_ungrouped_heads_are_not_repeated() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(3, 1, 4, 7, 16).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    assert torch.equal(attend(query, keys, values, scale=None, is_causal=True), expected)
