"""Models load the same tensors with and without transformers' work per tensor."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import core_model_loading

from server.config import EngineConfig
from server.engine.model import model_loading
from server.engine.model.model_loading import load_model
from server.engine.model.tensor_overhead import without_tensor_overhead
from tests.server.engine.tiny_models import PACKED, build_model

REPLACED = (
    (core_model_loading, "re"),
    (core_model_loading, "get_device"),
    (core_model_loading, "ThreadPoolExecutor"),
    (torch, "asarray"),
)


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
    before = [getattr(*place) for place in REPLACED]
    with pytest.raises(OSError, match="broken"), without_tensor_overhead(copies_tensors=False):
        assert not any(getattr(*place) is original for place, original in zip(REPLACED, before, strict=True))
        raise OSError("broken")
    assert [getattr(*place) for place in REPLACED] == before


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_model("llama", PACKED["llama"]).save_pretrained(tmp_path)
    read: list[int] = []
    original: Any = torch.UntypedStorage.__getitem__

    def get(storage: torch.UntypedStorage, place: Any) -> Any:
        if isinstance(place, int):
            read.append(place)
        return original(storage, place)

    monkeypatch.setattr(torch.UntypedStorage, "__getitem__", get)
    load_model(tmp_path, EngineConfig())
    assert not read
    monkeypatch.setattr(model_loading, "without_tensor_overhead", lambda **_: nullcontext())
    load_model(tmp_path, EngineConfig())
    assert read, "the libraries themselves read the first bytes no more: nothing is left to skip"


def test_other_arrays_are_made_by_torch() -> None:
    storage = torch.tensor([1.0, 2.0]).untyped_storage()
    with without_tensor_overhead(copies_tensors=False):
        assert torch.asarray([1, 2], dtype=torch.uint8).tolist() == [1, 2]
        assert torch.asarray(storage, dtype=torch.uint8).data_ptr() == storage.data_ptr()
        with pytest.raises(ValueError, match="alias"):  # as outside of the block
            torch.asarray(storage, dtype=torch.uint8, copy=False)


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
