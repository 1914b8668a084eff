"""Row ids depend on contents, positions and random keys that a client cannot guess."""

import pytest
import torch

from server.engine.features.prompt_features import RowHasher


@pytest.mark.parametrize(("width", "dtype"), [(8, torch.float32), (576, torch.bfloat16), (7, torch.bfloat16)])
def test_equal_rows_have_equal_ids_and_different_rows_do_not(width: int, dtype: torch.dtype) -> None:
    rows = torch.randn(500, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    hasher = RowHasher()
    ids = hasher.identify(rows, None)
    assert ids.shape == (500,)
    assert len(set(ids.tolist())) == 500
    assert (ids < 0).all(), "no token id is negative"
    assert (hasher.identify(rows.flip(0).contiguous(), None)[::-1] == ids).all()


def test_a_single_bit_changes_the_id() -> None:
    rows = torch.zeros(64, 4)
    flat = rows.view(torch.int32)
    for i in range(32):
        flat[i, 1] = 1 << i if i < 31 else -(1 << 31)
        flat[32 + i, 3] = flat[i, 1]
    assert len(set(RowHasher().identify(rows, None).tolist())) == 64


def test_the_position_changes_the_id() -> None:
    rows = torch.ones(3, 4)
    hasher = RowHasher()
    ids = hasher.identify(rows, torch.tensor([[0, 0, 1], [0, 0, 0], [0, 1, 0]]))
    assert len(set(ids.tolist())) == 3
    assert hasher.identify(rows[:1], torch.tensor([[0], [0], [0]]))[0] == ids[0]


def test_each_hasher_has_its_own_random_keys() -> None:
    rows = torch.randn(5, 4)
    assert (RowHasher().identify(rows, None) != RowHasher().identify(rows, None)).all()
