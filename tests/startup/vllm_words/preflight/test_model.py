"""Faults of model and tokenizer folders that vLLM itself reads. All other models are left to vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest

from startup.session.preflight.report import Finding
from startup.vllm_words.preflight.model import ModelOnDisk
from tests.startup.session.preflight.conftest import write_safetensors
from tests.startup.vllm_words.preflight.conftest import CheckStart
from tests.support.gguf_file import write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model without faults."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (path / "tokenizer.json").write_text("{}")
    write_safetensors(path / "model.safetensors", {"weight": ("F32", [4], 16)})
    return path


def _findings(start: CheckStart, *words: object, **options: Any) -> list[Finding]:
    checked = start(*map(str, words), **options)
    return list(ModelOnDisk(checked).findings())


def _errors(start: CheckStart, *words: object, **options: Any) -> list[str]:
    return [finding.message for finding in _findings(start, *words, **options) if finding.severity == "error"]


@pytest.mark.parametrize("form", ["file", "folder", "repo/name-GGUF:UD-Q4_K_XL"])
def test_gguf_needs_a_plugin(start, tmp_path, form):
    """The message names the plugin and the other engine. It does not call the file damaged."""
    write_model(tmp_path / "m" / "a.gguf")
    name = {"file": tmp_path / "m" / "a.gguf", "folder": tmp_path / "m"}.get(form, form)
    (message,) = _errors(start, name)
    assert "pip install vllm-gguf-plugin" in message
    assert "--engine embedded" in message
    for words in ((), ("--hf-config-path", tmp_path), ("--load-format", "dummy")):
        assert _errors(start, name, *words, has_plugin=not words) == []


def test_gguf_beside_a_configuration_is_only_a_warning(start, folder):
    """vLLM 0.33 reads the GGUF files of one architecture itself."""
    (folder / "model.safetensors").unlink()
    write_model(folder / "a.gguf")
    assert [finding.severity for finding in _findings(start, folder) if finding.check == "gguf"] == ["warning"]


def test_offline_without_any_file(start, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (message,) = _errors(start, "someone/model")
    assert "HF_HUB_OFFLINE forbids the download" in message
    (tmp_path / "hub" / "models--someone--model" / "snapshots" / "main").mkdir(parents=True)
    messages = _errors(start, "someone/model")
    assert not any("HF_HUB_OFFLINE" in message for message in messages)
    assert any("has no config.json" in message for message in messages)


def test_offline_with_the_weights_alone_in_the_download_folder(start, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models--someone--model" / "snapshots" / "main").mkdir(parents=True)
    assert _errors(start, "someone/model", "--download-dir", tmp_path) == []


def test_shards_of_the_index(start, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert _errors(start, folder) == []  # without an index vLLM reads what there is
    shards = {"weight": "model-00001-of-00002.safetensors", "other": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (message,) = _errors(start, folder)
    assert "lacks 1 of 2 shards" in message


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["consolidated.safetensors"], "weights are read from consolidated.safetensors, not from model.safetensors"),
        (
            ["consolidated.safetensors", "params.json"],
            "the configuration is read from params.json, not from config.json",
        ),
        (["params.json"], "the configuration is read from config.json, not from params.json"),
    ],
)
def test_the_choice_among_several_formats_is_told(start, folder, names, text):
    for name in names:
        (folder / name).touch()
    messages = [finding.message for finding in _findings(start, folder) if finding.check == "choice"]
    assert f"{folder}: {text}" in messages
    assert not [f for f in _findings(start, folder, "--config-format", "hf") if f.check == "choice"]


@pytest.mark.parametrize("version", ["0.32.0+cpu", "9.9.0"])
def test_shards_in_a_subfolder_are_not_vllm_s(start, folder, version):
    (folder / "sub").mkdir()
    (folder / "model.safetensors").rename(folder / "sub" / "b.safetensors")
    write_safetensors(folder / "a.safetensors", {"other": ("F32", [4], 16)})
    weight_map = {"weight": "sub/b.safetensors", "other": "a.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (finding,) = [found for found in _findings(start, folder, version=version) if found.check == "weights"]
    assert "names sub/b.safetensors, but vLLM reads no weights in subfolders" in finding.message
    assert finding.severity == ("error" if version.startswith("0.32") else "warning")
