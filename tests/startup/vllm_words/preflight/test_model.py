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

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model without faults."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    write_safetensors(path / "model.safetensors", {"weight": ("F32", [4], 16)})
    return path


def _findings(start: CheckStart, *words: object, **options: Any) -> list[Finding]:
    checked = start(*map(str, words), **options)
    return list(ModelOnDisk(checked).findings())


def _errors(start: CheckStart, *words: object, **options: Any) -> list[str]:
    return [finding.message for finding in _findings(start, *words, **options) if finding.severity == "error"]


def test_a_good_folder(start, folder):
    assert _findings(start, folder) == []


def test_a_folder_that_does_not_exist(start, folder):
    (message,) = _errors(start, folder.with_name("modle"))
    assert "is neither a folder nor a name" in message
    assert "did you mean 'model'" in message


@pytest.mark.parametrize("name", ["s3://bucket/model", "instance://host/m", "/models/file.gguf", "gs://b/m"])
def test_other_places_are_left_to_vllm(start, name):
    assert _findings(start, name) == []


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


@pytest.mark.parametrize(
    "name", ["hf.co/team/model:Q4_K_M", "https://hf.co/team/model", "team/model@main", "team/model:main"]
)
def test_a_name_of_another_tool_is_an_error_unless_a_plugin_may_read_it(start, name):
    (finding,) = _findings(start, name)
    assert (finding.severity, "write team/model" in finding.message) == ("error", True)
    (finding,) = _findings(start, name, has_plugin=True)
    assert finding.severity == "warning"


@pytest.mark.parametrize("variable", ["VLLM_MODEL_REDIRECT_PATH", "VLLM_USE_MODELSCOPE"])
def test_names_of_others_are_left_to_vllm(start, monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path / "map"))
    assert _findings(start, tmp_path / "missing") == []


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


@pytest.mark.parametrize("content", ["{", "[]", "version https://git-lfs.github.com/spec/v1\nsize 5\n"])
def test_a_broken_configuration(start, folder, content):
    (folder / "config.json").write_text(content)
    (message,) = _errors(start, folder)
    assert str(folder / "config.json") in message


def test_without_a_configuration(start, folder):
    (folder / "config.json").unlink()
    (message,) = _errors(start, folder)
    assert "has no config.json" in message
    assert _errors(start, folder, has_plugin=True) == []
    (folder / "params.json").write_text("{}")
    assert _errors(start, folder) == []


def test_weights(start, folder):
    (folder / "model.safetensors").write_bytes(b"\x10")
    (message,) = _errors(start, folder)
    assert "is truncated" in message
    assert _errors(start, folder, "--load-format", "dummy") == []
    (folder / "model.safetensors").unlink()
    (message,) = _errors(start, folder)
    assert "has no weights" in message
    assert _errors(start, folder, "--load-format", "dummy") == []


def test_shards_of_the_index(start, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert _errors(start, folder) == []  # without an index vLLM reads what there is
    shards = {"weight": "model-00001-of-00002.safetensors", "other": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (message,) = _errors(start, folder)
    assert "lacks 1 of 2 shards" in message


def test_files_that_vllm_does_not_read(start, folder):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "optimizer.pt").write_bytes(b"x")
    (finding,) = _findings(start, folder)
    text = "weights are read from model.safetensors, not from pytorch_model.bin"
    assert (finding.severity, finding.message) == ("info", f"{folder}: {text}")

    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert _errors(start, folder) == []


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


def test_tokenizer(start, folder, tmp_path):
    (folder / "tokenizer.json").write_text("{")
    (message,) = _errors(start, folder)
    assert "tokenizer.json is not JSON" in message
    (folder / "tokenizer.json").unlink()
    (finding,) = _findings(start, folder)
    assert (finding.severity, finding.message) == ("warning", f"{folder} has no tokenizer: name one with --tokenizer")
    assert _findings(start, folder, "--skip-tokenizer-init") == []
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("a")
    assert _findings(start, folder, "--tokenizer", other) == []


def _configure(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_an_unknown_architecture(start, folder):
    _configure(folder, architectures=["LlamaForCausaLM"])
    (found,) = _findings(start, folder)
    assert found.severity == "error"
    assert "no architecture 'LlamaForCausaLM' (did you mean 'LlamaForCausalLM'?)" in found.message
    _configure(folder, architectures=["Qwen3ForSequenceClassification"])
    assert _findings(start, folder) == []


@pytest.mark.parametrize(
    ("changes", "words", "options"),
    [
        ({}, "--hf-overrides {}", {}),
        ({}, "--model-impl transformers", {}),
        ({}, "", {"has_plugin": True}),
        ({}, "", {"version": "0.99.0"}),
    ],
)
def test_where_more_decides_about_the_class_an_unknown_architecture_is_a_warning(
    start, folder, changes, words, options
):
    _configure(folder, architectures=["LlamaForCausaLM"], **changes)
    assert [finding.severity for finding in _findings(start, folder, *words.split(), **options)] == ["warning"]


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["Gemma2Model"]},
        {"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}},
        {"architectures": ["Own"], "speculators_config": {"a": 1}},
        {"architectures": None},
    ],
    ids=["of-transformers", "own-code", "of-a-draft", "none"],
)
def test_other_classes_are_left_to_vllm(start, folder, changes):
    _configure(folder, **changes)
    assert _findings(start, folder) == []


def test_own_code_needs_trust(start, folder):
    _configure(folder, model_type="own", auto_map={"AutoConfig": "own.Config"})
    (message,) = _errors(start, folder)
    assert message.endswith("needs its own code for model_type 'own': give --trust-remote-code if you trust it")
    assert _findings(start, folder, "--trust-remote-code") == []
    assert _errors(start, folder, has_plugin=True) == _errors(start, folder, "--config-format", "mistral") == []
    _configure(folder, model_type="llama", auto_map={"AutoConfig": "own.Config"})
    assert _findings(start, folder) == []


def test_an_unknown_type(start, folder):
    _configure(folder, model_type="llamo", architectures=["Llamo"])
    messages = _errors(start, folder)
    assert any("neither this vLLM nor its transformers know the model_type 'llamo'" in each for each in messages)
    _configure(folder, model_type="kimi_k2")
    assert _findings(start, folder) == []
    _configure(folder, model_type="llamo", architectures=["Llamo"])
    assert _findings(start, folder, is_first=True) == []
