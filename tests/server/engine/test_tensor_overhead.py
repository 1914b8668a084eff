"""Models load the same tensors with and without transformers' work per tensor."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import core_model_loading

from server.config import EngineConfig
from server.engine import model_loading
from server.engine.model_loading import load_model
from server.engine.tensor_overhead import without_tensor_overhead
from tests.server.engine.tiny_models import PACKED, build_model

REPLACED = ("re", "get_device", "ThreadPoolExecutor")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])  # plain, with merged tensors, renamed
def test_the_model_is_the_same(architecture: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_model(architecture, PACKED[architecture]).save_pretrained(tmp_path)
    found = load_model(tmp_path, EngineConfig(dtype=dtype)).state_dict()
    monkeypatch.setattr(model_loading, "without_tensor_overhead", lambda **_: nullcontext())
    expected = load_model(tmp_path, EngineConfig(dtype=dtype)).state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_loader_is_restored_after_a_failure() -> None:
    before = [getattr(core_model_loading, name) for name in REPLACED]
    with pytest.raises(OSError, match="broken"), without_tensor_overhead(copies_tensors=False):
        assert [getattr(core_model_loading, name) for name in REPLACED] != before
        raise OSError("broken")
    assert [getattr(core_model_loading, name) for name in REPLACED] == before


def test_a_loader_of_another_version_stays_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core_model_loading, "get_device")
    with without_tensor_overhead(copies_tensors=True):
        assert not hasattr(core_model_loading, "get_device")
    assert not hasattr(core_model_loading, "get_device")


def test_patterns_that_are_used_match() -> None:
    with without_tensor_overhead(copies_tensors=True):
        renaming = deepcopy(core_model_loading.WeightRenaming(r"^old\.(\d+)", r"new.\1"))
    assert renaming.rename_source_key("old.7.weight")[0] == "new.7.weight"


def test_several_devices_are_told_apart() -> None:
    with without_tensor_overhead(copies_tensors=True):
        get_device = core_model_loading.get_device  # type: ignore[attr-defined]
        assert get_device({"": "cpu"}, "a.weight", valid_torch_device=True) == "cpu"
        assert get_device({"": "disk"}, "a.weight", valid_torch_device=True) == "cpu"
        assert get_device({"a": "meta", "b": "cpu"}, "a.weight") == "meta"
