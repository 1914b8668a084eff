"""Model and tokenizer: faults of folders that vLLM reads as they are; all else is left to vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest

from startup.preflight.report import Finding
from startup.vllm.preflight.model import ModelChecks
from startup.vllm.preflight.model_settings import shape_findings
from tests.startup.preflight.conftest import write_safetensors
from tests.startup.vllm.preflight.conftest import CheckStart

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 8192,
    "num_attention_heads": 12,
    "num_hidden_layers": 4,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without faults."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    write_safetensors(path / "model.safetensors", {"weight": ("F32", [4], 16)})
    return path


def _configure(folder: Path, **changes: Any) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def _findings(start: CheckStart, *words: object, **options: bool) -> list[Finding]:
    checked = start(*map(str, words), **options)
    model = ModelChecks(checked)
    return [*model.findings(), *shape_findings(checked, model)]


def _errors(start: CheckStart, *words: object, **options: bool) -> list[str]:
    return [finding.message for finding in _findings(start, *words, **options) if finding.severity == "error"]


def test_a_good_folder(start, folder):
    assert _findings(start, folder) == []


def test_a_folder_that_does_not_exist(start, folder):
    (message,) = _errors(start, folder.with_name("modle"))
    assert "is neither a folder nor a name" in message
    assert "did you mean 'model'" in message


@pytest.mark.parametrize("name", ["s3://bucket/model", "repo/name:Q4_K_M", "/models/file.gguf", "gs://b/m"])
def test_other_places_are_left_to_vllm(start, name):
    assert _findings(start, name) == []


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


def test_an_unknown_architecture(start, folder):
    _configure(folder, architectures=["LlamoForCausalLM"])
    (message,) = _errors(start, folder)
    assert "no architecture 'LlamoForCausalLM' (did you mean 'LlamaForCausalLM'?)" in message
    assert _errors(start, folder, has_plugin=True) == []
    assert _errors(start, folder, "--hf-overrides", '{"architectures": ["LlamaForCausalLM"]}') == []


def test_a_former_architecture(start, folder):
    _configure(folder, architectures=["OldForCausalLM"])
    (message,) = _errors(start, folder)
    assert "(supported until 0.20.0)" in message


@pytest.mark.parametrize(
    "name",
    ["LlamaForSequenceClassification", "LlamaModel", "GPT2Model", "GPT2ForTokenClassification", "GPT2DoubleHeadsModel"],
)
def test_other_ends_of_the_name_and_classes_of_transformers(start, folder, name):
    _configure(folder, architectures=[name])
    assert _errors(start, folder) == []


def test_code_of_the_model_needs_trust(start, folder):
    _configure(folder, model_type="own_model", auto_map={"AutoConfig": "own.Config"})
    (message,) = _errors(start, folder)
    assert "--trust-remote-code" in message
    assert _errors(start, folder, "--trust-remote-code") == []


@pytest.mark.parametrize("model_type", ["llama", "RefinedWeb", "kimi_k2", "unlimited-ocr"])
def test_code_of_the_model_is_not_needed_for_a_known_type(start, folder, model_type):
    _configure(folder, model_type=model_type, auto_map={"AutoConfig": "own.Config"})
    assert _errors(start, folder) == []


def test_an_unknown_model_type(start, folder):
    _configure(folder, model_type="llamo", architectures=["LlamoForCausalLM"])
    assert any("model_type 'llamo'" in message for message in _errors(start, folder))


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
    assert _findings(start, folder) == []


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


def test_lengths(start, folder, monkeypatch):
    assert _findings(start, folder, "--max-model-len", "8k") == []
    (message,) = _errors(start, folder, "--max-model-len", "9k")
    assert "--max-model-len 9000 is more than the model's own limit of 8192 tokens" in message
    assert _errors(start, folder, "--max-model-len", "9k", "--hf-overrides", '{"max_position_embeddings": 9000}') == []
    for value in ("1", "true", "True", " 1 "):
        monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", value)
        assert _findings(start, folder, "--max-model-len", "9k") == []
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "yes")
    assert len(_errors(start, folder, "--max-model-len", "9k")) == 1


@pytest.mark.parametrize(
    ("scaling", "is_fault"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, False),
        ({"type": "linear", "factor": 2.0}, False),
        ({"rope_type": "yarn", "factor": 4.0}, False),
        ({"rope_type": "llama3", "factor": 8.0}, True),
        ({"rope_type": "default"}, True),
        ({"rope_type": "default", "factor": 2.0}, False),
        ({"factor": 2.0}, False),
        ({"full": {"rope_type": "linear", "factor": 8.0}}, False),
    ],
    ids=["dynamic", "linear", "yarn", "llama3", "default", "default-with-factor", "no-type", "by-layer"],
)
def test_scaled_lengths(start, folder, scaling, *, is_fault):
    _configure(folder, rope_scaling=scaling)
    assert bool(_errors(start, folder, "--max-model-len", "12k")) == is_fault


def test_a_class_that_scales_lengths_by_default(start, folder):
    _configure(folder, model_type="gpt_oss")
    assert _errors(start, folder, "--max-model-len", "12k") == []
    _configure(folder, model_type="gpt_oss", rope_scaling={"rope_type": "default"})
    assert len(_errors(start, folder, "--max-model-len", "12k")) == 1


def test_models_with_other_lengths_are_left_to_vllm(start, folder):
    _configure(folder, model_max_length=20000)
    assert _errors(start, folder, "--max-model-len", "12k") == []
    _configure(folder, model_max_length=None, max_position_embeddings=None, n_ctx=1024)
    assert _errors(start, folder, "--max-model-len", "12k") == []
    _configure(folder, text_config={"max_position_embeddings": 8192})
    assert _errors(start, folder, "--max-model-len", "12k") == []


def test_a_limit_of_sentence_transformers_is_left_to_vllm(start, folder):
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12000}')
    assert _errors(start, folder, "--max-model-len", "12k") == []


@pytest.mark.parametrize("length", ["0", "-2"])
def test_lengths_below_one(start, folder, length):
    assert _errors(start, folder, f"--max-model-len={length}")


def test_heads(start, folder):
    assert _errors(start, folder, "-tp", "4") == []
    (message,) = _errors(start, folder, "-tp", "5")
    assert message.endswith("does not divide the model's 12 attention heads: give 4")
    _configure(folder, n_head=10)
    assert [finding.severity for finding in _findings(start, folder, "-tp", "5")] == ["warning"]


def test_layers(start, folder):
    (finding,) = _findings(start, folder, "-pp", "5")
    assert finding.severity == "warning"
