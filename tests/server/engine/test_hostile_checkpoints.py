"""No code in a model's files is executed: neither in pickles nor in Python files."""

import io
import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from base.errors import EngineStartError
from server.engine.model_loading import load_config, load_model
from server.engine.pooling import projection
from server.engine.sampling.guided import read_vocabulary
from server.terms.config import EngineConfig
from server.text.model_files import TokenizerLoadError
from server.text.renderers.images.processor import load_processor
from server.text.renderers.tokenizers.loading import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

KINDS = ("archive", "legacy", "bare pickle", "archive with another pickle")

_MODULE = """
import pathlib
pathlib.Path({marker!r}).mkdir()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class HostileConfig(LlamaConfig): pass
class HostileModel(LlamaForCausalLM): pass
class HostileTokenizer(PreTrainedTokenizerFast): pass
"""


class HostileObject:
    """Unpickling this creates a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._marker,)


def pickles(marker: Path) -> dict[str, bytes]:
    """Contents of hostile `.bin` files, by kind."""
    hostile = {"model.embed_tokens.weight": HostileObject(marker), "linear.weight": HostileObject(marker)}
    archive, legacy, global_only = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(hostile, archive)
    torch.save(hostile, legacy, _use_new_zipfile_serialization=False)
    torch.save({"model.embed_tokens.weight": torch.zeros(1)}, global_only)
    return {
        "archive": archive.getvalue(),
        "legacy": legacy.getvalue(),
        "bare pickle": pickle.dumps(hostile),
        "archive with another pickle": _with_pickle(global_only.getvalue(), pickle.dumps(HostileObject(marker), 0)),
    }


def write_code(folder: Path, marker: Path) -> None:
    """Makes every configuration in the folder name classes in a Python file next to it."""
    (folder / "hostile.py").write_text(_MODULE.format(marker=str(marker)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_MODULE.format(marker=str(marker)))
    _edit(
        folder / "config.json",
        auto_map={"AutoConfig": "hostile.HostileConfig", "AutoModelForCausalLM": "hostile.HostileModel"},
    )
    _edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"]},
        tokenizer_class="HostileTokenizer",
    )
    images = {"processor_class": "LlavaProcessor", "auto_map": {"AutoImageProcessor": "hostile.HostileImages"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def _with_pickle(archive: bytes, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The path that the checkpoint's code creates if this code runs."""
    return tmp_path / "evil-was-here"


@pytest.mark.parametrize("kind", KINDS)
def test_the_pickles_run_code_when_loaded_without_protection(marker, kind, tmp_path):
    """So the other tests would fail if a pickle were loaded without protection."""
    (tmp_path / "file").write_bytes(pickles(marker)[kind])
    try:
        torch.load(tmp_path / "file", weights_only=False)
    except Exception as err:  # noqa: BLE001 - the code has run by then
        print(err)
    assert marker.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["whole", "sharded", "sharded elsewhere"])
def test_weights_run_no_code(llama_copy, marker, kind, place):
    (llama_copy / "model.safetensors").unlink()
    name = {"whole": "pytorch_model.bin", "sharded": "weights-1.bin", "sharded elsewhere": "../weights.bin"}[place]
    (llama_copy / name).write_bytes(pickles(marker)[kind])
    if place != "whole":
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
        (llama_copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(EngineStartError) as raised:
        load_model(llama_copy, EngineConfig())
    assert "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_layer_of_sentence_transformers_runs_no_code(tmp_path, marker, kind):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickles(marker)[kind])
    with pytest.raises(EngineStartError, match="cannot load the weights"):
        projection._load_layer(tmp_path, torch.device("cpu"))
    assert not marker.exists()


def test_code_beside_a_model_runs_only_with_trust_remote_code(llama_copy, marker, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_code(llama_copy, marker)
    (llama_copy / "tokenizer.model").write_bytes(b"no model")
    monkeypatch.setattr("builtins.input", lambda _: "y")  # the answer if transformers asks
    for load in (
        lambda: load_config(llama_copy, EngineConfig()),
        lambda: load_model(llama_copy, EngineConfig()),
        lambda: read_vocabulary(llama_copy),
        lambda: load_processor(llama_copy, Mock()),
    ):
        with suppress(EngineStartError, TokenizerLoadError):
            load()
        assert not marker.exists()
    load_config(llama_copy, EngineConfig(trust_remote_code=True))
    assert marker.exists(), "the code must run here, or this test proves nothing"


@pytest.mark.parametrize(
    "named", [None, "os.system", "../../evil", "hostile.HostileTokenizer", "builtins.exec", "__import__"]
)
def test_code_beside_a_tokenizer_does_not_run_nor_do_names_of_classes_load_any(tiny_llama, tmp_path, named, marker):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(tiny_llama / name, folder)
    write_code(folder, marker)
    if named is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
        (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of", "tokenizer_class": named}))
    try:
        load_tokenizer(folder)
    except TokenizerLoadError as err:
        assert "\n" not in str(err)
    assert not marker.exists()
