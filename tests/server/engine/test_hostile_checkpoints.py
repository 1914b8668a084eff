"""No code in a model's files is executed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from base.errors import EngineStartError
from server.engine.model_loading import load_config, load_model
from server.engine.pooling import projection
from server.terms.config import EngineConfig
from server.text.model_files.tokenizer_files import TokenizerLoadError
from server.text.renderers.tokenizers.loading import load_tokenizer
from tests.hostile.checkpoints import pickles, write_code

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

KINDS = ("archive", "legacy", "bare pickle", "archive with another pickle")


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
    for load in (load_config, load_model):
        try:
            load(llama_copy, EngineConfig())
        except EngineStartError as err:
            assert "--trust-remote-code" in str(err)
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
