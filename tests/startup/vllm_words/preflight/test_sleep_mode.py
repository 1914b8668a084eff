"""The levels at which models of vLLM can sleep."""

import json
from pathlib import Path
from typing import Any

import pytest

from startup.vllm_words import facts, installed
from startup.vllm_words.facts import Plugin
from startup.vllm_words.installed import InstalledVllm, TorchBuild
from startup.vllm_words.preflight import devices
from startup.vllm_words.preflight.devices import can_sleep, deepest_level

_CUDA = TorchBuild((13, 0))


@pytest.fixture
def vllm(package: Path, monkeypatch: pytest.MonkeyPatch) -> InstalledVllm:
    """A fake installed vLLM, which is built for CUDA."""
    found = InstalledVllm("0.33.0", package)
    monkeypatch.setattr(devices, "find_vllm", lambda: found)
    monkeypatch.setattr(installed, "read_torch_build", lambda: _CUDA)
    return found


@pytest.mark.parametrize(
    ("version", "build", "variables", "reason"),
    [
        ("0.33.0", _CUDA, {}, ""),
        ("0.29.0", TorchBuild(None, hip="7.0"), {}, ""),
        ("0.33.0+xpu", TorchBuild(None, xpu="20250101"), {}, ""),
        ("0.33.0+cpu", TorchBuild(None), {}, "for cpu, has no sleep mode"),
        ("0.33.0", TorchBuild(None), {}, "for other, has no sleep mode"),
        ("0.33.0", _CUDA, {"VLLM_TARGET_DEVICE": "CPU"}, "for cpu, has no sleep mode"),
        ("0.33.0", _CUDA, {"VLLM_USE_RUST_FRONTEND": "1"}, "Rust frontend"),
        ("0.33.0", _CUDA, {"VLLM_USE_RUST_FRONTEND": "0"}, ""),
    ],
    ids=["cuda", "rocm", "xpu", "cpu", "unknown", "variable", "rust", "not-rust"],
)
def test_a_platform_has_the_sleep_mode_or_not(version, build, variables, reason, package, monkeypatch):
    monkeypatch.setattr(devices, "find_vllm", lambda: InstalledVllm(version, package))
    monkeypatch.setattr(installed, "read_torch_build", lambda: build)
    found = can_sleep(variables)
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_platform_of_a_plugin_is_not_known(vllm, monkeypatch):
    own = Plugin("vllm.platform_plugins", "own", "own-1.0.dist-info")
    monkeypatch.setattr(facts, "read_plugins", lambda: {"site-packages": (own,)})
    assert "a plugin decides about it" in can_sleep({})


def test_without_vllm_nothing_sleeps(monkeypatch):
    monkeypatch.setattr(devices, "find_vllm", lambda: None)
    assert can_sleep({}) == "vLLM is not installed"


def _model(folder: Path, **changes: Any) -> str:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("--tensor-parallel-size 2 --max-model-len 2048", 2),
        ("--load-format safetensors", 2),
        ("--load-format dummy", 1),
        ("--load-format runai_streamer", 1),
        ("--quantization fp8", 1),
        ("-q fp8", 1),
        ("--enable-lora", 1),
        ("--no-enable-lora", 2),
        ('--speculative-config {"method":"ngram"}', 1),
        ("--runner pooling", 1),
        ("--hf-overrides {}", 1),
        ("--kv-cache-dtype fp8", 1),
        ("--kv-transfer-config {}", 0),
        ("--kv-transfer-config {} --enable-sleep-mode", 2),
        ("--nnodes 2 --node-rank 0", 0),
    ],
)
def test_words_decide_how_deep_a_model_sleeps(vllm, tmp_path, words, level):
    assert deepest_level([_model(tmp_path), *words.split()]) == level


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, 2),
        ({"quantization_config": None}, 2),
        ({"architectures": ["LlamaForSequenceClassification"]}, 1),
        ({"architectures": []}, 1),
        ({"architectures": None}, 1),
        ({"quantization_config": {"quant_method": "fp8"}}, 1),
        ({"model_type": "bloom"}, 1),
        ({"model_type": "qwen3_moe"}, 1),
        ({"auto_map": {"AutoModel": "own.Model"}}, 1),
    ],
    ids=["plain", "off", "classifier", "none", "null", "quantized", "alibi", "experts", "own-code"],
)
def test_a_model_that_reloading_may_not_restore_keeps_its_weights(vllm, tmp_path, changes, level):
    assert deepest_level([_model(tmp_path, **changes)]) == level


def test_a_model_that_is_not_on_disk_keeps_its_weights(vllm, tmp_path):
    assert deepest_level([str(tmp_path / "none")]) == 1
