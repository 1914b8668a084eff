"""Length, heads and quantization: vLLM's own rules compare the flag with config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from startup.vllm_words.preflight.model import ModelOnDisk
from startup.vllm_words.preflight.model_settings import setting_findings
from tests.startup.vllm_words.preflight.conftest import CheckStart

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192,
    "num_attention_heads": 12,
}  # fmt: skip
GPTQ = {"quantization_config": {"quant_method": "gptq"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _configure(tmp_path)
    return tmp_path


def _configure(folder: Path, **changes: Any) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def _found(start: CheckStart, folder: Path, *words: str, **options: Any) -> list[tuple[str, str]]:
    checked = start(str(folder), *words, **options)
    return [(found.severity, found.message) for found in setting_findings(checked, ModelOnDisk(checked))]


def _severities(*arguments: Any, **options: Any) -> list[str]:
    return [severity for severity, _ in _found(*arguments, **options)]


def test_lengths(start, folder, monkeypatch):
    assert _found(start, folder, "--max-model-len", "8k") == []
    assert _found(start, folder, "--max-model-len", "auto") == []
    ((severity, message),) = _found(start, folder, "--max-model-len", "9k")
    assert severity == "error"
    assert message.startswith("--max-model-len 9000 is more than the 8192 tokens of the model's config.json")
    assert _found(start, folder, "--max-model-len", "9k", is_first=True) == [(severity, message)]
    for value in ("1", "true", " 1 "):
        monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", value)
        assert _found(start, folder, "--max-model-len", "9k") == []


@pytest.mark.parametrize(
    "words",
    [
        ("--hf-overrides", '{"max_position_embeddings": 9000}'),
        ("--speculative-config", '{"method": "ngram"}'),
        ("--config-format", "mistral"),
        ("--hf-config-path", "/other"),
    ],
)
def test_a_start_whose_configuration_is_another_one_is_left_to_vllm(start, folder, words):
    assert _found(start, folder, "--max-model-len", "9k", "-tp", "5", *words) == []


@pytest.mark.parametrize("options", [{"version": "0.99.0"}, {"words": ("--tokenizer", "other")}])
def test_a_length_that_more_may_decide_is_a_warning(start, folder, options):
    words = options.pop("words", ())
    assert _severities(start, folder, "--max-model-len", "9k", *words, **options) == ["warning"]


def test_plugins_may_know_other_rules(start, folder):
    assert _found(start, folder, "--max-model-len", "9k", "-tp", "5", has_plugin=True) == []


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
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaled_lengths(start, folder, key, scaling, *, is_fault):
    _configure(folder, **{key: scaling})
    assert _severities(start, folder, "--max-model-len", "12k") == ["error"] * is_fault


def test_a_class_that_scales_lengths_by_default(start, folder):
    _configure(folder, model_type="gpt_oss")
    assert _severities(start, folder, "--max-model-len", "12k") == ["warning"]
    _configure(folder, model_type="gpt_oss", rope_scaling={"rope_type": "default"})
    assert _severities(start, folder, "--max-model-len", "12k") == ["error"]


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"model_max_length": 20000}, ""),
        ({"max_position_embeddings": None, "n_ctx": 1024}, ""),
        ({"text_config": {"max_position_embeddings": 8192}}, ""),
        ({}, "sentence_bert_config.json"),
    ],
    ids=["another-limit", "another-key", "nested", "sentence-transformers"],
)
def test_models_with_other_lengths_are_left_to_vllm(start, folder, changes, file):
    _configure(folder, **changes)
    if file:
        (folder / file).write_text("{}")
    assert "error" not in _severities(start, folder, "--max-model-len", "12k")


def test_heads(start, folder):
    assert _found(start, folder, "-tp", "4") == []
    ((severity, message),) = _found(start, folder, "-tp", "5")
    assert (severity, message.endswith("the model's 12 attention heads: give 4")) == ("error", True)
    _configure(folder, n_head=10)
    assert _severities(start, folder, "-tp", "5") == ["warning"]
    _configure(folder, num_attention_heads=None, text_config={"num_attention_heads": 12})
    assert _severities(start, folder, "-tp", "5") == ["warning"]
    _configure(folder, llm_config={"model_type": "llama"})
    assert _severities(start, folder, "-tp", "5", "--max-model-len", "12k") == ["warning", "warning"]
    _configure(folder, num_attention_heads="12")
    assert _found(start, folder, "-tp", "5") == []


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (None, ""),
        (None, "-q FP8"),
        ("gptq", "-q gptq"),
        ("gptq", "-q auto_gptq"),
        ("gptq", "-q gptq_marlin"),
        ("gptq", "-q moe_wna16"),
        ("GPTQ", "-q GPTQ"),
        ("fp8", ""),
        ("auto-round", "-q gptq"),
        ("mxfp4", "-q fp8"),
        ("modelopt", "-q fp8"),
        ("awq", "--hf-overrides {}"),
    ],
)
def test_methods_that_vllm_takes(start, folder, method, words):
    _configure(folder, **({"quantization_config": {"quant_method": method}} if method else {}))
    assert _found(start, folder, *words.split()) == []


@pytest.mark.parametrize(
    ("changes", "words", "severity", "message"),
    [
        ({}, "-q awk", "error", "no --quantization 'awk' (did you mean 'awq'?)"),
        ({}, "-q awk --hf-overrides {}", "warning", "no --quantization 'awk' (did you mean 'awq'?)"),
        ({}, "-q awq", "warning", "needs a checkpoint that is quantized with it"),
        (GPTQ, "-q awq", "warning", "does not fit the checkpoint, which is quantized with gptq"),
        (GPTQ, "-q fp8_per_tensor", "warning", "does not fit the checkpoint"),
        (
            {"quantization_config": {"quant_method": "nofp2"}},
            "",
            "warning",
            "config.json: this vLLM has no quantization",
        ),
    ],
)
def test_methods_that_do_not_fit(start, folder, changes, words, severity, message):
    _configure(folder, **changes)
    ((found, text), *_) = _found(start, folder, *words.split())
    assert (found, message in text) == (severity, True)
    assert "error" not in _severities(start, folder, *words.split(), has_plugin=True)
    assert "error" not in _severities(start, folder, *words.split(), version="0.99.0")


def test_other_files_may_decide_about_the_method(start, folder):
    (folder / "hf_quant_config.json").write_text("{}")
    assert _severities(start, folder, "-q", "awk") == ["warning"]
    (folder / "my_quantize_config.json").write_text("{}")
    assert _found(start, folder, "-q", "awq") == []
