"""Checks quantization: the flag against the checkpoint, and the method against this vLLM and its device."""

from collections.abc import Iterator
from typing import Any, Final

from envs.suggestion import did_you_mean
from startup.preflight.report import Finding, Severity, error, warning
from startup.vllm.preflight.arguments import CheckedStart
from startup.vllm.preflight.command_line import check_name
from startup.vllm.preflight.model import ModelChecks
from startup.vllm.preflight.nvml import Gpu

_CHECK: Final = "quantization"
_ALLOW_DEPRECATED: Final = "--allow-deprecated-quantization"
_FAMILIES: Final = {"awq_marlin": "awq", "auto_awq": "awq", "gptq_marlin": "gptq", "auto_gptq": "gptq"}
"""Methods that read the same checkpoints as another one."""
_EXACT: Final = ("awq", "gptq", "fp8", "compressed-tensors", "quark", "torchao")
"""Families that vLLM never takes for another one, whatever else the checkpoint says."""
_REPLACED: Final = ("auto-round", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "modelopt")
"""Methods of checkpoints for which vLLM chooses one of its own, whatever the flag says."""
_FOR_ANY: Final = ("humming", "moe_wna16", "inc", "marlin")
"""Values of the flag that fit to several kinds of checkpoints."""
_SETTINGS: Final = {"awq": ("quantize_config.json", "quant_config.json"), "gptq": ("quantize_config.json",)}
"""Families that need one of these files where config.json says nothing of quantization."""
_MODELOPT_FILE: Final = "hf_quant_config.json"
"""Settings that vLLM may read instead of those in config.json."""
_SPECIAL_MODELS: Final = "deepseek_v4"
"""Their class changes the method."""


def quantization_findings(start: CheckedStart, model: ModelChecks) -> Iterator[Finding]:
    """What is known without the device; only the name without a configuration that vLLM reads as it is."""
    yield from _name_findings(start, model)
    if not _is_readable(start, model):
        return
    given, method = _given(start), _method_of(model.config)
    yield from _deprecated_findings(start, model, given, method)
    if given and method:
        yield from _mismatch_findings(start, model, given, method)
    elif given:
        yield from _settings_findings(start, model, given)
    elif method and start.facts.has_rule("quantization is known"):
        known = start.facts.registries.quantization_methods
        if known and method not in (*known, *_REPLACED):
            report = error if _is_certain(model) else warning
            yield report(
                _CHECK,
                f"config.json says that the checkpoint is quantized with {method!r}, which this vLLM does not have"
                f"{did_you_mean(method, known)}: take another checkpoint, or install a plugin for it",
            )


def device_quantization_findings(start: CheckedStart, model: ModelChecks, gpu: Gpu | None) -> Iterator[Finding]:
    """Whether the device can compute a quantized checkpoint: NVIDIA's first GPU, or AMD's if it is None."""
    given, method = _given(start), _method_of(model.config)
    if not method or method in _REPLACED or given in _FOR_ANY or not _is_readable(start, model):
        return
    facts, family = start.facts.quantization, _family(method)
    if gpu is not None:
        needed = [least for name, least in facts.min_capabilities.items() if _family(name) == family]
        capability = gpu.capability[0] * 10 + gpu.capability[1]
        if needed and 0 < capability < min(needed):
            is_certain = start.facts.has_rule("quantization needs capability") and family in _EXACT
            report = error if is_certain and _is_certain(model) else warning
            yield report(
                _CHECK,
                f"the checkpoint is quantized with {method}, which needs a GPU of compute capability "
                f"{min(needed) / 10:.1f}; GPU {gpu.number} ({gpu.name}) has {capability / 10:.1f}: take another "
                "checkpoint or GPU",
            )
    elif facts.on_rocm and not any(_family(name) == family for name in facts.on_rocm):
        yield warning(_CHECK, f"the checkpoint is quantized with {method}, which vLLM does not support on AMD's GPUs")


def _is_readable(start: CheckedStart, model: ModelChecks) -> bool:
    return bool(model.config) and not start.facts.plugins and not start.has("--hf-overrides")


def _given(start: CheckedStart) -> str:
    return str(start.value("--quantization") or "").lower()


def _method_of(config: dict[str, Any]) -> str:
    """The method that the checkpoint names, as vLLM reads it; empty for one that is not quantized."""
    nested = config.get("text_config")
    for owner in (config, nested if isinstance(nested, dict) else {}):
        found = owner.get("quantization_config") or owner.get("compression_config")
        if isinstance(found, dict):
            if "producer" in found or "quantization" in found:
                return "modelopt"
            return str(found.get("quant_method") or "").lower().replace("_tensors", "-tensors")
    return ""


def _family(method: str) -> str:
    return "modelopt" if method.startswith("modelopt") else _FAMILIES.get(method, method)


def _is_certain(model: ModelChecks) -> bool:
    """Whether no code but vLLM's own general one decides about the method, and no other file."""
    model_type = str(model.config.get("model_type", ""))
    has_code = "auto_map" in model.config or "speculators_config" in model.config or _SPECIAL_MODELS in model_type
    return not has_code and model.folder is not None and not (model.folder / _MODELOPT_FILE).exists()


def _name_findings(start: CheckedStart, model: ModelChecks) -> Iterator[Finding]:
    """The name of the flag; a quantized checkpoint may decide about the method, whatever the flag says."""
    if start.facts.plugins or _method_of(model.config):
        return
    is_certain = _is_readable(start, model) and _is_certain(model)
    for finding in check_name(start, "--quantization", start.facts.registries.quantization_methods, fold=str.lower):
        yield finding if is_certain else finding._replace(severity="warning")


def _deprecated_findings(start: CheckedStart, model: ModelChecks, given: str, method: str) -> Iterator[Finding]:
    name = given or method
    if name not in start.facts.quantization.deprecated or start.has(_ALLOW_DEPRECATED):
        return
    if start.facts.has_rule("quantization is not deprecated"):
        # Another one of the checkpoint may replace that of the flag.
        report = error if method in ("", name) and _is_certain(model) else warning
        yield report(_CHECK, f"this vLLM reads {name} only with {_ALLOW_DEPRECATED}: add it")


def _mismatch_findings(start: CheckedStart, model: ModelChecks, given: str, method: str) -> Iterator[Finding]:
    wanted, has = _family(given), _family(method)
    if wanted == has or has in _REPLACED or given in _FOR_ANY:
        return
    if not start.facts.has_rule("quantization fits checkpoint"):
        return
    is_certain = wanted in _EXACT and has in _EXACT and _is_certain(model)
    severity: Severity = "error" if is_certain else "warning"
    text = f"--quantization {given} does not fit the checkpoint, which is quantized with {method} (config.json)"
    yield Finding(_CHECK, severity, f"{text}: leave it out")


def _settings_findings(start: CheckedStart, model: ModelChecks, given: str) -> Iterator[Finding]:
    """A flag for a checkpoint that is not quantized."""
    names = _SETTINGS.get(_family(given))
    if names is None or model.folder is None or not start.facts.has_rule("quantization has settings"):
        return
    if any(path.name.endswith(names) for path in model.folder.glob("*.json")):
        return
    report = error if model.is_whole and _is_certain(model) else warning
    yield report(
        _CHECK,
        f"--quantization {given} needs a checkpoint that is quantized so, and {model.folder} is not: config.json has "
        f"no quantization_config, and there is no {names[0]}; leave the flag out, or take a quantized checkpoint",
    )
