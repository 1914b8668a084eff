"""Quantization: the flag against the checkpoint, and the method against this vLLM and its device."""

import json
from pathlib import Path
from typing import Any

import pytest

from startup.preflight.report import Finding
from startup.vllm.preflight.model import ModelChecks
from startup.vllm.preflight.model_settings import device_quantization_findings, quantization_findings
from startup.vllm.preflight.nvml import Gpu
from tests.startup.vllm.preflight.conftest import CheckStart

LEGACY_MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}


def _folder(tmp_path: Path, **config: Any) -> Path:
    tmp_path.joinpath("config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return tmp_path


def _found(start: CheckStart, folder: Path, *words: str, **options: bool) -> list[tuple[str, str]]:
    checked = start(str(folder), *words, **options)
    return [_short(finding) for finding in quantization_findings(checked, ModelChecks(checked))]


def _short(finding: Finding) -> tuple[str, str]:
    assert finding.check == "quantization"
    return finding.severity, finding.message


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (None, ""),
        (None, "-q FP8"),
        ("gptq", ""),
        ("gptq", "-q gptq"),
        ("gptq", "-q auto_gptq"),
        ("gptq", "-q gptq_marlin"),
        ("gptq", "-q moe_wna16"),
        ("GPTQ", "-q GPTQ"),
        ("compressed_tensors", "-q compressed-tensors"),
        ("auto-round", "-q gptq"),
        ("mxfp4", "-q fp8"),
        ("modelopt", "-q fp8"),
        ("awq", "--hf-overrides {}"),
    ],
)
def test_what_vllm_takes(start, tmp_path, method, words):
    folder = _folder(tmp_path, **({"quantization_config": {"quant_method": method}} if method else {}))
    assert _found(start, folder, *words.split()) == []


def test_an_unknown_name(start, tmp_path):
    """Only without settings in the checkpoint, for which vLLM may choose a method of its own."""
    ((severity, message),) = _found(start, _folder(tmp_path), "-q", "fp9")
    assert (severity, message) == ("error", "this vLLM has no --quantization 'fp9' (did you mean 'fp8'?)")
    assert _found(start, tmp_path, "-q", "fp9", has_plugin=True) == []
    assert [severity for severity, _ in _found(start, Path("someone/model"), "-q", "fp9")] == ["warning"]
    folder = _folder(tmp_path, quantization_config={"quant_method": "gptq"})
    assert [severity for severity, _ in _found(start, folder, "-q", "fp9")] == ["warning"]


def test_a_flag_for_another_kind_of_checkpoint(start, tmp_path):
    folder = _folder(tmp_path, quantization_config={"quant_method": "gptq"})
    ((severity, message),) = _found(start, folder, "-q", "awq")
    assert severity == "error"
    assert message.startswith("--quantization awq does not fit the checkpoint, which is quantized with gptq")
    assert _found(start, folder, "-q", "awq", has_plugin=True) == []


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "fp8_per_tensor"),
        ({"quantization_config": {"quant_method": "gptq"}, "auto_map": {}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8"}, "model_type": "deepseek_v4"}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "own"}}}, "awq"),
    ],
)
def test_where_other_code_may_decide_there_is_a_warning(start, tmp_path, config, given):
    assert [severity for severity, _ in _found(start, _folder(tmp_path, **config), "-q", given)] == ["warning"]


@pytest.mark.parametrize("method", ["fp_quant", "own"])
def test_another_file_may_decide(start, tmp_path, method):
    folder = _folder(tmp_path, compression_config={"quant_method": method})
    assert {severity for severity, _ in _found(start, folder)} == {"error"}
    (folder / "hf_quant_config.json").write_text("{}")
    assert {severity for severity, _ in _found(start, folder)} == {"warning"}


def test_an_old_format_of_modelopt_is_left_to_vllm(start, tmp_path):
    assert _found(start, _folder(tmp_path, quantization_config=LEGACY_MODELOPT), "-q", "modelopt") == []


def test_a_method_that_this_vllm_does_not_have(start, tmp_path):
    ((severity, message),) = _found(start, _folder(tmp_path, quantization_config={"quant_method": "bitsandbytes"}))
    assert severity == "error"
    assert "quantized with 'bitsandbytes', which this vLLM does not have" in message


def test_a_deprecated_method(start, tmp_path):
    folder = _folder(tmp_path, quantization_config={"quant_method": "fp_quant"})
    assert _found(start, folder) == [
        ("error", "this vLLM reads fp_quant only with --allow-deprecated-quantization: add it")
    ]
    folder = _folder(tmp_path, quantization_config={"quant_method": "gptq"})
    assert {severity for severity, _ in _found(start, folder, "-q", "fp_quant")} == {"warning"}


def test_a_flag_for_a_checkpoint_that_is_not_quantized(start, tmp_path):
    folder = _folder(tmp_path)
    ((severity, message),) = _found(start, folder, "-q", "gptq")
    assert severity == "error"
    assert "config.json has no quantization_config, and there is no quantize_config.json" in message
    (folder / "my_quantize_config.json").write_text("{}")
    assert _found(start, folder, "-q", "gptq") == []


@pytest.mark.parametrize(
    ("method", "capability", "severities"),
    [("fp8", (7, 0), ["error"]), ("fp8", (7, 5), []), ("fp8", (0, 0), []), ("gptq", (3, 5), []), ("mxfp4", (5, 0), [])],
)
def test_the_capability_of_a_gpu(start, tmp_path, method, capability, severities):
    checked = start(str(_folder(tmp_path, quantization_config={"quant_method": method})))
    gpu = Gpu(0, "GPU-0", "V100", 1, 1, capability, ())
    found = list(device_quantization_findings(checked, ModelChecks(checked), gpu))
    assert [finding.severity for finding in found] == severities
    for finding in found:
        assert "needs a GPU of compute capability 7.5; GPU 0 (V100) has 7.0" in finding.message


@pytest.mark.parametrize(("method", "severities"), [("fp8", []), ("torchao", ["warning"])])
def test_methods_of_amd_gpus(start, tmp_path, method, severities):
    checked = start(str(_folder(tmp_path, quantization_config={"quant_method": method})))
    found = device_quantization_findings(checked, ModelChecks(checked), None)
    assert [finding.severity for finding in found] == severities
