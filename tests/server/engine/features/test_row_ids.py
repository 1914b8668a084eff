"""Row ids depend on contents, positions and a random key that a client cannot guess."""

import pytest
import torch

from server.engine.features.prompt_features import FeatureBuilder, identify_rows

KEY = b"k" * 16


@pytest.mark.parametrize(("width", "dtype"), [(8, torch.float32), (576, torch.bfloat16), (7, torch.bfloat16)])
def test_equal_rows_have_equal_ids_and_different_rows_do_not(width, dtype):
    rows = torch.randn(500, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = identify_rows(rows, None, KEY)
    assert ids.shape == (500,)
    assert len(set(ids.tolist())) == 500
    assert (ids < 0).all(), "no token id is negative"
    assert (identify_rows(rows.flip(0).contiguous(), None, KEY)[::-1] == ids).all()


def test_a_single_bit_changes_the_id():
    rows = torch.zeros(64, 4)
    flat = rows.view(torch.int32)
    for i in range(32):
        flat[i, 1] = 1 << i if i < 31 else -(1 << 31)
        flat[32 + i, 3] = flat[i, 1]
    assert len(set(identify_rows(rows, None, KEY).tolist())) == 64


def test_the_position_changes_the_id():
    rows = torch.ones(3, 4)
    ids = identify_rows(rows, torch.tensor([[0, 0, 1], [0, 0, 0], [0, 1, 0]]), KEY)
    assert len(set(ids.tolist())) == 3
    assert identify_rows(rows[:1], torch.tensor([[0], [0], [0]]), KEY)[0] == ids[0]


def test_each_engine_has_its_own_random_key():
    first, second = (FeatureBuilder(torch.nn.Identity())._key for _ in range(2))  # type: ignore[arg-type]
    rows = torch.randn(5, 4)
    assert first and second
    assert (identify_rows(rows, None, first) != identify_rows(rows, None, second)).all()
